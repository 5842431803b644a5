"""First-stage selection, deformable attention and decoder: groups, gradients, fresh values."""

import math

import pytest
import torch
import torch.nn.functional as F

from rfdetr.models.deformable_attention import DeformableAttention, Memory, SamplingFrame, sample_repeatably
from rfdetr.models.heads import BoxHead, class_head, decode_boxes
from rfdetr.models.position_encoding import sine_box_embedding
from rfdetr.models.two_stage import GroupHeads, make_proposals, select_tokens


def randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def select_one_by_one(memory, proposals, heads, num_queries):
    """The first stage as the text describes it: group after group, every layer over all tokens."""
    memory = memory.masked_fill(proposals.invalid[..., None], 0.0)
    boxes = proposals.boxes.expand(len(memory), -1, -1).to(memory.dtype)
    features, logits, chosen = [], [], []
    for linear, norm, classes, box_head in zip(*heads):
        tokens = norm(linear(memory))
        best = classes(tokens).amax(-1).topk(num_queries, dim=1).indices[..., None]
        features.append(tokens.gather(1, best.expand(-1, -1, tokens.shape[-1])))
        logits.append(classes(features[-1]))
        chosen.append(decode_boxes(box_head(features[-1]), boxes.gather(1, best.expand(-1, -1, 4))))
    return [torch.cat(x, dim=1) for x in (features, logits, chosen)]


def test_batched_groups_equal_a_loop_over_groups_with_gradients():
    torch.manual_seed(0)
    width, groups = 16, 3
    layers = torch.nn.ModuleList(torch.nn.ModuleList(make() for _ in range(groups)) for make in (
        lambda: torch.nn.Linear(width, width), lambda: torch.nn.LayerNorm(width), lambda: class_head(width, 5),
        lambda: BoxHead(width))).double()
    randomise(layers)
    mask = torch.zeros(2, 6, 8, dtype=torch.bool)
    mask[1, 4:] = True
    proposals = make_proposals([(6, 8)], [mask], torch.device("cpu"))
    results = []
    for select, heads in ((select_tokens, GroupHeads.of(*layers)), (select_one_by_one, layers)):
        memory = torch.randn(2, 48, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        memory.requires_grad_()
        layers.zero_grad(set_to_none=True)
        outputs = tuple(select(memory, proposals, heads, 10))
        sum((x * torch.arange(x.shape[1])[:, None]).sin().sum() for x in outputs).backward()
        results.append((outputs, memory.grad, [p.grad for p in layers.parameters()]))
    torch.testing.assert_close(results[0], results[1])


def test_border_cells_of_large_maps_are_invalid():
    device = torch.device("cpu")
    assert make_proposals([(49, 49)], None, device).invalid is None
    invalid = make_proposals([(50, 50)], None, device).invalid.view(50, 50)
    assert invalid[0].all() and invalid[:, -1].all() and not invalid[1:-1, 1:-1].any()


def test_proposals_of_the_second_level_are_twice_as_large_and_relative_to_the_unpadded_image():
    masks = [torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)]
    masks[0][:, :, 4:], masks[1][:, :, 2:] = True, True
    boxes, invalid = make_proposals([(8, 8), (4, 4)], masks, torch.device("cpu"))
    torch.testing.assert_close(boxes[0, 1], torch.tensor([1.5 / 4, 0.5 / 8, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 64], torch.tensor([0.5 / 2, 0.5 / 4, 0.1, 0.1]))
    assert invalid[0].sum() == 32 + 8
    assert boxes[0, 4].abs().sum() == 0


def test_deformable_attention_equals_its_definition():
    torch.manual_seed(0)
    layer = DeformableAttention(8, num_heads=2, num_levels=2, num_points=3).double()
    randomise(layer)
    shapes = ((4, 5), (2, 3))
    tokens = torch.randn(1, 26, 8, dtype=torch.float64)
    query, reference = torch.randn(1, 1, 8, dtype=torch.float64), torch.tensor([[[[0.4, 0.6, 0.3, 0.5]]]]).double()
    padding = torch.zeros(1, 26, dtype=torch.bool)
    padding[:, 15:20] = True
    actual = layer(query, SamplingFrame.of(reference, 3), Memory(tokens, shapes, padding, None))

    value = layer.value_proj(tokens).masked_fill(padding[..., None], 0)[0]
    offsets = layer.sampling_offsets(query).view(2, 2, 3, 2)
    weights = layer.attention_weights(query).view(2, 6).softmax(-1).view(2, 2, 3)
    heads = []
    for head in range(2):
        total = torch.zeros(4, dtype=torch.float64)
        for level, (start, (h, w)) in enumerate(zip((0, 20), shapes)):
            grid = value[start:start + h * w, head * 4:head * 4 + 4].T.reshape(1, 4, h, w)
            for point in range(3):
                place = reference[0, 0, 0, :2] + offsets[head, level, point] / 3 * reference[0, 0, 0, 2:] * 0.5
                sample = F.grid_sample(grid, (2 * place - 1).view(1, 1, 1, 2), align_corners=False)
                total = total + weights[head, level, point] * sample.flatten()
        heads.append(total)
    torch.testing.assert_close(actual[0, 0], layer.output_proj(torch.cat(heads)))


def test_sine_embedding_order_and_interleaving():
    embedding = sine_box_embedding(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), 8)
    expected = []
    for coordinate in (0.2, 0.1, 0.3, 0.4):  # y, x, w, h
        for k in range(8):
            angle = 2 * math.pi * coordinate / 10000 ** (2 * (k // 2) / 8)
            expected.append(math.sin(angle) if k % 2 == 0 else math.cos(angle))
    torch.testing.assert_close(embedding, torch.tensor(expected, dtype=torch.float64))


def test_groups_do_not_see_each_other_and_the_first_is_the_one_of_evaluation(tiny):
    model = tiny()
    samples = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        single = model.eval()(samples)
        before = model.train()(samples)
        model.query_feat.weight[7:14] += 1.0  # the second group
        after = model(samples)
    change = (after["pred_logits"] - before["pred_logits"]).abs().amax((0, 2)).view(3, 7).amax(1)
    assert change[0] < 1e-5 and change[1] > 1e-3 and change[2] < 1e-5
    torch.testing.assert_close(single["pred_logits"], before["pred_logits"][:, :7], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(single["pred_boxes"], before["pred_boxes"][:, :7], atol=1e-5, rtol=1e-5)


def test_references_do_not_pass_gradients_to_the_first_stage(tiny):
    outputs = tiny().train()
    result = outputs(torch.randn(1, 3, 64, 64))
    result["pred_boxes"].sum().backward()
    assert outputs.transformer.enc_out_bbox_embed[0].layers[0].weight.grad is None
    assert outputs.refpoint_embed.weight.grad.abs().sum() > 0


def test_fresh_values(tiny):
    model = tiny(dec_layers=2)
    transformer, layers = model.transformer, model.transformer.decoder.layers
    assert model.class_embed.bias.unique().item() == pytest.approx(-4.59512, abs=1e-5)
    assert model.bbox_embed.layers[-1].weight.abs().max() == model.bbox_embed.layers[-1].bias.abs().max() == 0
    assert model.refpoint_embed.weight.abs().max() == 0
    assert model.query_feat.weight.std().item() == pytest.approx(1.0, rel=0.15)
    for head in transformer.enc_out_class_embed:
        torch.testing.assert_close(head.state_dict(), model.class_embed.state_dict(), rtol=0, atol=0)
    for head in transformer.enc_out_bbox_embed:
        torch.testing.assert_close(head.state_dict(), model.bbox_embed.state_dict(), rtol=0, atol=0)
    assert not torch.equal(transformer.enc_output[0].weight, transformer.enc_output[1].weight)
    assert torch.equal(layers[0].linear1.bias, layers[1].linear1.bias)
    assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight)
    for weight in (layers[0].linear1.weight, layers[0].self_attn.in_proj_weight, transformer.enc_output[0].weight):
        assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / sum(weight.shape)), rel=0.02)
    assert layers[0].self_attn.in_proj_bias.abs().max() == layers[0].self_attn.out_proj.bias.abs().max() == 0
    assert layers[0].norm1.eps == 1e-5


def test_fresh_sampling_points_fan_out():
    layer = DeformableAttention(16, num_heads=4, num_levels=2, num_points=2)
    layer.reset_parameters()
    assert layer.sampling_offsets.weight.abs().max() == layer.attention_weights.weight.abs().max() == 0
    bias = layer.sampling_offsets.bias.view(4, 2, 2, 2)
    first = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for level in range(2):
        torch.testing.assert_close(bias[:, level, 0], first)
        torch.testing.assert_close(bias[:, level, 1], 2 * first)


def test_sampling_that_repeats_on_cuda_equals_grid_sample_with_gradients():
    torch.manual_seed(0)
    maps = torch.randn(3, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(3, 6, 2, 2, dtype=torch.float64) * 3 - 1.5).requires_grad_()  # a third of them outside
    results = []
    for sample in (sample_repeatably, lambda *x: F.grid_sample(*x, align_corners=False)):
        samples = sample(maps, points)
        results.append((samples, *torch.autograd.grad(samples.square().sum(), (maps, points))))
    for repeated, plain in zip(*results):
        torch.testing.assert_close(repeated, plain)
    with torch.no_grad():
        points[0, 0, 0] = math.nan  # a diverged model must not end in an index out of range
        assert sample_repeatably(maps, points)[1:].isfinite().all()
