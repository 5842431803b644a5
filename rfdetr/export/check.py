"""Whether an exported file finds what the model in PyTorch finds, on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rfdetr.detections import Prediction
from rfdetr.detector import Detector

MIN_SCORE = 0.05  # of detections that are compared
AT_LEAST = 10  # of each picture, whatever they score
OTHER_CLASS, FAR = 1e9, 1e6  # costs


@dataclass(frozen=True)
class Tolerance:
    """By how much detections may differ, and which share of them may differ by more."""

    box: float = 0.1  # pixels, of each side
    score: float = 1e-3
    mask: float = 1e-3  # share of the picture's pixels
    others: float = 0.0

    def __str__(self) -> str:
        rest = f", of all but {self.others:.0%}" if self.others else ""
        return f"boxes {self.box:g} px, scores {self.score:g}, masks {self.mask:.2%} of the pixels{rest}"


# Half precision rounds to 11 bits (0.05 %), and that some hundred operations deep. It also swaps tokens whose scores are closer
# than that, and a query with another token finds something else. Of two small models after a short training no detection, and
# 1.5 % of them, differed by more than this, and half of them by less than 0.01 pixels; random weights differ by far more.
TOLERANCES = {"fp32": Tolerance(), "fp16": Tolerance(box=1.0, score=0.01, mask=5e-3, others=0.05)}


@dataclass(frozen=True)
class Parity:
    """The differences of matched detections, (n,) each."""

    tolerance: Tolerance
    images: int
    box: np.ndarray  # pixels
    score: np.ndarray
    mask: np.ndarray | None  # share of the picture's pixels

    @property
    def differing(self) -> int:
        """Detections that differ by more than the tolerance, or that the file did not find at all."""
        return int(np.any([~(values <= limit) for values, limit in self._limited()], axis=0).sum())

    @property
    def is_equal(self) -> bool:
        return self.differing <= self.tolerance.others * len(self.box)

    def _limited(self) -> list[tuple[np.ndarray, float]]:
        return [(values, getattr(self.tolerance, field.name)) for field in fields(self)
                if isinstance(values := getattr(self, field.name), np.ndarray)]

    def __str__(self) -> str:
        units = {"box": "boxes {:.3g} px", "score": "scores {:.2g}", "mask": "masks {:.2g} of the pixels"}
        rows = []
        for name, value in (("half of them within", 50), ("all but 5 % within", 95), ("all within", 100)):
            shown = [text.format(np.percentile(values, value, method="higher")) for key, text in units.items()
                     if (values := getattr(self, key)) is not None]
            rows.append(f"  {name}: {', '.join(shown)}")
        head = (f"{len(self.box)} detections on {self.images} pictures compared (score above {MIN_SCORE:g}, or the {AT_LEAST} "
                f"best of a picture); allowed: {self.tolerance}")
        return "\n".join([head, *rows, f"  beyond that: {self.differing}"])


def compare(expected: Detector, found: Detector, pictures: Sequence[Tensor], tolerance: Tolerance) -> Parity:
    """Match what two detectors find on pictures (3, h, w) uint8, and measure the differences."""
    rows = []
    for picture in pictures:
        rows += _differences(expected.predict(picture, 0.0)[0], found.predict(picture, 0.0)[0], tolerance)
    columns = [None if None in column else np.array(column) for column in zip(*rows)]
    return Parity(tolerance, len(pictures), *columns)


def _differences(expected: Prediction, found: Prediction, tolerance: Tolerance) -> list[tuple[float, float, float | None]]:
    """Return the differences (box, score, mask) of what was expected to what was found; infinite where that is missing."""
    count = min(len(expected), max(AT_LEAST, int((expected.scores > MIN_SCORE).sum())))
    boxes = np.abs(expected.boxes[:count, None] - found.boxes).max(-1)  # (n, m)
    scores = np.abs(expected.scores[:count, None] - found.scores)
    cost = np.nan_to_num(np.maximum(boxes / tolerance.box, scores / tolerance.score), nan=FAR).clip(max=FAR)
    cost[expected.labels[:count, None] != found.labels] = OTHER_CLASS
    pairs = [(ours, theirs) for ours, theirs in zip(*linear_sum_assignment(cost)) if cost[ours, theirs] < OTHER_CLASS]
    masks = [None if expected.masks is None else float((expected.masks[ours] != found.masks[theirs]).mean())
             for ours, theirs in pairs]
    missed = (np.inf, np.inf, None if expected.masks is None else np.inf)
    rows = [(float(boxes[pair]), float(scores[pair]), mask) for pair, mask in zip(pairs, masks)]
    return rows + [missed] * (count - len(rows))
