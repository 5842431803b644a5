"""Jobs of `rfdetr benchmark` that only this project has: its loader, an epoch on a run's own data, and saving."""

import copy
import time
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from engine import Hook, Trainer, evaluate
from engine.background import BackgroundSaver
from hooks import COCOEvalHook
from rfdetr.evaluation import DetectionMetrics
from rfdetr.training.assemble import build_trainer
from rfdetr.training.benchmark_work import Detector, Settings
from rfdetr.training.data import build_train_loader, open_run_data
from rfdetr.training.device import choose_device
from rfdetr.training.evaluation import config_of


def loader(settings: Settings) -> dict[str, float]:
    """Seconds of a batch of the train loader, when nobody makes it wait."""
    config = config_of({"args": {}}, settings["run"])
    made = build_train_loader(config, open_run_data(config), choose_device(config))
    batches, num_ahead = chain.from_iterable(repeat(made)), made.num_workers * (made.prefetch_factor or 0)
    for _ in range(1 + num_ahead):  # what was made while nobody took it
        next(batches)
    count = settings["repeats"] + num_ahead
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return {"seconds": (time.perf_counter() - began) / count}


class _Measured(BaseException):
    """Raised to end a training without anything that belongs to its end."""


class _Timer(Hook):
    """Time steps with their loading, from the `num_first`-th on, and end after `count` of them."""

    def __init__(self, num_first: int, count: int) -> None:
        self.num_first, self.count = num_first, count
        self.seconds = self.data_seconds = self._began = self._data_began = 0.0

    def before_epoch(self, trainer: Trainer) -> None:
        self._began, self._data_began = time.perf_counter(), trainer.data_seconds

    def after_step(self, trainer: Trainer) -> None:
        if trainer.step > self.num_first:
            self.seconds += (time.perf_counter() - self._began) / self.count
            self.data_seconds += (trainer.data_seconds - self._data_began) / self.count
        if trainer.step == self.num_first + self.count:
            raise _Measured
        self.before_epoch(trainer)


def epoch(settings: Settings) -> dict[str, Any]:
    """Seconds of an epoch with its evaluation, computed from some steps and some batches of the evaluation."""
    timer = _Timer(settings["warm_up"], settings["repeats"])
    trainer = build_trainer(config_of({"args": {}}, settings["run"]), [timer])
    try:
        trainer.train()
    except _Measured:
        pass
    evaluation = next(hook for hook in trainer.hooks if isinstance(hook, COCOEvalHook))
    num_batches = len(evaluation.data_loader)
    batch_seconds = _evaluation_seconds(trainer, evaluation, settings["repeats"])
    return {
        "seconds": timer.seconds * trainer.steps_per_epoch + batch_seconds * num_batches / settings["every_epochs"],
        "steps": trainer.steps_per_epoch, "step_seconds": timer.seconds, "data_wait": timer.data_seconds / timer.seconds,
        "train_images": len(trainer.train_loader.dataset), "evaluation_seconds": batch_seconds * num_batches,
        "evaluation_images": len(evaluation.data_loader.dataset),
    }


def _evaluation_seconds(trainer: Trainer, evaluation: COCOEvalHook, count: int) -> float:
    """Seconds of a batch through all models that the run evaluates."""
    models = {name: trainer.eval_models[name] for name in evaluation.models if name in trainer.eval_models}
    metrics = {name: DetectionMetrics(evaluation.class_names, iou_types=evaluation.iou_types) for name in models}
    count = min(count + 1, len(evaluation.data_loader))
    ends = [time.perf_counter()]
    evaluate(models, islice(evaluation.data_loader, count), evaluation.postprocess, metrics, device=trainer.device,
             precision=evaluation.precision, after_batch=lambda *_: ends.append(time.perf_counter()))
    first = len(models) if count > 1 else 0  # the first batch waits for the loader to start
    return (ends[-1] - ends[first]) / (len(ends) - 1 - first) * (len(ends) - 1) / count


def save(settings: Settings) -> dict[str, float]:
    """Seconds that a training stands still for a checkpoint, and until it is on the disk."""
    detector = Detector(settings)
    detector.step()
    state = {"model": detector.model.state_dict(), "optimizer": detector.optimizer.state_dict(),
             "ema_model": copy.deepcopy(detector.model).state_dict()}
    saver, path = BackgroundSaver(), Path(settings["folder"]) / "checkpoint.pth"
    for _ in range(2):  # a run's first one takes new memory, the others fill it again
        began = time.perf_counter()
        saver.save(state, path)
        seconds = time.perf_counter() - began
        saver.wait()
    return {"seconds": seconds, "written_seconds": time.perf_counter() - began}


JOBS = {"loader": loader, "epoch": epoch, "save": save}
