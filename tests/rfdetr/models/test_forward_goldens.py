"""The whole detector against outputs of the published package, in float64 where the query ranking is stable."""

import numpy as np
import pytest
import torch

from rfdetr.nested_tensor import NestedTensor

TIGHT = {"atol": 2e-6, "rtol": 1e-6}
GROUPS = 13


def summary(x):
    return torch.stack((x.mean(), x.std(), x.abs().mean(), x.min(), x.max()))


def check(actual, expected, *, atol, rtol=1e-6, name):
    np.testing.assert_allclose(actual.double().numpy(), expected, atol=atol, rtol=rtol, err_msg=name)


def check_evaluation(outputs, prefix, arrays, tolerance):
    found = 0
    for key in ("pred_logits", "pred_boxes", "pred_masks"):
        views = {"": lambda x: x, "_head": None, "_mean": lambda x: x.flatten(2).mean(-1),
                 "_std": lambda x: x.flatten(2).std(-1)}
        for suffix, view in views.items():
            name = f"{prefix}{key}{suffix}"
            if name in arrays:
                actual = outputs[key][:, : arrays[name].shape[1]] if suffix == "_head" else view(outputs[key])
                check(actual, arrays[name], **tolerance, name=name)
                found += 1
    assert found >= 2, prefix


def check_groups(x, prefix, arrays):
    assert list(x.shape) == arrays[f"{prefix}_shape"].tolist()
    groups = x.unflatten(1, (GROUPS, -1))
    rows = arrays[f"{prefix}_rows"]
    check(groups[:, :, : rows.shape[2], : rows.shape[3]], rows, **TIGHT, name=f"{prefix}_rows")
    stats = torch.stack([summary(groups[:, group]) for group in range(GROUPS)])
    check(stats, arrays[f"{prefix}_group_stat"], atol=1e-5, name=f"{prefix}_group_stat")


def check_mask_factors(factors, prefix, arrays):
    assert set(factors) == {"spatial_features", "query_features", "bias"}
    queries, name = factors["query_features"], f"{prefix}mask_query_features"
    check_groups(queries[..., :32], name, arrays)  # the file holds the first channels, and a summary of all
    check(summary(queries), arrays[f"{name}_stat"], atol=1e-5, name=f"{name}_stat")
    spatial, name = factors["spatial_features"], f"{prefix}mask_spatial_features"
    assert list(spatial.shape) == arrays[f"{name}_shape"].tolist()
    check(spatial[:, :8, :6, :6], arrays[f"{name}_slice"], **TIGHT, name=f"{name}_slice")
    check(summary(spatial), arrays[f"{name}_stat"], atol=1e-5, name=f"{name}_stat")
    check(factors["bias"].detach(), arrays[f"{prefix}mask_bias"], **TIGHT, name=f"{prefix}mask_bias")


def forward_with_features(model, samples):
    """Return the outputs and what the encoder and the projector gave on the way."""
    features = {}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: features.update({name: output}))
        for name, module in (("encoder", model.backbone.encoder), ("projector", model.backbone.projector))
    ]
    with torch.no_grad():
        outputs = model(samples)
    for handle in handles:
        handle.remove()
    return outputs, features


CASES = ["nano_384", "nano_rect_320x448", "nano_fewtokens_256", "nano_padded_list", "seg_nano_312", "nano_q32_f32"]


@pytest.mark.parametrize("case", CASES)
def test_evaluation(case, golden_forward):
    golden = golden_forward(case)
    arrays = golden.arrays
    tolerance = {"atol": 1e-4} if case.endswith("f32") else TIGHT
    outputs, features = forward_with_features(golden.model.eval(), golden.samples)
    check_evaluation(outputs, "eval/", arrays, tolerance)
    check_evaluation(outputs["enc_outputs"], "eval/enc/", arrays, tolerance)
    assert len(outputs["aux_outputs"]) == arrays["eval/n_aux"]
    for index in {0, len(outputs["aux_outputs"]) - 1}:
        check_evaluation(outputs["aux_outputs"][index], f"eval/aux{index}/", arrays, tolerance)
    if "feat/encoder0_slice" in arrays:
        for part, maps in (("encoder", features["encoder"].unbind(1)), ("projector", features["projector"])):
            for index, feature_map in enumerate(maps):
                name = f"feat/{part}{index}"
                assert list(feature_map.shape) == arrays[f"{name}_shape"].tolist()
                check(feature_map[:, :8, :5, :7], arrays[f"{name}_slice"], **tolerance, name=name)
                check(summary(feature_map), arrays[f"{name}_stat"], **tolerance, name=name)
    if case == "nano_padded_list":
        assert list(golden.samples.shape) == arrays["padded_shape"].tolist()
        assert golden.samples.mask.sum((1, 2)).tolist() == arrays["mask_true_count"].tolist()


@pytest.mark.parametrize("case", ["nano_384", "nano_fewtokens_256", "seg_nano_312"])
def test_training(case, golden_forward):
    golden = golden_forward(case)
    arrays = golden.arrays
    with torch.no_grad():
        outputs = golden.model.train()(golden.train_samples)
    assert len(outputs["aux_outputs"]) == arrays["train/n_aux"]
    places = {"train/": outputs, "train/enc/": outputs["enc_outputs"]}
    places |= {f"train/aux{index}/": layer for index, layer in enumerate(outputs["aux_outputs"])}
    for prefix, place in places.items():
        check_groups(place["pred_logits"], f"{prefix}pred_logits", arrays)
        check_groups(place["pred_boxes"], f"{prefix}pred_boxes", arrays)
        if "pred_masks" in place:
            check_mask_factors(place["pred_masks"], prefix, arrays)


def test_a_mask_without_padding_changes_nothing(golden_forward):
    golden = golden_forward("nano_q32_f32")
    images = golden.samples[:1]
    masked = NestedTensor(images, torch.zeros(1, *images.shape[-2:], dtype=torch.bool))
    with torch.no_grad():
        plain, padded = golden.model.eval()(images), golden.model(masked)
    torch.testing.assert_close(plain["pred_boxes"], padded["pred_boxes"], atol=1e-5, rtol=1e-5)
