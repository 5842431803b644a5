"""The detector as its users see it: shapes, precisions, padding, nothing that waits for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rfdetr.build import build_model, build_postprocess
from rfdetr.config import VARIANTS
from rfdetr.nested_tensor import NestedTensor, pad_images

WAITING_OPS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class NoWaiting(TorchDispatchMode):
    """Fails on an operation that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(WAITING_OPS), f"{name} waits for the device"
        if name.startswith("index"):
            indices = [x for x in args[1] if x is not None] if isinstance(args[1], (list, tuple)) else []
            assert all(x.dtype is not torch.bool for x in indices), "indexing with a mask waits for the device"
        return func(*args, **(kwargs or {}))


def total(outputs):
    """A number that every output takes part in."""
    places = [outputs, outputs["enc_outputs"], *outputs["aux_outputs"]]
    result = sum(place["pred_logits"].sum() + place["pred_boxes"].sum() for place in places)
    for place in places:
        if "pred_masks" in place:
            result = result + sum(factor.sum() for factor in place["pred_masks"].values())
    return result


@pytest.fixture
def padded():
    return pad_images([torch.randn(3, 64, 40), torch.randn(3, 32, 64)])


@pytest.mark.parametrize("training", [False, True])
def test_output_shapes(training, tiny):
    model = tiny(segmentation_head=True, dec_layers=3).train(training)
    outputs = model(torch.randn(2, 3, 64, 128))
    queries = 21 if training else 7
    assert len(outputs["aux_outputs"]) == 2
    for place in (outputs, outputs["enc_outputs"], *outputs["aux_outputs"]):
        assert place["pred_logits"].shape == (2, queries, 5)
        assert place["pred_boxes"].shape == (2, queries, 4)
        masks = place["pred_masks"]
        if training:
            assert masks["spatial_features"].shape == (2, 32, 16, 32)
            assert masks["query_features"].shape == (2, queries, 32)
            assert masks["bias"].shape == (1,)
        else:
            assert masks.shape == (2, queries, 16, 32)


def test_the_mask_of_evaluation_is_the_product_of_the_factors_of_training(tiny):
    model = tiny(segmentation_head=True, group_detr=1)
    samples = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        dense, factors = model.eval()(samples)["pred_masks"], model.train()(samples)["pred_masks"]
    product = torch.einsum("bchw,bnc->bnhw", factors["spatial_features"], factors["query_features"]) + factors["bias"]
    torch.testing.assert_close(dense, product, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [("P4",), ("P3", "P5")])
def test_every_parameter_learns_or_is_frozen(scale, tiny, padded):
    model = tiny(segmentation_head=True, projector_scale=scale).train()
    for parameter in model.parameters():  # zeros at the start would stop gradients
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    total(model(padded)).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle
    frozen = {name.split(".")[3] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"3", "4", "5"}  # the ViT blocks after the last tap


@pytest.mark.parametrize("training", [False, True])
def test_nothing_waits_for_the_device(training, tiny, padded):
    model = tiny(segmentation_head=True).train(training)
    model.update_drop_path(0.2)
    with NoWaiting():
        loss = total(model(padded)) if training else model(padded)["pred_boxes"].sum()
        loss.backward()


def test_padding_does_not_move_detections(tiny):
    """Without what looks beyond a patch in the backbone, an image gives the same alone and padded to twice its size."""
    model = tiny().double().eval()
    torch.nn.init.zeros_(model.backbone.encoder.pos_embed)
    torch.nn.init.zeros_(model.transformer.decoder.ref_point_head.layers[-1].weight)  # it sees places on the padded map
    torch.nn.init.normal_(model.bbox_embed.layers[-1].weight, std=0.1)
    for block in model.backbone.encoder.blocks:
        torch.nn.init.zeros_(block.ls1.gamma)
    for bias in (layer.bias for layer in model.transformer.enc_output):  # lets no zeroed token win the ranking
        torch.nn.init.zeros_(bias)
    with torch.no_grad():
        for module in model.backbone.projector.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                centre = module.weight[..., 1, 1].clone()
                module.weight.zero_()[..., 1, 1] = centre
        image = torch.randn(3, 96, 64).double()
        alone = model(image[None])
        together = model(pad_images([image, torch.randn(3, 192, 160).double()]))
    for place in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(together[place][:1], alone[place])
        torch.testing.assert_close(together["enc_outputs"][place][:1], alone["enc_outputs"][place])


def test_a_promise_of_no_padding_gives_the_same_numbers(tiny):
    model = tiny().eval()
    images, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        looked_at = model(NestedTensor(images, mask))
        promised = model(NestedTensor(images, mask, has_padding=False))
    torch.testing.assert_close(looked_at["pred_boxes"], promised["pred_boxes"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_and_boxes_keep_full_precision_under_autocast(dtype, tiny):
    model = tiny(segmentation_head=True).train()
    samples = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(samples)
    for place in (outputs, outputs["enc_outputs"], *outputs["aux_outputs"]):
        assert place["pred_logits"].dtype == place["pred_boxes"].dtype == torch.float32
    total(outputs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_converted_model_runs(dtype, tiny, padded):
    model = tiny(segmentation_head=True).to(dtype).eval()
    with torch.no_grad():
        assert model(padded.to("cpu", dtype=dtype))["pred_boxes"].isfinite().all()


def test_update_dropout(tiny):
    model = tiny().train()
    samples = torch.randn(1, 3, 64, 64)
    model.update_dropout(0.5)
    modules = [m for m in model.transformer.modules() if isinstance(m, torch.nn.Dropout)]
    assert modules and all(m.p == 0.5 for m in modules)
    with torch.no_grad():
        assert not torch.equal(model(samples)["pred_logits"], model(samples)["pred_logits"])
        model.update_dropout(0.0)
        torch.testing.assert_close(model(samples)["pred_logits"], model(samples)["pred_logits"])


@pytest.mark.parametrize("variant", ["pico", "pico_seg"])
def test_the_cpu_variants_detect(variant):
    config = VARIANTS[variant]
    model, postprocess = build_model(config).eval(), build_postprocess(config)
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, *config.input_size))
    result = postprocess(outputs, torch.tensor([[60, 90]]))[0]
    assert result["scores"].shape == (100,) and result["boxes"].shape == (100, 4)
    assert ("masks" in result) == config.segmentation_head
    assert sum(p.numel() for p in model.parameters()) < 5_000_000


def test_gradient_checkpointing_changes_no_output():
    results = []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_model(VARIANTS["pico"], gradient_checkpointing=gradient_checkpointing).train()
        torch.manual_seed(1)
        results.append(model(torch.randn(1, 3, 64, 64))["pred_logits"])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiles_into_one_graph(training, tiny, padded):
    model = tiny(segmentation_head=True).train(training)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(padded)["pred_boxes"], model(padded)["pred_boxes"])
