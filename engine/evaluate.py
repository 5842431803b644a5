"""Run a model over a data set and feed a metric: the same function during training and in tools/eval.py."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.device import resolve_device, to_device
from engine.precision import autocast, resolve_precision
from engine.randomness import preserved_rng


class Metric(Protocol):
    """What `evaluate` feeds: results and targets of any number of images at a time, on the CPU."""

    def update(self, results: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None: ...

    def compute(self) -> dict[str, float]: ...

    def reset(self) -> None: ...


def evaluate(
    model: nn.Module,
    data_loader: Iterable,
    postprocess: Callable[[dict[str, Any], Tensor], list[dict[str, Tensor]]],
    metric: Metric,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
) -> dict[str, float]:
    """Return ``metric.compute()`` over all batches ``(samples, targets)`` of `data_loader`.

    Every target holds ``orig_size`` (h, w). The model is left in the mode it was in, the random generators as they were.
    With several ranks each passes its own share of the images, possibly none; gathering is the metric's business.
    """
    device = resolve_device(device)
    precision = resolve_precision(precision, device)
    was_training = model.training
    model.eval()
    metric.reset()
    try:
        with torch.no_grad(), preserved_rng(device):
            for samples, targets in data_loader:
                with autocast(device, precision):
                    outputs = model(to_device(samples, device))
                sizes = torch.stack([target["orig_size"] for target in targets]).to(device)
                for some_outputs, start, stop in _image_chunks(outputs, len(targets)):
                    results = postprocess(some_outputs, sizes[start:stop])
                    metric.update(to_device(results, torch.device("cpu")), targets[start:stop])
                    del results  # full-size masks: gone before the next image's are made
    finally:
        model.train(was_training)
    return metric.compute()


def _image_chunks(outputs: dict[str, Any], batch_size: int) -> Iterable[tuple[dict[str, Tensor], int, int]]:
    """Split a batch's predictions into images where masks are full-size pictures; a batch of those would not fit in memory."""
    predictions = {key: value for key, value in outputs.items() if key.startswith("pred_")}
    chunk = 1 if "pred_masks" in predictions else batch_size
    for start in range(0, batch_size, chunk):
        stop = start + chunk
        yield {key: value[start:stop] for key, value in predictions.items()}, start, stop
