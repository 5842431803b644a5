"""Evaluate the regular model and its average after an epoch, and publish COCO metrics and F1."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from engine.distributed import is_main_process
from engine.evaluate import evaluate
from engine.hook import Hook, evaluation_listener, measured
from engine.trainer import Trainer
from rfdetr.evaluation import DetectionMetrics


class COCOEvalHook(Hook):
    """Publish ``val/mAP_50_95``, ``val/F1``, ``val/AP/<class>`` … and the same with ``val/ema_`` for the average.

    Belongs at the end of the hooks: the others have then done their work for the epoch.

    Args:
        data_loader: yields ``(samples, targets)``; each rank passes its own share of the images.
        postprocess: ``(outputs, target_sizes) -> results``.
        class_names: name of label 0, 1, …
        sets: further data, evaluated at the same time and published as ``<name>/mAP_50_95`` and so on.
        every_epochs: evaluate after every so many epochs, and after the last.
        models: which of ``trainer.eval_models`` to evaluate, where they are there.

    Attributes:
        last_metrics: on the main process, model name -> its `DetectionMetrics` of the latest evaluation, for plots.
    """

    def __init__(
        self,
        data_loader: Iterable,
        postprocess: Callable,
        class_names: Sequence[str],
        *,
        every_epochs: int = 1,
        max_dets: int = 500,
        per_class: bool = True,
        models: Sequence[str] = ("regular", "ema"),
        iou_types: Sequence[str] = ("bbox",),
        precision: str = "fp32",
        split: str = "val",
        sets: Mapping[str, Iterable] | None = None,
    ) -> None:
        if every_epochs < 1:
            raise ValueError(f"COCOEvalHook: every_epochs={every_epochs}; it must be 1 or more")
        self.data_loader, self.postprocess, self.sets = data_loader, postprocess, dict(sets or {})
        self.class_names = list(class_names)
        self.every_epochs = every_epochs
        self.max_dets, self.per_class, self.iou_types = max_dets, per_class, tuple(iou_types)
        self.models, self.precision, self.split = tuple(models), precision, split
        self.last_metrics: dict[str, DetectionMetrics] = {}
        self._evaluated_at = (0, 0)  # epochs, and steps of the next one
        self._is_resumed = False

    def before_train(self, trainer: Trainer) -> None:
        """Make up for the evaluation that an interrupted run did not finish, so that the resumed one decides alike."""
        if self._is_resumed and (trainer.epoch, trainer.epoch_step) != self._evaluated_at and self._is_due(trainer):
            self.evaluate_and_publish(trainer)
        self._is_resumed = False

    def after_epoch(self, trainer: Trainer) -> None:
        if self._is_due(trainer) and not trainer.interrupted:  # an evaluation may take longer than there is time left
            self.evaluate_and_publish(trainer)

    def evaluate_and_publish(self, trainer: Trainer) -> dict[str, float]:
        """Evaluate now, hand the metrics to all hooks, and return them. Every rank must call it."""
        models = {name: trainer.eval_models[name] for name in self.models if name in trainer.eval_models}
        published = self.measure(trainer, models, self.sets)
        self._evaluated_at = (trainer.epoch, trainer.epoch_step)
        trainer.publish_metrics(published)
        return published

    def measure(
        self, trainer: Trainer, models: Mapping[str, nn.Module], sets: Mapping[str, Iterable] = {}
    ) -> dict[str, float]:
        """Evaluate any models, and return the metrics under the names they would be published by. Every rank must call it."""
        self.last_metrics = {}  # the images of an evaluation take memory: let go of the old ones first
        for name in models:
            for hook in trainer.hooks:
                hook.before_eval(trainer, name)
        published: dict[str, float] = {}
        for split, data_loader in {**sets, self.split: self.data_loader}.items():  # the last one's metrics stay for plots
            found: dict[str, float] = {}
            for name, values in self._evaluate(trainer, models, data_loader).items():
                prefix = f"{split}/" if name == "regular" else f"{split}/{name}_"
                values = {**values, **measured(trainer, name)} if data_loader is self.data_loader else values
                found |= {prefix + key: value for key, value in values.items()}
            published = found | published
        return published

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated_epoch": self._evaluated_at[0], "evaluated_step": self._evaluated_at[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._evaluated_at, self._is_resumed = (state["evaluated_epoch"], state.get("evaluated_step", 0)), True

    def _is_due(self, trainer: Trainer) -> bool:
        is_epoch_end = trainer.epoch > 0 and trainer.epoch_step == 0
        return trainer.is_finished or is_epoch_end and trainer.epoch % self.every_epochs == 0

    def _evaluate(
        self, trainer: Trainer, models: Mapping[str, nn.Module], data_loader: Iterable
    ) -> dict[str, dict[str, float]]:
        metrics = {
            name: DetectionMetrics(self.class_names, iou_types=self.iou_types, max_dets=self.max_dets, per_class=self.per_class)
            for name in models
        }
        if is_main_process():
            self.last_metrics = metrics
        listener = evaluation_listener(trainer) if data_loader is self.data_loader else None
        return evaluate(models, data_loader, self.postprocess, metrics, device=trainer.device, precision=self.precision,
                        after_batch=listener)
