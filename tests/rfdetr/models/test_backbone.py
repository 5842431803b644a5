"""The encoder: windows, taps, drop path, frozen blocks."""

import math

import pytest
import torch

from rfdetr.errors import InputError
from rfdetr.models.backbone import WindowedViT, drop_path


def make_encoder(**fields):
    torch.manual_seed(0)
    return WindowedViT(**{"width": 64, "depth": 4, "num_heads": 1, "patch_size": 8, "grid_size": 4, "num_windows": 2,
                          "taps": (1, 3), **fields})


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (48, 16)])
def test_maps_have_the_size_of_the_patch_grid(size):
    maps = make_encoder()(torch.randn(2, 3, *size)).unbind(1)
    assert [tuple(x.shape) for x in maps] == [(2, 64, size[0] // 8, size[1] // 8)] * 2


def test_windowed_blocks_keep_windows_apart_and_global_blocks_mix_them():
    encoder = make_encoder().eval()
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 16:, 16:] += 1.0  # the last window
    with torch.no_grad():
        after_one, after_three = (encoder(images) - encoder(changed)).abs().amax((0, 2))
    assert after_one[:2].max() == after_one[:, :2].max() == 0  # block 0 is windowed
    assert after_one[2:, 2:].min() > 0
    assert after_three.min() > 0  # block 1 is global


def test_without_windows_every_block_is_global():
    encoder = make_encoder(num_windows=1).eval()
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 16:, 16:] += 1.0
    with torch.no_grad():
        assert (encoder(images)[:, 0] - encoder(changed)[:, 0]).abs().amax((0, 1)).min() > 0


def test_blocks_after_the_last_tap_are_frozen_and_skipped():
    encoder = make_encoder()
    assert not any(parameter.requires_grad for parameter in encoder.blocks[3].parameters())
    assert all(parameter.requires_grad for parameter in encoder.blocks[2].parameters())
    encoder.blocks[3].register_forward_hook(lambda *_: pytest.fail("the block after the last tap was run"))
    encoder(torch.randn(1, 3, 32, 32))


def test_an_indivisible_input_is_refused_with_the_divisor():
    with pytest.raises(InputError, match=r"40 x 32 .* 8 x 2 = 16"):
        make_encoder()(torch.randn(1, 3, 40, 32))


def test_taps_beyond_the_depth_are_refused():
    with pytest.raises(ValueError, match="out_feature_indexes"):
        make_encoder(taps=(2, 5))


def test_drop_path_draws_for_every_sample_and_keeps_the_mean():
    branch = torch.randn(4000, 3, 2)
    after = drop_path(branch, torch.tensor(0.8))
    dropped = after.flatten(1).abs().amax(1) == 0
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.03)
    torch.testing.assert_close(after[~dropped], branch[~dropped] / 0.8)
    assert drop_path(branch, None) is branch


def test_drop_path_draws_for_every_window_on_its_own():
    encoder = make_encoder(taps=(1, 2)).train()
    images = torch.randn(8, 3, 32, 32)
    tokens = encoder._embed(images, (4, 4))
    nothing = tokens.detach().clone()
    after = encoder.blocks[1](tokens, 4, torch.tensor(1e-9))  # a global block, of which all is dropped
    torch.testing.assert_close(after, nothing)
    per_window = (encoder.blocks[1](tokens, 4, torch.tensor(0.5)) - nothing).flatten(1).abs().amax(1)
    kept = (per_window > 0).view(8, 4).sum(1)
    assert ((kept > 0) & (kept < 4)).any()


def test_drop_path_rates_rise_from_the_first_to_the_last_block(tiny):
    model = tiny()
    encoder = model.backbone.encoder
    assert not any(encoder.drop_path_rates)
    model.update_drop_path(0.3)
    count = len(encoder.blocks)
    assert encoder.drop_path_rates == pytest.approx([0.3 * index / (count - 1) for index in range(count)])
    samples = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model.train()(samples)["pred_logits"], model(samples)["pred_logits"])
        model.eval()
        torch.testing.assert_close(model(samples)["pred_logits"], model(samples)["pred_logits"])


def test_fresh_values():
    encoder = make_encoder(width=192, num_heads=3)
    block = encoder.blocks[0]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, encoder.patch_embed.proj.weight, encoder.pos_embed):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attn.qkv.bias.abs().max() == block.mlp.fc2.bias.abs().max() == 0
    assert block.ls1.gamma.min() == block.ls2.gamma.max() == 1
    assert block.norm1.eps == encoder.norm.eps == 1e-6


def test_checkpointing_gives_the_same_gradients():
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for checkpoint_blocks in (False, True):
        encoder = make_encoder(checkpoint_blocks=checkpoint_blocks).train()
        encoder(images).square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.requires_grad})
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(math.isfinite(g.sum()) for g in gradients[0].values())


def test_checkpointing_keeps_far_fewer_activations():
    images, kept = torch.randn(2, 3, 32, 32), {}
    for checkpoint_blocks in (False, True):
        encoder = make_encoder(checkpoint_blocks=checkpoint_blocks).train()
        tensors: dict[int, int] = {}
        parameters = {p.data_ptr() for p in encoder.parameters()}

        def note(tensor, tensors=tensors, parameters=parameters):
            if tensor.data_ptr() not in parameters:
                tensors[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            encoder(images)
        kept[checkpoint_blocks] = sum(tensors.values())
    assert kept[True] < kept[False] / 3
