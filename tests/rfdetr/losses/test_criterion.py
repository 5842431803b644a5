"""SetCriterion against the goldens of the published tool: losses, gradients and matches of every layer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rfdetr.losses import HungarianMatcher, SetCriterion

GOLDENS = Path(__file__).parents[2] / "goldens" / "training"
CASES = json.loads((GOLDENS / "criterion.json").read_text())
ARRAYS = np.load(GOLDENS / "criterion.npz")
FLAGS = {
    "ia_bce_loss": "ia_bce",
    "use_varifocal_loss": "varifocal",
    "use_position_supervised_loss": "position_supervised",
}


def class_loss(case: dict) -> str:
    return next((name for flag, name in FLAGS.items() if case[flag]), "focal")


def case_leaves(case: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Inputs of all layers under their golden's name, as leaves that collect gradients."""
    names = [name for name in ARRAYS.files if name.startswith(case["key"]) and "_pred_" in name]
    names = [name for name in names if "_grad_" not in name]
    return {name: torch.from_numpy(ARRAYS[name]).to(dtype).requires_grad_() for name in names}


def case_outputs(case: dict, leaves: dict[str, torch.Tensor]) -> dict:
    layers = {}
    for layer in case["layers"]:
        outputs = layers[layer] = {}
        for name, leaf in leaves.items():
            if name.startswith(prefix := f"{case['key']}{layer}_"):
                field, _, part = name.removeprefix(prefix).partition(".")
                if part:
                    outputs.setdefault(field, {})[part] = leaf
                else:
                    outputs[field] = leaf
    outputs = layers["final"] | {"aux_outputs": [layers[f"aux{index}"] for index in range(case["n_aux"])]}
    return outputs | ({"enc_outputs": layers["enc"]} if case["enc"] else {})


def case_targets(case: dict, dtype: torch.dtype) -> list[dict]:
    fields = {}
    for name in ("boxes", "labels", "masks"):
        if f"{case['key']}tgt_{name}" in ARRAYS:
            values = torch.from_numpy(ARRAYS[f"{case['key']}tgt_{name}"])
            fields[name] = (values.to(dtype) if name == "boxes" else values).split(case["sizes"])
    return [dict(zip(fields, values)) for values in zip(*fields.values())]


def case_criterion(case: dict) -> SetCriterion:
    ratio = case["mask_point_sample_ratio"]
    criterion = SetCriterion(
        HungarianMatcher(focal_alpha=case["focal_alpha"], mask_point_sample_ratio=ratio),
        case["weight_dict"],
        losses=("labels", "boxes", "cardinality") + (("masks",) if case["seg"] else ()),
        class_loss=class_loss(case),
        focal_alpha=case["focal_alpha"],
        group_detr=case["group_detr"],
        sum_group_losses=case["sum_group_losses"],
        mask_point_sample_ratio=ratio,
    )
    return criterion.train(case["training"])


def run(case: dict, dtype: torch.dtype = torch.float32) -> tuple[dict, dict]:
    """Losses of a case and its leaves, with gradients of the weighted total."""
    criterion, leaves = case_criterion(case), case_leaves(case, dtype)
    torch.manual_seed(case["torch_seed_before_call"])
    losses = criterion(case_outputs(case, leaves), case_targets(case, dtype), num_boxes=case["num_boxes_override"])
    sum(criterion.weight_dict[name] * losses[name] for name in losses if name in criterion.weight_dict).backward()
    return losses, leaves


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_losses_and_gradients(case):
    losses, leaves = run(case)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(case["losses"], rel=1e-4, abs=1e-6)
    total = sum(weight * losses[name].item() for name, weight in case["weight_dict"].items())
    assert total == pytest.approx(case["total"], rel=1e-4)
    for name, leaf in leaves.items():
        golden = ARRAYS[name.replace("pred_", "grad_pred_")]
        np.testing.assert_allclose(leaf.grad, golden, atol=2e-5, rtol=2e-3, err_msg=name)


@pytest.mark.parametrize("case", [case for case in CASES if "losses_float64" in case], ids=lambda case: case["name"])
def test_golden_losses_in_float64(case):
    losses, _ = run(case, torch.float64)
    assert all(value.dtype == torch.float64 for value in losses.values())
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(case["losses_float64"], rel=1e-7)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_matches(case):
    """The layers are matched one by one here, in the order in which the criterion matches them."""
    outputs, targets = case_outputs(case, case_leaves(case, torch.float32)), case_targets(case, torch.float32)
    layers = [outputs, *outputs["aux_outputs"]] + ([outputs["enc_outputs"]] if case["enc"] else [])
    groups = case["group_detr"] if case["training"] else 1
    torch.manual_seed(case["torch_seed_before_call"])
    for name, layer in zip(case["layers"], layers):
        pairs = case_criterion(case).matcher(layer, targets, groups)
        for index, golden in enumerate(("rows", "cols")):
            found = torch.cat([pair[index] for pair in pairs])
            assert found.tolist() == ARRAYS[f"{case['key']}{name}_{golden}"].tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_number_of_boxes(case):
    count = case_criterion(case).count_boxes(case_targets(case, torch.float32))
    assert max(count, 1) == case["num_boxes"]
