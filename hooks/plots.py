"""Pictures of a run: what the model is trained on, what it finds, and plots of the metrics."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.distributed import is_main_process
from engine.hook import Hook
from engine.randomness import preserved_rng

if TYPE_CHECKING:
    from engine.trainer import Trainer
    from hooks.coco_eval import COCOEvalHook

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD = 0.5  # for scores, where no evaluation has found a better one


class PlotsHook(Hook):
    """Draw pictures into the output folder; one that fails is reported once, and training goes on.

    ``train_batch.png`` at the start, ``val_predictions.png`` now and then and at the end, ``pr_curve.png``,
    ``confusion_matrix.png`` and ``curves.png`` at the end. The better one of the regular and the ema model is shown.

    Args:
        pictures: draws; `rfdetr.plots.RunPictures`, or anything with its methods.
        val_dataset: gives (image, target) for an index; None: no predictions are drawn.
        postprocess: turns outputs and sizes into detections.
        coco_eval: its ``last_metrics`` give precision over recall, and the confusion matrix; None: neither is drawn.
        num_images: validation images shown.
        num_samples: training samples shown.
        predictions_every: draw predictions at every so many evaluations; 0: at the end only.
        score_threshold: of the detections shown; None: the one with the best F1 in the last evaluation.
    """

    writes = ("train_batch.png", "val_predictions.png", "pr_curve.png", "confusion_matrix.png", "curves.png")

    def __init__(
        self,
        pictures: Any,
        val_dataset: Any,
        postprocess: Callable[[dict[str, Any], Tensor], list[dict[str, Tensor]]],
        *,
        coco_eval: COCOEvalHook | None = None,
        num_images: int = 9,
        num_samples: int = 16,
        predictions_every: int = 5,
        score_threshold: float | None = None,
    ) -> None:
        self.pictures = pictures
        self.val_dataset = val_dataset
        self.postprocess = postprocess
        self.coco_eval = coco_eval
        self.num_images, self.num_samples = num_images, num_samples
        self.predictions_every = predictions_every
        self.score_threshold = score_threshold
        self.num_evaluations = 0
        self.failed: set[str] = set()  # pictures that are not tried again

    def before_train(self, trainer: Trainer) -> None:
        self._draw("train_batch.png", self._draw_samples, trainer)

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.num_evaluations += 1
        if self.predictions_every and self.num_evaluations % self.predictions_every == 0:
            self._draw("val_predictions.png", self._draw_predictions, trainer)

    def after_train(self, trainer: Trainer) -> None:
        self._draw("val_predictions.png", self._draw_predictions, trainer)
        self._draw("pr_curve.png", self._plot_pr_curves, trainer)
        self._draw("confusion_matrix.png", self._plot_confusion, trainer)
        self._draw("curves.png", self._plot_curves, trainer)

    def _draw(self, name: str, draw: Callable[[Trainer, Path], None], trainer: Trainer) -> None:
        if not is_main_process() or name in self.failed:
            return
        try:
            with preserved_rng(trainer.device):
                draw(trainer, trainer.output_dir / name)
        except Exception as error:  # whatever is wrong with a picture, the training is worth more
            self.failed.add(name)
            logger.warning("%s could not be drawn (%s: %s); training goes on without it", name, type(error).__name__, error)
            logger.debug("where %s failed", name, exc_info=True)

    def _draw_samples(self, trainer: Trainer, path: Path) -> None:
        """Ask the data set itself for the first samples of the epoch; the loader is not started and does not move."""
        loader: Any = trainer.train_loader
        sampler = copy.copy(loader.batch_sampler)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(trainer.epoch)
        samples: list[Any] = []
        for keys in sampler:
            samples += [loader.dataset[key] for key in keys[: self.num_samples - len(samples)]]
            if len(samples) == self.num_samples:
                break
        self.pictures.samples(samples, path)

    def _draw_predictions(self, trainer: Trainer, path: Path) -> None:
        if not self.val_dataset:
            return
        name = _better_model(trainer)
        num_images = min(self.num_images, len(self.val_dataset))
        samples = [self.val_dataset[(2 * place + 1) * len(self.val_dataset) // (2 * num_images)] for place in range(num_images)]
        results = self._predict(trainer.eval_models[name], samples, trainer.device)
        threshold = self._threshold(trainer, name)
        self.pictures.predictions(samples, results, path, score_threshold=threshold)

    @torch.no_grad()
    def _predict(self, model: nn.Module, samples: list[tuple[Tensor, dict]], device: torch.device) -> list[dict[str, Tensor]]:
        """Detect in one image after the other, in pixels of the pictures to be drawn."""
        was_training = model.training
        model.eval()
        try:
            results = []
            for sample in samples:
                size = torch.tensor([self.pictures.display_size(sample[1]["orig_size"])], device=device)
                results += self.postprocess(model(self.pictures.batch([sample]).to(device)), size)
            return results
        finally:
            model.train(was_training)

    def _plot_pr_curves(self, trainer: Trainer, path: Path) -> None:
        metrics = self._last_metrics(trainer)
        if metrics is not None:
            self.pictures.pr_curves(metrics, path)

    def _plot_confusion(self, trainer: Trainer, path: Path) -> None:
        metrics = self._last_metrics(trainer)
        if metrics is not None:
            threshold = self._threshold(trainer, _better_model(trainer))
            self.pictures.confusion(metrics, path, score_threshold=threshold)

    def _plot_curves(self, trainer: Trainer, path: Path) -> None:
        metrics_file = trainer.output_dir / "metrics.jsonl"
        if metrics_file.exists():
            self.pictures.curves(metrics_file, path)

    def _last_metrics(self, trainer: Trainer) -> Any:
        """Return the `DetectionMetrics` of the better model, None before the first evaluation."""
        return None if self.coco_eval is None else self.coco_eval.last_metrics.get(_better_model(trainer))

    def _threshold(self, trainer: Trainer, name: str) -> float:
        if self.score_threshold is not None:
            return self.score_threshold
        return trainer.metrics.get(f"{_prefix(name)}F1_threshold") or DEFAULT_THRESHOLD  # 0: nothing was found yet


def _prefix(name: str) -> str:
    """Return how the published metrics of a model begin."""
    return "val/" if name == "regular" else f"val/{name}_"


def _better_model(trainer: Trainer) -> str:
    """Return the name of the model with the best mAP in the last evaluation; without one, the last model that was added."""
    names = reversed(trainer.eval_models)
    return max(names, key=lambda name: trainer.metrics.get(f"{_prefix(name)}mAP_50_95", -1.0))
