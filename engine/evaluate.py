"""Run models over a data set and feed their metrics: the same function during training and in tools/eval.py."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.device import resolve_device, to_device
from engine.precision import autocast, resolve_precision
from engine.randomness import preserved_rng
from engine.watch import doing


class Metric(Protocol):
    """What `evaluate` feeds: results and targets of any number of images at a time, on the CPU."""

    def update(self, results: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None: ...

    def compute(self) -> dict[str, float]: ...

    def reset(self) -> None: ...


class EvalModels(dict[str, nn.Module]):
    """What is evaluated, by name. An entry is never replaced in silence: delete it first."""

    def __setitem__(self, name: str, model: nn.Module) -> None:
        if name in self and self[name] is not model:
            raise ValueError(f"eval_models: {name!r} is there already; take another name, or delete that entry first")
        super().__setitem__(name, model)

    def update(self, *others: Any, **models: nn.Module) -> None:
        for name, model in dict(*others, **models).items():
            self[name] = model

    def __ior__(self, other: Any) -> "EvalModels":  # type: ignore[override, misc]  # narrower than dict's
        self.update(other)
        return self


def evaluate(
    models: Mapping[str, nn.Module],
    data_loader: Iterable,
    postprocess: Callable[[dict[str, Any], Tensor], list[dict[str, Tensor]]],
    metrics: Mapping[str, Metric],
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    after_batch: Callable[[str, Any, dict[str, Any], list[dict[str, Tensor]]], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Return, under the names of `models`, ``metrics[name].compute()`` over all batches ``(samples, targets)`` of `data_loader`.

    A batch is loaded and sent to the device once for all models. Every target holds ``orig_size`` (h, w). The models are left in
    the modes they were in, the random generators as they were.
    With several ranks each passes its own share of the images, possibly none; gathering is the metric's business.

    Args:
        after_batch: called as ``after_batch(name, (samples, targets), outputs, results)`` when the metric has had the results.
            Samples and outputs are on the device, targets as the loader gave them, results on the CPU. Where the outputs have
            ``pred_masks``, results are made image by image to save memory: it is then called once an image, with that image's
            part of all four, for which ``samples[0:1]`` has to work.
    """
    device = resolve_device(device)
    precision = resolve_precision(precision, device)
    with _evaluating(models.values()), torch.no_grad(), preserved_rng(device):
        for name in models:
            metrics[name].reset()
        doing("evaluating")
        for samples, targets in data_loader:
            doing("evaluating")
            samples = to_device(samples, device)
            sizes = torch.stack([target["orig_size"] for target in targets]).to(device)
            for name, model in models.items():
                with autocast(device, precision):
                    outputs = model(samples)
                for images in _image_parts(outputs, len(targets)):
                    some_outputs = _part(outputs, images, len(targets))
                    results = to_device(postprocess(some_outputs, sizes[images]), torch.device("cpu"))
                    metrics[name].update(results, targets[images])
                    if after_batch:
                        some_samples = samples if images == slice(None) else samples[images]
                        after_batch(name, (some_samples, targets[images]), some_outputs, results)
                    del results  # full-size masks: gone before the next image's are made
    return {name: metrics[name].compute() for name in models}


@contextmanager
def _evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Put models into evaluation mode, and afterwards back into the one that each was in."""
    modes = [(model, model.training) for model in models]
    try:
        for model, _ in modes:
            model.eval()
        yield
    finally:
        for model, was_training in modes:
            model.train(was_training)


def _image_parts(outputs: dict[str, Any], batch_size: int) -> list[slice]:
    """Return one image at a time where masks become full-size pictures, a batch of which would not fit in memory; else all."""
    if "pred_masks" not in outputs or batch_size == 1:
        return [slice(None)]
    return [slice(index, index + 1) for index in range(batch_size)]


def _part(outputs: Any, images: slice, batch_size: int) -> Any:
    """Return what belongs to some images of a batch, as views; what is not made up of images stays as it is."""
    if isinstance(outputs, dict):
        return {key: _part(value, images, batch_size) for key, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_part(value, images, batch_size) for value in outputs)
    return outputs[images] if isinstance(outputs, Tensor) and outputs.shape[:1] == (batch_size,) else outputs
