"""What a run keeps for its report, and the report at its end."""

import copy
import io
import logging
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from engine import Hook, Trainer
from engine.distributed import is_main_process, world_size
from engine.randomness import preserved_rng
from hooks import BestCheckpointHook, COCOEvalHook
from rfdetr.extras import installed_version
from rfdetr.files import write_json
from rfdetr.plots.pictures import display_size, displayable
from rfdetr.plots.run_pictures import image_name
from rfdetr.report.detections import Evaluation, Picture, load_evaluation, save_evaluation
from rfdetr.report.errors import find_errors, worst_images
from rfdetr.report.evaluated import DEFAULT_THRESHOLD
from rfdetr.report.page import write_report
from rfdetr.report.read import DETECTIONS, FACTS, REPORT, Run, without_prefix
from rfdetr.training.config import RunConfig
from rfdetr.training.finish import FinishHook
from rfdetr.training.parsing import plain_dict

logger = logging.getLogger(__name__)

NUM_PICTURES, PICTURE_SIDE, JPEG_QUALITY = 24, 480, 80
PACKAGES = ("rfdetr-engine", "torch", "torchvision", "timm", "numpy", "vernier")


class ReportHook(Hook):
    """Write report.html when the run is over, and until then what it is made of; what fails is one warning.

    detections.npz holds what the best weights have found; run_facts.json the check of the data, versions and times.

    Args:
        coco_eval: evaluates.
        dataset: the evaluated one; its worst images are kept at the end.
        facts: the check of the data, None where there is none.
    """

    writes = (DETECTIONS, FACTS, REPORT)

    def __init__(self, coco_eval: COCOEvalHook, dataset: Any, facts: Mapping[str, Any] | None) -> None:
        self.coco_eval, self.dataset = coco_eval, dataset
        self.facts: dict[str, Any] = {"versions": {}, "sessions": [], "data": facts}
        self._best = float("-inf")
        self._began = self._evaluation_began = self._evaluation_seconds = 0.0
        self._has_failed = False
        self._finished: Trainer | None = None

    def before_train(self, trainer: Trainer) -> None:
        self._finished, self._began = None, time.time()
        self._best = self._current_best(trainer)[0]  # of a resumed run
        self._try(trainer, self._start)

    def before_eval(self, trainer: Trainer, model_name: str) -> None:
        self._evaluation_began = self._evaluation_began or time.perf_counter()

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._evaluation_seconds = time.perf_counter() - self._evaluation_began
        self._evaluation_began = 0.0
        best, model = self._current_best(trainer)
        if best > self._best and model in self.coco_eval.last_metrics:
            self._best = best
            self._try(trainer, self._keep, model, metrics)
        self._try(trainer, self._write_facts)

    def after_train(self, trainer: Trainer) -> None:
        self._finished = None if trainer.interrupted else trainer

    def close(self) -> None:
        if self._finished is not None:  # all hooks have done their work, and results.json is there
            self._try(self._finished, self._finish)

    def _try(self, trainer: Trainer, act: Callable, *arguments: Any) -> None:
        if not is_main_process() or self._has_failed:
            return
        try:
            with preserved_rng(trainer.device):
                act(trainer, *arguments)
        except Exception as error:  # whatever is wrong with a report, the training is worth more
            self._has_failed = True
            logger.warning("there will be no %s (%s: %s); training goes on without it", REPORT, type(error).__name__, error)
            logger.debug("where %s failed", REPORT, exc_info=True)

    def _start(self, trainer: Trainer) -> None:
        before = Run(trainer.output_dir, "").facts.get("sessions", []) if trainer.step else []
        device = torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else str(trainer.device)
        machine = {"Python": platform.python_version(), "system": platform.platform(), "device": device,
                   "precision": trainer.precision, "processes": str(world_size())}
        self.facts["versions"] = {name: installed_version(name) for name in PACKAGES} | {"torch": torch.__version__} | machine
        self.facts["sessions"] = [*before, {"started": time.strftime("%Y-%m-%d %H:%M"), "first_step": trainer.step}]
        self._write_facts(trainer)

    def _write_facts(self, trainer: Trainer) -> None:
        self.facts["sessions"][-1]["seconds"] = round(time.time() - self._began, 1)
        write_json(trainer.output_dir / FACTS, self.facts)

    def _keep(self, trainer: Trainer, model: str, metrics: Mapping[str, float]) -> None:
        metric = self.coco_eval.last_metrics[model]
        about = {"model": model, "epoch": trainer.epoch, "step": trainer.step, "class_names": metric.class_names,
                 "seconds": self._evaluation_seconds, "metrics": without_prefix(metrics, model)}
        save_evaluation(Evaluation(metric.coco.all_images(), about), trainer.output_dir / DETECTIONS)

    def _finish(self, trainer: Trainer) -> None:
        average = next(hook for hook in trainer.hooks if isinstance(hook, FinishHook)).results.get("average") or {}
        if average.get("used"):
            self._keep(trainer, "average", average["metrics"])
        path = trainer.output_dir / DETECTIONS
        if path.exists():
            save_evaluation(with_pictures(load_evaluation(path), self.dataset), path)
        self._write_facts(trainer)
        write_report([trainer.output_dir], defaults=plain_dict(RunConfig()))
        logger.info("report: %s", trainer.output_dir / REPORT)

    @staticmethod
    def _current_best(trainer: Trainer) -> tuple[float, str]:
        """Return the best score so far, and the model that has it."""
        best = next(hook for hook in trainer.hooks if isinstance(hook, BestCheckpointHook)).best
        model = max(best, key=best.get)  # the first of equal ones, as for checkpoint_best_total.pth
        return best[model], model


def with_pictures(evaluation: Evaluation, dataset: Any) -> Evaluation:
    """Return the evaluation with small JPEGs of its worst images; `dataset` gives (image, target) for an index."""
    if not evaluation.images:
        return evaluation
    threshold = evaluation.about["metrics"].get("F1_threshold") or DEFAULT_THRESHOLD
    worst = worst_images(find_errors(evaluation.images), evaluation.images, threshold, NUM_PICTURES)
    large = copy.copy(dataset)
    large.image_size = (PICTURE_SIDE, PICTURE_SIDE)  # what the model sees would be hard to recognise
    image_id = getattr(dataset, "image_id", int)
    wanted = {evaluation.images[place].image_id for place in worst}
    indices = {found: index for index in range(len(dataset)) if (found := image_id(index)) in wanted}
    pictures = {}
    for place in worst:
        if (index := indices.get(evaluation.images[place].image_id)) is None:
            continue
        image, target = large[index]
        if int(target["image_id"]) == evaluation.images[place].image_id:
            size = target["orig_size"]
            pictures[place] = Picture(image_name(dataset, index), tuple(size.tolist()), _jpeg(image, size))
    return Evaluation(evaluation.images, evaluation.about, pictures)


def _jpeg(image: torch.Tensor, size: torch.Tensor) -> bytes:
    file = io.BytesIO()
    pixels = displayable(image, display_size(size, PICTURE_SIDE))
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
