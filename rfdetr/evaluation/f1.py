"""Sweep the confidence threshold and report the one with the best F1, averaged over classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfdetr.evaluation.matching import ClassMatches

THRESHOLDS = np.linspace(0.0, 1.0, 101)


def f1_sweep(matches: dict[int, ClassMatches]) -> dict[str, Any]:
    """Find the confidence threshold of the highest macro F1 at IoU 0.5.

    Means go over the classes that have targets, so false alarms of the others cost nothing; ignored detections count nowhere.

    Args:
        matches: what `CocoMetrics.matches` returns.

    Returns:
        ``threshold`` (the lowest of equally good ones), ``F1``, ``precision``, ``recall`` there; ``per_class``, label -> the
        same three; ``curve`` (101, 3), macro F1, precision and recall at 0.00, 0.01 … 1.00. Zeros where there are no classes.
    """
    curves = {label: _class_curve(found) for label, found in matches.items()}
    counted = [curve for label, curve in curves.items() if matches[label].num_targets > 0]
    macro = np.mean(counted, axis=0) if counted else np.zeros((len(THRESHOLDS), 3))
    best = int(np.argmax(macro[:, 0]))
    return {
        "threshold": float(THRESHOLDS[best]),
        **_named(macro[best]),
        "per_class": {label: _named(curve[best]) for label, curve in curves.items()},
        "curve": macro,
    }


def _class_curve(found: ClassMatches) -> np.ndarray:
    """Return F1, precision and recall of one class at every threshold, (101, 3)."""
    num_found = _count_from(found.scores[~found.ignored])
    num_right = _count_from(found.scores[found.matched & ~found.ignored])
    precision = _ratio(num_right, num_found)
    recall = _ratio(num_right, np.full(len(THRESHOLDS), found.num_targets))
    f1 = _ratio(2 * precision * recall, precision + recall)
    return np.stack([f1, precision, recall], axis=1)


def _count_from(scores: np.ndarray) -> np.ndarray:
    """Count the scores at or above each threshold; NaN is never above one."""
    scores = np.sort(np.asarray(scores, dtype=np.float64))  # NaNs go last
    return np.count_nonzero(~np.isnan(scores)) - np.searchsorted(scores, THRESHOLDS, side="left")


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(len(THRESHOLDS)), where=denominator > 0)


def _named(row: np.ndarray) -> dict[str, float]:
    return dict(zip(("F1", "precision", "recall"), row.tolist()))
