"""Pictures of a run: what the model is trained on, what it finds, and plots of the metrics."""

import copy
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.distributed import is_main_process
from engine.hook import Hook
from engine.randomness import preserved_rng
from engine.trainer import Trainer
from hooks.coco_eval import COCOEvalHook

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD = 0.5  # for scores, where no evaluation has found a better one


class PlotsHook(Hook):
    """Draw pictures into the output folder; one that fails is reported once, and training goes on.

    ``train_batch.png`` at the start, ``val_predictions.png`` at each evaluation; ``pr_curve.png``, ``confusion_matrix.png`` and
    ``curves.png`` at the first, second, fourth, eighth ... and at the end. Then all of them go to the writers too (TensorBoard
    and others). The better one of the regular and the ema model is shown.

    Args:
        pictures: draws; `rfdetr.plots.RunPictures`, or anything with its methods.
        val_dataset: gives (image, target) for an index; None: no predictions are drawn.
        coco_eval: its ``last_metrics`` are what predictions, precision over recall and the confusion matrix are made of; None:
            they are not drawn.
        num_samples: training samples shown.
        score_threshold: of the detections shown; None: the one with the best F1 in the last evaluation.
    """

    writes = ("train_batch.png", "val_predictions.png", "pr_curve.png", "confusion_matrix.png", "curves.png")

    def __init__(
        self,
        pictures: Any,
        val_dataset: Any,
        *,
        coco_eval: COCOEvalHook | None = None,
        num_samples: int = 16,
        score_threshold: float | None = None,
    ) -> None:
        self.pictures = pictures
        self.val_dataset = val_dataset
        self.coco_eval = coco_eval
        self.num_samples = num_samples
        self.score_threshold = score_threshold
        self.num_evaluations = 0
        self.failed: set[str] = set()  # pictures that are not tried again

    def before_train(self, trainer: Trainer) -> None:
        self._draw(trainer, self._draw_samples, "train_batch.png")
        self._show(trainer, "train_batch.png")

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.num_evaluations += 1
        self._draw(trainer, self._draw_found, "val_predictions.png")
        if self._is_milestone():
            self._draw_charts(trainer)

    def after_train(self, trainer: Trainer) -> None:
        if not (self.num_evaluations and self._is_milestone()):
            self._draw_charts(trainer)
        else:
            self._draw(trainer, self._plot_curves, "curves.png")  # with what came after the evaluation

    def _is_milestone(self) -> bool:
        return self.num_evaluations & (self.num_evaluations - 1) == 0  # a power of two: of many evaluations, few

    def _draw_charts(self, trainer: Trainer) -> None:
        self._draw(trainer, self._draw_found, "pr_curve.png", "confusion_matrix.png")
        self._draw(trainer, self._plot_curves, "curves.png")
        self._show(trainer, *self.writes[1:])

    def _show(self, trainer: Trainer, *names: str) -> None:
        """Hand pictures that are there to the writers."""
        for name in names if is_main_process() else ():
            if (path := trainer.output_dir / name).exists() and name not in self.failed:
                trainer.log_image(path.stem, path)

    def _draw(self, trainer: Trainer, draw: Callable[[Trainer, Path], None], *names: str) -> None:
        for name in names if is_main_process() else ():
            if name in self.failed:
                continue
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
        keys = list(itertools.islice(itertools.chain.from_iterable(sampler), self.num_samples))
        title = f"the first training samples of epoch {trainer.epoch + 1}, as the model gets them"
        self.pictures.samples(loader.dataset, keys, path, title=title)

    def _draw_found(self, trainer: Trainer, path: Path) -> None:
        """Draw what the better model has found in the last evaluation, if there was one."""
        name = _better_model(trainer)
        metrics = None if self.coco_eval is None else self.coco_eval.last_metrics.get(name)
        if metrics is None:
            return
        threshold = self.score_threshold
        if threshold is None:
            threshold = trainer.metrics.get(f"{_prefix(name)}F1_threshold") or DEFAULT_THRESHOLD  # 0: nothing was found yet
        model = f"{name} model, epoch {trainer.epoch + (trainer.epoch_step > 0)}"  # max_steps may cut one short
        if path.name == "pr_curve.png":
            self.pictures.pr_curves(metrics, path, model=model)
        elif path.name == "confusion_matrix.png":
            self.pictures.confusion(metrics, path, score_threshold=threshold, model=model)
        elif self.val_dataset:
            self.pictures.predictions(metrics, self.val_dataset, path, score_threshold=threshold, model=model)

    def _plot_curves(self, trainer: Trainer, path: Path) -> None:
        metrics_file = trainer.output_dir / "metrics.jsonl"
        if metrics_file.exists():
            self.pictures.curves(metrics_file, path, steps_per_epoch=trainer.steps_per_epoch)


def _prefix(name: str) -> str:
    """Return how the published metrics of a model begin."""
    return "val/" if name == "regular" else f"val/{name}_"


def _better_model(trainer: Trainer) -> str:
    """Return the name of the model with the best mAP in the last evaluation; without one, the last model that was added."""
    names = reversed(trainer.eval_models)
    return max(names, key=lambda name: trainer.metrics.get(f"{_prefix(name)}mAP_50_95", -1.0))
