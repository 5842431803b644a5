"""HungarianMatcher against the goldens of the published tool, and its behaviour on bad and crowded input."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from rfdetr.losses import HungarianMatcher
from rfdetr.losses import matcher as matcher_module

GOLDENS = Path(__file__).parents[2] / "goldens" / "training"
CASES = json.loads((GOLDENS / "matcher.json").read_text())
ARRAYS = np.load(GOLDENS / "matcher.npz")
TIES_ALLOWED = ("degenerate_boxes", "dup_labels")  # several assignments cost the same


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(ARRAYS[name])


def case_inputs(case: dict) -> tuple[dict, list[dict]]:
    key, sizes = case["key"], case["sizes"]
    outputs = {name: tensor(key + name) for name in ("pred_logits", "pred_boxes")}
    if key + "pred_masks" in ARRAYS:
        outputs["pred_masks"] = tensor(key + "pred_masks")
    elif key + "bias" in ARRAYS:
        outputs["pred_masks"] = {name: tensor(key + name) for name in ("spatial_features", "query_features", "bias")}
    fields = {"boxes": tensor(key + "tgt_boxes").split(sizes), "labels": tensor(key + "tgt_labels").split(sizes)}
    if key + "tgt_masks" in ARRAYS:
        fields["masks"] = tensor(key + "tgt_masks").split(sizes)
    return outputs, [dict(zip(fields, values)) for values in zip(*fields.values())]


def case_matcher(case: dict) -> HungarianMatcher:
    optional = ("cost_mask_ce", "cost_mask_dice", "mask_point_sample_ratio")
    return HungarianMatcher(
        case["cost_class"], case["cost_bbox"], case["cost_giou"], focal_alpha=case["focal_alpha"],
        **{name: case[name] for name in optional if name in case},
    )


@pytest.fixture
def solved(monkeypatch) -> list[np.ndarray]:
    """Every cost matrix (objects, queries) that is given to the solver."""
    matrices = []
    solver = matcher_module.linear_sum_assignment

    def solve(costs):
        matrices.append(costs)
        return solver(costs)

    monkeypatch.setattr(matcher_module, "linear_sum_assignment", solve)
    return matrices


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden(case, solved):
    outputs, targets = case_inputs(case)
    torch.manual_seed(case.get("torch_seed_before_call", 0))
    pairs = case_matcher(case)(outputs, targets, case["group_detr"])

    golden_cost = ARRAYS[case["key"] + "cost"]
    if golden_cost.size:
        groups = case["group_detr"]
        per_image = [np.concatenate(solved[i : i + groups], axis=1) for i in range(0, len(solved), groups)]
        np.testing.assert_allclose(np.concatenate(per_image).T, golden_cost, atol=2e-4, rtol=1e-6)

    assert [len(rows) for rows, _ in pairs] == case["n_matches"]
    assert all(rows.dtype == columns.dtype == torch.int64 for rows, columns in pairs)
    if case["name"] not in TIES_ALLOWED:
        assert torch.cat([rows for rows, _ in pairs]).tolist() == ARRAYS[case["key"] + "rows"].tolist()
        assert torch.cat([columns for _, columns in pairs]).tolist() == ARRAYS[case["key"] + "cols"].tolist()
    offsets = np.cumsum([0, *case["sizes"]])
    for (rows, columns), offset, cost in zip(pairs, offsets, case.get("assigned_cost_per_image", [])):
        assert golden_cost[rows, columns + offset].sum() == pytest.approx(cost, abs=2e-4)


def test_chunks_change_nothing(monkeypatch):
    case = next(case for case in CASES if case["name"] == "mask_dict")
    outputs, targets = case_inputs(case)
    results = []
    for limit in (2**22, 2 * case["Q"], 1):  # everything at once, two objects at a time, one object at a time
        monkeypatch.setitem(matcher_module.MAX_ELEMENTS, "cpu", limit)
        torch.manual_seed(0)
        results.append(case_matcher(case)(outputs, targets, case["group_detr"]))
    for pairs in results[1:]:
        torch.testing.assert_close(pairs, results[0], rtol=0, atol=0)


def test_threads_change_nothing(monkeypatch):
    case = next(case for case in CASES if case["name"] == "groups13")
    outputs, targets = case_inputs(case)
    alone = case_matcher(case)(outputs, targets, case["group_detr"])
    monkeypatch.setattr(matcher_module, "SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.testing.assert_close(case_matcher(case)(outputs, targets, case["group_detr"]), alone, rtol=0, atol=0)


def test_matching_does_not_depend_on_the_other_images():
    case = next(case for case in CASES if case["name"] == "groups13")
    outputs, targets = case_inputs(case)
    together = case_matcher(case)(outputs, targets, case["group_detr"])
    for image, target in enumerate(targets):
        one = {name: values[image : image + 1] for name, values in outputs.items()}
        (alone,) = case_matcher(case)(one, [target], case["group_detr"])
        torch.testing.assert_close(together[image], alone, rtol=0, atol=0)


def test_nothing_finite_still_matches_every_object_and_warns_once(caplog):
    outputs = {"pred_logits": torch.full((2, 6, 3), torch.nan), "pred_boxes": torch.full((2, 6, 4), torch.nan)}
    targets = [{"boxes": torch.rand(2, 4), "labels": torch.tensor([0, 2])} for _ in range(2)]
    matcher = HungarianMatcher()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            pairs = matcher(outputs, targets, group_detr=2)
    assert [len(rows) for rows, _ in pairs] == [4, 4]
    assert len(caplog.records) == 1


def test_sixteen_bit_outputs_are_matched_in_float32(solved):
    outputs, targets = case_inputs(CASES[0])
    HungarianMatcher()({name: values.bfloat16() for name, values in outputs.items()}, targets)
    assert solved[0].dtype == np.float32


def test_queries_must_split_into_groups():
    outputs, targets = case_inputs(CASES[0])
    with pytest.raises(ValueError, match="24 queries .* group_detr=5"):
        HungarianMatcher()(outputs, targets, group_detr=5)


def test_labels_must_fit_the_logits():
    outputs, targets = case_inputs(CASES[0])
    targets[0]["labels"] = targets[0]["labels"] + 100
    with pytest.raises(ValueError, match="0 to 5"):
        HungarianMatcher()(outputs, targets)
