"""Evaluating a split of the data set with given weights: after training, and in tools/eval.py."""

import math
from typing import Any

import torch
from torch import nn

from engine import evaluate
from engine.distributed import rank, world_size
from rfdetr.build import build_dataset, build_loader, build_postprocess
from rfdetr.config import ModelConfig, RunConfig
from rfdetr.data import LabelMap
from rfdetr.evaluation import CocoMetrics, DetectionMetrics, absolute_targets

COCO_MAX_DETS = 100  # of COCO's own tables


class MetricsAndCocoTable(DetectionMetrics):
    """The metrics of training, and beside them COCO's own numbers (with at most 100 detections an image)."""

    def __init__(self, class_names: list[str], **arguments: Any) -> None:
        super().__init__(class_names, **arguments)
        self.table = CocoMetrics(iou_types=self.coco.iou_types, max_dets=COCO_MAX_DETS)

    def update(self, results: list[dict], targets: list[dict]) -> None:
        super().update(results, targets)
        self.table.update(results, absolute_targets(targets))

    def reset(self) -> None:
        super().reset()
        self.table.reset()


def iou_types(model: ModelConfig) -> tuple[str, ...]:
    return ("bbox", "segm") if model.segmentation_head else ("bbox",)


def evaluate_split(
    network: nn.Module, config: RunConfig, model: ModelConfig, label_map: LabelMap | None, split: str, *, device: torch.device
) -> tuple[dict[str, float], MetricsAndCocoTable]:
    """Evaluate a split with the settings of the run's own evaluations. Every rank calls it.

    Returns:
        the metrics under the names of training, such as ``test/mAP_50_95``, and the metric object, which knows more.
    """
    dataset = build_dataset(config.data, model, split, label_map)
    loader = build_loader(dataset, config.data, model, rank=rank(), world_size=world_size(), pin_memory=device.type == "cuda")
    metric = MetricsAndCocoTable(
        dataset.label_map.names, iou_types=iou_types(model), max_dets=config.eval.max_dets, per_class=config.eval.per_class
    )
    metrics = evaluate(
        network.to(device), loader, build_postprocess(model), metric, device=device, precision=config.eval.precision
    )
    return {f"{split}/{name}": value for name, value in metrics.items()}, metric


def finite_or_none(metrics: dict[str, float]) -> dict[str, float | None]:
    """Put metrics into what JSON has."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
