"""The confidence sweep against the goldens, and on matches made by hand."""

import numpy as np
import pytest
from eval_cases import CASES, golden_arrays, golden_images

from rfdetr.evaluation import ClassMatches, CocoMetrics, f1_sweep

WITHOUT_CROWD = [case for case in CASES if not case["crowd"]]  # with one, the golden's overlap is not COCO's: decision 13


def class_matches(scores, matched, ignored=None, num_targets=1):
    ignored = np.zeros(len(scores), dtype=bool) if ignored is None else np.array(ignored)
    return ClassMatches(np.array(scores, dtype=np.float64), np.array(matched, dtype=bool), ignored, num_targets)


@pytest.mark.parametrize("case", WITHOUT_CROWD, ids=lambda case: case["name"])
def test_sweep_of_the_goldens(case):
    metric = CocoMetrics(iou_types=("bbox", "segm") if case.get("seg") else ("bbox",), max_dets=case["maxdet"])
    metric.update(*golden_images(case))
    sweep, best = f1_sweep(metric.matches()), case["best"]
    assert {key: sweep[key] for key in ("threshold", "F1", "precision", "recall")} == pytest.approx(
        {key: best[key] for key in ("threshold", "F1", "precision", "recall")}, abs=1e-12
    )
    assert np.abs(sweep["curve"] - golden_arrays()[f"{case['key']}sweep_macro"]).max() < 1e-12
    for row, label in enumerate(case["class_ids"]):
        for name in ("F1", "precision", "recall"):
            assert sweep["per_class"][label][name] == pytest.approx(best[f"per_class_{name.lower()}"][row], abs=1e-12)


def test_thresholds_are_inclusive_and_the_lowest_best_wins():
    sweep = f1_sweep({0: class_matches([0.5, 0.3], [True, False])})
    assert sweep["threshold"] == pytest.approx(0.31) and sweep["F1"] == 1.0
    assert sweep["curve"][50, 0] == 1.0 and sweep["curve"][51, 0] == 0.0


def test_ignored_and_nan_count_nowhere():
    nan = float("nan")
    sweep = f1_sweep(
        {0: class_matches([0.9, 0.8, nan, nan], [True, False, True, False], [False, True, False, False], num_targets=2)}
    )
    assert (sweep["precision"], sweep["recall"]) == (1.0, 0.5)


def test_classes_without_targets_are_not_in_the_mean():
    sweep = f1_sweep({0: class_matches([0.9], [True]), 7: class_matches([0.9], [False], num_targets=0)})
    assert sweep["F1"] == 1.0 and sweep["per_class"][7] == {"F1": 0.0, "precision": 0.0, "recall": 0.0}


def test_a_class_that_is_never_found_lowers_the_mean():
    assert f1_sweep({0: class_matches([0.9], [True]), 1: class_matches([], [], num_targets=3)})["F1"] == 0.5


def test_no_classes():
    sweep = f1_sweep({})
    assert (sweep["threshold"], sweep["F1"], sweep["precision"], sweep["recall"]) == (0.0, 0.0, 0.0, 0.0)
    assert sweep["per_class"] == {} and sweep["curve"].shape == (101, 3) and not sweep["curve"].any()
