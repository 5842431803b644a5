"""Whether an exported file finds what the model in PyTorch finds, on pictures.

Where two tokens of a picture score the same to rounding, rounding decides which becomes which query, and several detections
follow: PyTorch itself finds something else when its input changes by a millionth. A file that finds on such a picture what
PyTorch finds after such a change is right.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from rfdetr.detections import Prediction
from rfdetr.detector import Detector
from rfdetr.nested_tensor import NestedTensor

MIN_SCORE = 0.05  # of detections that are compared
AT_LEAST = 10  # of each picture, whatever they score
OTHER_CLASS, FAR = 1e9, 1e6  # costs
NOISE, TRIES = 1e-6, 12  # of normalised pixels: 0.00006 grey levels of 256


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

    def count_beyond(self, rows: Sequence[tuple[float, float, float | None]]) -> int:
        """Return how many differences (box, score, mask) are larger."""
        return sum(not (box <= self.box and score <= self.score and (mask is None or mask <= self.mask))
                   for box, score, mask in rows)


# Half precision rounds to 11 bits (0.05 %), and that some hundred operations deep. It also swaps tokens whose scores are closer
# than that, and a query with another token finds something else. Of two small models after a short training no detection, and
# 1.5 % of them, differed by more than this, and half of them by less than 0.01 pixels; random weights differ by far more.
TOLERANCES = {"fp32": Tolerance(), "fp16": Tolerance(box=1.0, score=0.01, mask=5e-3, others=0.05)}


@dataclass(frozen=True)
class Parity:
    """The differences of matched detections, (n,) each; infinite where the file did not find one at all."""

    tolerance: Tolerance
    images: int
    ties: int  # images that are equal only after the change that is described above
    differing: int  # detections beyond the tolerance
    box: np.ndarray  # pixels
    score: np.ndarray
    mask: np.ndarray | None  # share of the picture's pixels

    @property
    def is_equal(self) -> bool:
        return self.differing <= self.tolerance.others * len(self.box)

    def __str__(self) -> str:
        units = {"box": "boxes {:.3g} px", "score": "scores {:.2g}", "mask": "masks {:.2g} of the pixels"}
        rows = []
        for name, value in (("half of them within", 50), ("all but 5 % within", 95), ("all within", 100)):
            shown = [text.format(np.percentile(values, value, method="higher")) for key, text in units.items()
                     if (values := getattr(self, key)) is not None]
            rows.append(f"  {name}: {', '.join(shown)}")
        if self.ties:
            rows.append(f"  {self.ties} of the pictures: as PyTorch has it after a change of {NOISE:g} of the input, which swaps "
                        "queries")
        head = (f"{len(self.box)} detections on {self.images} pictures compared (score above {MIN_SCORE:g}, or the {AT_LEAST} "
                f"best of a picture); allowed: {self.tolerance}")
        return "\n".join([head, *rows, f"  beyond that: {self.differing}"])


def compare(expected: Detector, found: Detector, pictures: Sequence[Tensor], tolerance: Tolerance) -> Parity:
    """Match what two detectors find on pictures (3, h, w) uint8, and measure the differences.

    Args:
        expected: with a model in PyTorch.
    """
    rows, ties = [], 0
    for picture in pictures:
        theirs = found.predict(picture, 0.0)[0]
        differences = _differences(expected.predict(picture, 0.0)[0], theirs, tolerance)
        if tolerance.count_beyond(differences) and not tolerance.others:
            for seed in range(TRIES):
                with _noise_in_input(expected.model, seed):
                    others = _differences(expected.predict(picture, 0.0)[0], theirs, tolerance)
                if not tolerance.count_beyond(others):
                    differences, ties = others, ties + 1
                    break
        rows += differences
    columns = [None if None in column else np.array(column) for column in zip(*rows)]
    return Parity(tolerance, len(pictures), ties, tolerance.count_beyond(rows), *columns)


@contextmanager
def _noise_in_input(model: nn.Module, seed: int) -> Iterator[None]:
    generator = torch.Generator().manual_seed(seed)

    def add(module: nn.Module, args: tuple[Any, ...]) -> tuple[NestedTensor]:
        images = args[0].tensors
        noisy = images + NOISE * torch.randn(images.shape, generator=generator)
        return (NestedTensor(noisy, args[0].mask, has_padding=args[0].has_padding),)

    handle = model.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


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
