"""Evaluate a split with given weights: at the end of a training, and of any checkpoint."""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine import evaluate as run_evaluation
from engine.batches import OF_OBJECTS
from engine.distributed import process_group
from rfdetr.box_ops import cxcywh_to_xyxy
from rfdetr.build import build_postprocess
from rfdetr.config import ModelConfig
from rfdetr.data import DetectionLoader, LabelMap
from rfdetr.data.shards import is_address
from rfdetr.errors import InputError
from rfdetr.evaluation import DetectionMetrics, f1_sweep
from rfdetr.export.exported import ExportedModel
from rfdetr.trained import make_model, read_trained
from rfdetr.training.command_line import shown_log
from rfdetr.training.config import RunConfig
from rfdetr.training.data import RunData, build_eval_loader, open_eval_sets, open_split
from rfdetr.training.device import choose_device
from rfdetr.training.parsing import make_config, make_parser, parse_over, plain_errors

logger = logging.getLogger(__name__)


def evaluate(
    checkpoint: str | os.PathLike | dict[str, Any], split: str = "val", *, use_ema: bool = False, **settings: Any
) -> dict[str, Any]:
    """Evaluate a checkpoint, ours or a published one; all that ``tools/eval.py`` does.

    Args:
        checkpoint: a path, a published name, an exported ONNX file, or what `read_trained` returned.
        split: "val" or "test".
        use_ema: evaluate the averaged weights, where a file holds both.
        settings: go over those of the checkpoint: ``data={"dataset_dir": "..."}``, ``model={"resolution": 512}``, ...

    Returns:
        dict with `metrics` under the names of training (``val/mAP_50_95``), `coco`: COCO's twelve numbers, and `per_class`; with
        the val split `sets`: the last two of each of eval.sets, whose metrics are beside the others (``night/mAP_50_95``).

    Raises:
        InputError: the checkpoint or the data are not what they should be.
    """
    content = checkpoint if isinstance(checkpoint, dict) else read_trained(checkpoint)
    config = config_of(content, settings)
    with shown_log(), process_group(choose_device(config), config.train.timeout_minutes):
        return evaluate_checkpoint(content, config, split, use_ema=use_ema)


def config_of(checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a checkpoint's run, with other settings over it."""
    parser = make_parser(RunConfig, "")
    with plain_errors():
        arguments = parse_over(RunConfig, parser, trusted_settings(checkpoint["args"]),
                               lambda: parser.parse_object(dict(settings)))
    return make_config(RunConfig, parser, arguments)


def trusted_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is taken from a checkpoint's settings: they are data, so nothing in them is imported, fetched or made.

    Data at an address, or outside of their folder, have to be named by the user.
    """
    settings = dict(settings) if isinstance(settings, Mapping) else {}
    data, own = (dict(settings[name]) if isinstance(settings.get(name), Mapping) else {} for name in ("data", "eval"))
    data.pop("augment", None)  # may name classes
    if data.get("format") == "shapes":  # would be drawn where they are missing
        data["format"] = "auto"
    for section, values, name, is_foreign in (("data", data, "dataset_dir", is_address), ("data", data, "splits", _leads_outside),
                                              ("eval", own, "sets", _has_address)):
        if values.get(name) is not None and is_foreign(values[name]):
            logger.warning("%s.%s: %s is not taken from a checkpoint; if it is right, give it yourself: --%s.%s", section, name,
                           values.pop(name), section, name)
    return {**settings, "data": data, "eval": own}


def _has_address(sets: Any) -> bool:
    return isinstance(sets, Mapping) and any(map(is_address, sets.values()))


def _leads_outside(splits: Any) -> bool:
    splits = splits.values() if isinstance(splits, Mapping) else []
    paths = [str(path) for given in splits if isinstance(given, Mapping) for path in given.values()]
    return any(is_address(path) or Path(path).is_absolute() or ".." in Path(path).parts for path in paths)


def evaluate_checkpoint(checkpoint: dict[str, Any], config: RunConfig, split: str, *, use_ema: bool = False) -> dict[str, Any]:
    """Evaluate what `read_trained` returned. Every rank calls it and gets all numbers."""
    model, architecture, label_map = make_model(checkpoint, ema=use_ema)
    if config.model.resolution is not None:
        resized = replace(architecture, resolution=config.model.resolution)
        if isinstance(model, ExportedModel) and resized.input_size != architecture.input_size:
            raise InputError(f"model.resolution: an exported file takes {architecture.input_size} and nothing else; leave it out")
        architecture = resized
    device = choose_device(config)
    dataset: Any = open_split(config.data, architecture, split, label_map)
    loaders = {split: build_eval_loader(config.data, dataset, architecture, device)}
    if split == "val":
        loaders |= open_eval_sets(config, RunData(dataset, dataset, architecture), device)
    metrics: dict[str, float | None] = {}
    tables = {}
    for name, loader in loaders.items():
        found, metric = _measure(model, config, architecture, name, loader, device=device)
        metrics |= finite_or_none(found)
        tables[name] = {"coco": metric.coco.coco_table(), "per_class": per_class(metric)}
    return {"metrics": metrics, **tables.pop(split), **({"sets": tables} if tables else {})}


def as_trained_on(targets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave crowds out of the targets of an evaluation, and cut boxes at the edge of the image, as training does."""
    prepared = []
    for target in targets:
        corners = cxcywh_to_xyxy(target["boxes"]).clamp(0, 1)
        sizes = corners[:, 2:] - corners[:, :2]
        kept = (target["iscrowd"] == 0) & (sizes > 0).all(dim=1)
        objects = {name: target[name] for name in OF_OBJECTS if name in target}
        objects["boxes"] = torch.cat([corners[:, :2] + sizes / 2, sizes], dim=1)
        prepared.append({**target, **{name: value[kept] for name, value in objects.items()}})
    return prepared


def iou_types(architecture: ModelConfig) -> tuple[str, ...]:
    return ("bbox", "segm") if architecture.segmentation_head else ("bbox",)


def evaluate_split(
    model: nn.Module, config: RunConfig, architecture: ModelConfig, label_map: LabelMap, split: str, *,
    device: torch.device, after_batch: Callable | None = None,
) -> tuple[dict[str, float], DetectionMetrics]:
    """Evaluate a split with the settings of the run's own evaluations. Every rank calls it.

    Returns:
        the metrics under the names of training, such as ``test/mAP_50_95``, and the metric object, which knows more.
    """
    loader = build_eval_loader(config.data, open_split(config.data, architecture, split, label_map), architecture, device)
    return _measure(model, config, architecture, split, loader, device=device, after_batch=after_batch)


def _measure(
    model: nn.Module, config: RunConfig, architecture: ModelConfig, name: str, loader: DetectionLoader, *,
    device: torch.device, after_batch: Callable | None = None,
) -> tuple[dict[str, float], DetectionMetrics]:
    dataset: Any = loader.dataset
    metric = DetectionMetrics(
        dataset.label_map.names, iou_types=iou_types(architecture), max_dets=config.eval.max_dets,
        per_class=config.eval.per_class, with_coco_table=True,
    )
    found = run_evaluation({name: model.to(device)}, loader, build_postprocess(architecture), {name: metric}, device=device,
                           precision=config.eval.precision, after_batch=after_batch)
    return {f"{name}/{key}": value for key, value in found[name].items()}, metric


def per_class(metric: DetectionMetrics) -> dict[str, dict[str, float]]:
    """Return AP of each class with objects, and precision, recall and F1 at the confidence of the best macro F1."""
    matches = metric.coco.matches()
    at_best = f1_sweep(matches)["per_class"]
    values = {iou_type: metric.coco.per_class(iou_type) for iou_type in metric.coco.iou_types}
    rows = {}
    for label in sorted(next(iter(values.values()))):
        precisions = {"AP" if iou_type == "bbox" else "segm_AP": found.get(label, -1.0) for iou_type, found in values.items()}
        rows[metric.class_name(label)] = {"objects": matches[label].num_targets, **precisions, **at_best.get(label, {})}
    return rows


def finite_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Put metrics into what JSON has."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
