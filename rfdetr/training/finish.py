"""The end of a run: the best weights are put into the model, measured on the test split, and results.json is written."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine import Hook, Trainer, load_checkpoint
from engine.background import try_saving
from engine.distributed import gather_objects, is_main_process
from engine.hook import evaluation_listener, measured
from hooks import BestCheckpointHook, COCOEvalHook, EarlyStopHook
from hooks.best_checkpoint import best_path
from hooks.monitor import direction
from rfdetr.config import ModelConfig
from rfdetr.data import LabelMap
from rfdetr.files import write_json
from rfdetr.training.config import RunConfig
from rfdetr.training.evaluation import evaluate_split, finite_or_none
from rfdetr.training.run_folder import RESULTS
from rfdetr.training.start import load_best

logger = logging.getLogger(__name__)


class FinishHook(Hook):
    """Finish a run that was not interrupted; belongs after all other hooks.

    Attributes:
        results: what results.json holds: `epochs`, `steps`, `stop_reason`, `best` (its epoch and metrics), `average`
            (see `try_average`; where checkpoints are kept), `test` (metrics), and
            `status`: "done", "interrupted" (nothing else was done then), "non_finite", or "save_failed" where the last save or
            results.json itself could not be written.
    """

    def __init__(self, config: RunConfig, architecture: ModelConfig, label_map: LabelMap) -> None:
        self.config, self.architecture, self.label_map = config, architecture, label_map
        self.results: dict[str, Any] = {}

    def after_train(self, trainer: Trainer) -> None:
        self.results = {"status": _status(trainer), "epochs": trainer.epoch, "steps": trainer.step,
                        "stop_reason": trainer.stop_reason}
        if trainer.interrupted:
            what = "without" if self.results["status"] == "save_failed" else "with"
            logger.info("stopped (%s) %s a valid checkpoint of this step; go on with --resume auto", trainer.stop_reason, what)
            return
        model = trainer.eval_models["regular"]
        best = best_path(trainer, "total")
        if self.config.train.keep_top:
            self.results["average"] = try_average(trainer, model)
        if best.exists():
            content = load_best(model, best)
            self.results["best"] = {"epoch": content["epoch"], "metrics": finite_or_none(content["metrics"])}
        if self.config.eval.run_test:
            for hook in trainer.hooks:
                hook.before_eval(trainer, "test")
            metrics, _ = evaluate_split(model, self.config, self.architecture, self.label_map, "test", device=trainer.device,
                                        after_batch=evaluation_listener(trainer))
            metrics |= {f"test/{name}": value for name, value in measured(trainer, "test").items()}
            self.results["test"] = finite_or_none(metrics)
        if is_main_process():
            self._write_results(trainer)

    def _write_results(self, trainer: Trainer) -> None:
        try:
            write_json(trainer.output_dir / RESULTS, self.results)
        except OSError as error:
            self.results["status"] = "save_failed"
            logger.warning("%s could not be written (%s)", trainer.output_dir / RESULTS, error.strerror or error)
        else:
            logger.info("done after %d epochs, %d steps in all; everything is in %s", trainer.epoch, trainer.step,
                        trainer.output_dir)


def _status(trainer: Trainer) -> str:
    """Say how the run ended. Collective: only one process knows whether files were written."""
    if any(gather_objects(any(getattr(hook, "save_failed", False) for hook in trainer.hooks))):
        return "save_failed"
    if trainer.interrupted:
        return "interrupted"
    non_finite = any(isinstance(hook, EarlyStopHook) and hook.found_non_finite for hook in trainer.hooks)
    return "non_finite" if non_finite else "done"


def try_average(trainer: Trainer, model: nn.Module) -> dict[str, Any] | None:
    """Write the mean of the kept weights, evaluate it with `model`, and make it the best if it is better than that. Collective.

    Model soups, arXiv 2203.05482: the mean of weights of one training is often better than each of them.

    Returns:
        `files` that it is the mean of, its `metrics`, and whether it is `used`; None where there is nothing to take the mean of.
    """
    best = next(hook for hook in trainer.hooks if isinstance(hook, BestCheckpointHook))
    coco_eval = next(hook for hook in trainer.hooks if isinstance(hook, COCOEvalHook))
    paths, path = best.kept_files(trainer), best_path(trainer, "average")
    content = mean_content(paths) if len(paths) > 1 else {}
    if not all(gather_objects(bool(content) and (not is_main_process() or try_saving(content, path)))):
        logger.warning("no average of checkpoints: %d of them are there, or it could not be written", len(paths))
        return None
    load_best(model, path)
    metrics = coco_eval.measure(trainer, {"average": model})
    sign, monitor = direction(best.monitors["regular"]), best.monitors["regular"].replace("/", "/average_", 1)
    score = sign * metrics.get(monitor, math.nan)
    is_better = score > max(best.best.values())
    if is_main_process():
        content["metrics"] = metrics
        saved = [try_saving(content, each) for each in ([path, best_path(trainer, "total")] if is_better else [path])]
        is_better = is_better and all(saved)
    is_better = gather_objects(is_better)[0]
    logger.info("the mean of %s: %s %.4f, the best alone %.4f; %s", ", ".join(path.name for path in paths), monitor,
                metrics.get(monitor, math.nan), sign * max(best.best.values()), "used" if is_better else "not used")
    return {"files": [path.name for path in paths], "metrics": finite_or_none(metrics), "used": is_better}


def mean_content(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the content of the first file with the mean of the weights of all; integers are the first one's."""
    first, *others = (load_checkpoint(path) for path in paths)
    models = [content["model"] for content in others]
    means = {name: torch.stack([value, *(model[name] for model in models)]).double().mean(dim=0).to(value.dtype)
             if value.is_floating_point() else value for name, value in first["model"].items()}
    return {**first, "model": means}
