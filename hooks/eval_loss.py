"""Measure the training criterion on evaluation batches, in the forward that the metrics are made from."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.device import to_device
from engine.distributed import gather_objects
from engine.hook import Hook
from engine.loss import total_loss
from engine.trainer import Trainer


class EvalLossHook(Hook):
    """Publish ``val/loss`` and ``val/loss_ce`` ... (``val/ema_loss`` ... of the average) with the metrics of each evaluation.

    It is the loss of the whole split, whatever the batches and processes: the sum over its objects by their number. Of a
    criterion without ``count_boxes(targets)`` and ``num_boxes=`` it is the mean over batches, each counted by its images.

    Args:
        prepare: makes targets as the criterion has them in training out of those of evaluations.
    """

    def __init__(self, prepare: Callable[[Sequence[dict]], Sequence[dict]] = list) -> None:
        self.prepare = prepare
        self._sums: dict[str, dict[str, float]] = {}  # by model; what they are divided by is under ""

    def before_eval(self, trainer: Trainer, name: str) -> None:
        self._sums[name] = defaultdict(float)

    def after_eval_batch(
        self, trainer: Trainer, name: str, batch: Any, outputs: dict[str, Any], results: list[dict[str, Tensor]]
    ) -> None:
        criterion: Any = trainer.criterion
        targets = self.prepare(batch[1])
        targets = targets if getattr(criterion, "host_targets", False) else to_device(targets, trainer.device)
        if "pred_masks" in outputs:  # points are drawn on masks, which are evaluated image by image: the same wherever that is
            torch.manual_seed(int(targets[0]["image_id"]))
        was_training, counts = criterion.training, hasattr(criterion, "count_boxes")
        criterion.eval()
        try:
            losses = criterion(outputs, targets, **({"num_boxes": 1.0} if counts else {}))
            weight = criterion.count_boxes(targets) if counts else len(targets)
        finally:
            criterion.train(was_training)
        weighted = getattr(criterion, "weight_dict", losses)
        values = {"loss": total_loss(criterion, losses), **{key: value for key, value in losses.items() if key in weighted}}
        sums = self._sums[name]
        sums[""] += weight
        for key, value in zip(values, torch.stack([value.reshape(()) for value in values.values()]).tolist()):
            sums[key] += value * (1 if counts else weight)

    def measured(self, trainer: Trainer, name: str) -> dict[str, float]:
        totals: dict[str, float] = defaultdict(float)
        for sums in gather_objects(dict(self._sums.pop(name, {}))):  # in the order of the ranks, so that all have the same bits
            for key, value in sums.items():
                totals[key] += value
        count = max(totals.pop("", 0.0), 1.0)
        return {key: value / count for key, value in totals.items()}
