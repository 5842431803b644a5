"""The end of a run: the best weights are put into the model, measured on the test split, and results.json is written."""

import logging
from typing import Any

from engine import Hook, Trainer
from engine.distributed import gather_objects, is_main_process
from engine.hook import evaluation_listener, measured
from hooks import EarlyStopHook
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
        results: what results.json holds: `epochs`, `steps`, `stop_reason`, `best` (its epoch and metrics), `test` (metrics), and
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
        best = trainer.output_dir / "checkpoint_best_total.pth"
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
            logger.info("done after %d epochs; everything is in %s", trainer.epoch, trainer.output_dir)


def _status(trainer: Trainer) -> str:
    """Say how the run ended. Collective: only one process knows whether files were written."""
    if any(gather_objects(any(getattr(hook, "save_failed", False) for hook in trainer.hooks))):
        return "save_failed"
    if trainer.interrupted:
        return "interrupted"
    non_finite = any(isinstance(hook, EarlyStopHook) and hook.found_non_finite for hook in trainer.hooks)
    return "non_finite" if non_finite else "done"
