"""What a run's configuration does, observed: each function takes a `RunConfig`, runs the real thing, and says what happened.

They are given the folder of `tests/tools/test_every_option.py` as working directory. What takes time is done once for each
configuration; `forget` makes it be done again.
"""

import copy
import functools
import io
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from engine import Hook, Trainer
from engine.watch import watching
from hooks import BestCheckpointHook, COCOEvalHook, DropPathHook, EarlyStopHook, EMAHook, EvalLossHook
from rfdetr.box_ops import cxcywh_to_xyxy
from rfdetr.build import build_criterion, build_model
from rfdetr.data.samplers import TrainBatchSampler
from rfdetr.evaluation import DetectionMetrics
from rfdetr.training import build_trainer, train
from rfdetr.training.assemble import build_lr_scheduler, build_optimizer
from rfdetr.training.command_line import ExitCode
from rfdetr.training.commands import fit
from rfdetr.training.config import RunConfig
from rfdetr.training.memory import WorstStep
from rfdetr.training.parsing import plain_dict

CLOCKS = ("train/images_per_s", "train/data_wait")
NUM_EVALUATIONS = 14  # made up ones
_SEEN: dict[tuple[str, str], Any] = {}


def once(observe: Callable[[RunConfig], Any]) -> Callable[[RunConfig], Any]:
    """Keep what was observed of each configuration."""

    @functools.wraps(observe)
    def look(config: RunConfig) -> Any:
        key = (observe.__name__, repr(config))
        if key not in _SEEN:
            folder = Path(config.train.output_dir)
            was_there = folder.exists()
            try:
                _SEEN[key] = observe(config)
            finally:
                if not was_there:  # what runs write must not be in the way of the next
                    shutil.rmtree(folder, ignore_errors=True)
        return _SEEN[key]

    return look


def forget() -> None:
    _SEEN.clear()


# --- a whole run ---


@once
def _run(config: RunConfig) -> dict[str, Any]:
    """Train as tools/train.py does, and collect what was written; the files are deleted."""
    before, terminal = set(os.listdir()), _Terminal()
    try:
        with redirect_stderr(terminal):
            status = train(config)["status"]
        new = sorted(set(os.listdir()) - before)
        folder = Path(config.train.output_dir)
        metrics_file = folder / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics_file.read_text().splitlines()] if metrics_file.exists() else []
        return {
            "files": [re.sub(r"tfevents.*", "tfevents", str(path)) for name in new for path in sorted(Path(name).rglob("*"))],
            "lines": [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines],
            "results": json.loads((folder / "results.json").read_text()) if status == "done" else None,
            "has_bar": "step/s" in terminal.getvalue() or "s/step" in terminal.getvalue(),
        }
    finally:
        for name in set(os.listdir()) - before:
            shutil.rmtree(name)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def files(config: RunConfig) -> list[str]:
    """Names of the files that a run leaves."""
    return _run(config)["files"]


def logged_steps(config: RunConfig) -> list[int]:
    """Steps at which training losses are in metrics.jsonl."""
    return [line["step"] for line in _run(config)["lines"] if "train/loss" in line]


def has_progress_bar(config: RunConfig) -> bool:
    return _run(config)["has_bar"]


def results(config: RunConfig) -> dict[str, Any] | None:
    """Content of results.json, which only a run that was not interrupted writes."""
    return _run(config)["results"]


def rollbacks(config: RunConfig) -> int:
    """How many attempts a run makes whose weights diverge."""
    with patch("rfdetr.training.run.build_trainer", wraps=build_trainer) as building:
        with pytest.raises(FloatingPointError):
            train(config)
    shutil.rmtree(config.train.output_dir)
    return building.call_count


def watch_limit(config: RunConfig) -> float:
    """Seconds without movement after which the processes of a run would end."""
    with patch("engine.distributed.watching", wraps=watching) as watch:
        train(config)
    shutil.rmtree(config.train.output_dir)
    return watch.call_args.args[2]


def without_trackers(config: RunConfig) -> list[str]:
    """A run where no package of a tracker is installed."""
    with patch.dict(sys.modules, {"wandb": None, "mlflow": None}):
        return files(config)


def runs_with_hooks(config: RunConfig) -> bool:
    """Whether a bar is shown by a run whose hooks come out of its file, as a user's do."""
    Path("run.yaml").write_text(json.dumps(plain_dict(config)))  # JSON is YAML
    terminal = _Terminal()
    try:
        with redirect_stderr(terminal):
            assert fit(["--cfg", "run.yaml"]) == ExitCode.DONE
        return "epoch 1/1" in terminal.getvalue()
    finally:
        shutil.rmtree(config.train.output_dir, ignore_errors=True)


# --- the model, before and after some steps ---


@once
def _trained(config: RunConfig) -> dict[str, Any]:
    """Train with the hooks that change a model; those that evaluate and save take most of a run's time."""
    trainer = build_trainer(config)
    trainer.hooks[:] = [hook for hook in trainer.hooks if isinstance(hook, (EMAHook, DropPathHook))]
    trainer.train()
    return {"num_steps": trainer.step, **{name: _sums(model) for name, model in trainer.eval_models.items()}}


def _sums(model: nn.Module) -> dict[str, float]:
    return {name: tensor.double().sum().item() for name, tensor in model.state_dict().items()}


def num_steps(config: RunConfig) -> int:
    return _trained(config)["num_steps"]


def weights(config: RunConfig) -> dict[str, float]:
    """Sums of all weights after training."""
    return _trained(config)["regular"]


def averaged_weights(config: RunConfig) -> dict[str, float]:
    return _trained(config)["ema"]


def first_weights(config: RunConfig) -> dict[str, float]:
    """Sums of all weights before training."""
    return _sums(build_trainer(config).unwrapped_model)


def parameters(config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters."""
    return {name: tuple(p.shape) for name, p in build_trainer(config).unwrapped_model.named_parameters()}


def learned(config: RunConfig) -> list[str]:
    """Names of the parameters that training changed."""
    before = first_weights(config)
    return [name for name, value in weights(config).items() if value != before[name]]


def block_calls(config: RunConfig) -> int:
    """How often a block of the ViT is computed in training."""
    trainer, calls = build_trainer(config), []
    trainer.hooks[:] = []
    trainer.unwrapped_model.backbone.encoder.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    trainer.train()
    return len(calls)


def compiled_blocks(config: RunConfig) -> int:
    """How many parts will be compiled when they are first used, which would take minutes."""
    return sum(unit._compiled_call_impl is not None for unit in build_trainer(config).unwrapped_model.compile_units)


def steps_tried(config: RunConfig) -> int:
    """How many steps are tried before a run."""
    with patch.object(WorstStep, "_run", return_value=1) as run:
        build_trainer(config)
    return run.call_count


def is_deterministic(config: RunConfig) -> bool:
    build_trainer(config)
    return torch.are_deterministic_algorithms_enabled()


def averaged_buffer(config: RunConfig) -> float:
    """What the average has of a buffer that is 0 before training and 1 after it; our models have no buffer."""
    trainer = build_trainer(config)
    trainer.hooks[:] = [hook for hook in trainer.hooks if isinstance(hook, EMAHook)]
    trainer.unwrapped_model.register_buffer("counted", torch.zeros(()))

    def count(model: nn.Module, *_: Any) -> None:
        model.counted.fill_(1)

    trainer.unwrapped_model.register_forward_hook(count)
    trainer.train()
    return trainer.eval_models["ema"].counted.item()


def learning_rates(config: RunConfig) -> list[list[float]]:
    """Learning rate of each parameter group at each step of three epochs."""
    model = build_model(config.model.architecture(2))
    optimizer = build_optimizer(config, model)
    scheduler = build_lr_scheduler(replace(config, train=replace(config.train, epochs=3)), optimizer, 4)
    rates = []
    for _ in range(12):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


# --- the data ---


def _loaders(config: RunConfig) -> list:
    trainer = build_trainer(config)
    return [trainer.train_loader, next(hook.data_loader for hook in trainer.hooks if isinstance(hook, COCOEvalHook))]


def batch_shapes(config: RunConfig) -> list[list[tuple[int, ...]]]:
    """Shapes of all batches of an epoch and of an evaluation."""
    return [[tuple(samples.tensors.shape) for samples, _ in loader] for loader in _loaders(config)]


def pixels(config: RunConfig) -> list[list[float]]:
    """Sums of the left half of each batch, of an epoch and of an evaluation."""
    return [[_left_half(samples.tensors) for samples, _ in loader] for loader in _loaders(config)]


def pixels_without_files(config: RunConfig) -> list[float]:
    """The same for an epoch whose pictures were removed once the loader was made."""
    loader, _ = _loaders(config)
    folder = Path(config.data.dataset_dir, "train")
    shutil.move(folder, "moved_away")
    try:
        return [_left_half(samples.tensors) for samples, _ in loader]
    finally:
        shutil.move("moved_away", folder)


def _left_half(tensors: Tensor) -> float:
    return tensors[..., : tensors.shape[-1] // 2].double().sum().item()


def labels(config: RunConfig) -> list[list[int]]:
    return [target["labels"].tolist() for _, targets in _loaders(config)[0] for target in targets]


def workers(config: RunConfig) -> tuple[int, bool]:
    """How many processes load, and whether the next epoch has the same."""
    loader, _ = _loaders(config)
    epochs = []
    for _ in range(2):
        for _ in loader:
            epochs.append({process.pid for process in torch.multiprocessing.active_children()})
            break
    return len(epochs[0]), epochs[0] == epochs[1]


def start_method(config: RunConfig) -> str:
    """How torch will start the workers, which takes seconds with any method but fork; test_loader.py does it."""
    return _loaders(config)[0].multiprocessing_context.get_start_method()


def loader_timeout(config: RunConfig) -> float:
    """How long the loader waits for its workers; test_loader.py waits."""
    return _loaders(config)[0].timeout


def batches_drawn_at_first(config: RunConfig) -> int:
    """How many batches were asked for when the first one arrives."""
    drawn, iterate = [], TrainBatchSampler.__iter__

    def noting(sampler: TrainBatchSampler):
        for batch in iterate(sampler):
            drawn.append(batch)
            yield batch

    with patch.object(TrainBatchSampler, "__iter__", noting):
        next(iter(_loaders(config)[0]))
    return len(drawn)


# --- losses, metrics, selection ---


def loss(config: RunConfig) -> float:
    """The total training loss of made-up predictions and objects, with masks."""
    architecture = config.model.architecture(2)
    criterion = build_criterion(architecture, config.loss).train()
    generator = torch.Generator().manual_seed(0)
    num_queries = architecture.num_queries * architecture.group_detr

    def layer() -> dict[str, Tensor]:
        return {
            "pred_logits": torch.randn(2, num_queries, 3, generator=generator),
            "pred_boxes": torch.rand(2, num_queries, 4, generator=generator) * 0.3 + 0.2,
            "pred_masks": torch.randn(2, num_queries, 16, 16, generator=generator),
        }

    outputs = {**layer(), "aux_outputs": [layer()], "enc_outputs": layer()}
    targets = [
        {"labels": torch.arange(count) % 2, "boxes": torch.rand(count, 4, generator=generator) * 0.3 + 0.2,
         "masks": torch.rand(count, 64, 64, generator=generator) > 0.5}
        for count in (3, 5)
    ]  # fmt: skip
    torch.manual_seed(0)  # points of masks are drawn
    losses = criterion(outputs, targets)
    return sum(weight * losses[name].item() for name, weight in criterion.weight_dict.items())


def metrics(config: RunConfig) -> dict[str, float]:
    """What an evaluation at the start of a run publishes."""
    trainer = build_trainer(config)
    coco_eval = next(hook for hook in trainer.hooks if isinstance(hook, COCOEvalHook))
    trainer.hooks[:] = [hook for hook in trainer.hooks if isinstance(hook, EvalLossHook)]
    trainer.eval_models["ema"] = copy.deepcopy(trainer.unwrapped_model)
    return coco_eval.evaluate_and_publish(trainer)


def recall_of_two_objects(config: RunConfig) -> float:
    """The recall of a run's evaluation where both objects of a picture are found exactly."""
    coco_eval = next(hook for hook in build_trainer(config).hooks if isinstance(hook, COCOEvalHook))
    metric = DetectionMetrics(coco_eval.class_names, max_dets=coco_eval.max_dets)
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.6, 0.6, 0.2, 0.2]])
    found = {"boxes": cxcywh_to_xyxy(boxes) * 64, "labels": torch.zeros(2, dtype=torch.int64), "scores": torch.tensor([0.9, 0.8])}
    metric.update([found], [{"boxes": boxes, "labels": found["labels"], "orig_size": torch.tensor([64, 64])}])
    return metric.compute()["mAR"]


class _NotingHook(Hook):
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.epochs.append(trainer.epoch)


def evaluated_epochs(config: RunConfig) -> list[int]:
    trainer, noting = build_trainer(config), _NotingHook()
    trainer.hooks[:] = [noting, *(hook for hook in trainer.hooks if isinstance(hook, COCOEvalHook))]
    trainer.train()
    return noting.epochs


def best_epoch(config: RunConfig) -> int:
    """The epoch whose weights are kept, where F1 rises and mAP is best at first."""
    trainer = build_trainer(config)
    trainer.hooks[:] = [hook for hook in trainer.hooks if isinstance(hook, BestCheckpointHook)]
    for trainer.epoch, (m_ap, f1) in enumerate([(0.5, 0.2), (0.3, 0.3), (0.2, 0.4)], start=1):
        trainer.publish_metrics({"val/mAP_50_95": m_ap, "val/F1": f1})
    path = Path(config.train.output_dir, "checkpoint_best_regular.pth")
    try:
        return torch.load(path, weights_only=True)["epoch"]
    finally:
        shutil.rmtree(path.parent)


def stopping(config: RunConfig) -> tuple[int, str | None, int]:
    """When and why a run stops whose regular metric hardly rises while the average's rises, and how many lines tell of it."""
    return _stopping(config, [(0.3 + 1e-5 * epoch, 0.2 + 0.005 * epoch) for epoch in range(NUM_EVALUATIONS)])


def stopping_at_nan(config: RunConfig) -> tuple[int, str | None, int]:
    """The same where no metric is finite after the second evaluation."""
    return _stopping(config, [(0.3, 0.2), (0.3, 0.2), *[(math.nan, math.nan)] * NUM_EVALUATIONS])


def _stopping(config: RunConfig, values: list[tuple[float, float]]) -> tuple[int, str | None, int]:
    trainer = build_trainer(config)
    trainer.hooks[:] = [hook for hook in trainer.hooks if isinstance(hook, EarlyStopHook)]
    logger, handler, lines = logging.getLogger("hooks.early_stop"), logging.Handler(), []
    handler.emit = lines.append
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        for trainer.epoch, (regular, average) in enumerate(values, start=1):
            trainer.publish_metrics({"val/mAP_50_95": regular, "val/ema_mAP_50_95": average})
            if trainer.stop_reason:
                break
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return trainer.epoch, trainer.stop_reason, len(lines)
