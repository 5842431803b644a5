"""The model of a run: made with the weights that it starts from, and filled with its best ones at the end."""

import copy
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from engine import Hook, load_checkpoint
from engine.distributed import sync_batch_norms
from hooks import EMAHook
from rfdetr.build import build_model
from rfdetr.config import ModelConfig
from rfdetr.data import LabelMap
from rfdetr.errors import InputError
from rfdetr.models.detector import RFDETR
from rfdetr.models.freeze import freeze
from rfdetr.training.command_line import bad_input
from rfdetr.training.config import DetectorConfig, RunConfig
from rfdetr.weights import (
    average_can_continue,
    checkpoint_payload,
    load_backbone_weights,
    load_weights,
    published_name,
    read_checkpoint,
)

logger = logging.getLogger(__name__)


def read_start(config: DetectorConfig) -> dict[str, Any] | None:
    """Read the checkpoint that the model starts from, None for random weights."""
    published = published_name(config.variant)
    if config.weights == "published":
        if published is None:
            raise InputError(f"model.weights: published: there are no published weights of {config.variant}; leave it out")
        return read_checkpoint(published)
    if config.weights is not None:
        return read_checkpoint(config.weights)
    if published is not None and config.backbone_weights is None:
        logger.warning("the model starts from random weights, which takes a large data set and long training; its published ones "
                       "are taken by --model.weights published")
    elif config.backbone_weights is None:
        logger.info("the model starts from random weights")
    return None


def make_model(config: RunConfig, architecture: ModelConfig, start: dict[str, Any] | None, label_map: LabelMap) -> nn.Module:
    """Make the model as it starts: its weights, what is frozen of it."""
    model = build_model(architecture, gradient_checkpointing=config.model.gradient_checkpointing)
    if start is not None:
        fit_head = config.model.resize_head or config.model.weights == "published"
        load_weights(model, start, ema=config.model.ema_weights, resize_head=fit_head, label_map=label_map)
    if config.model.backbone_weights is not None:
        load_backbone_weights(model, config.model.backbone_weights)
    freeze(model, config.model.freeze)
    if config.train.sync_bn:
        with bad_input("train."):
            model = sync_batch_norms(model)
    return model


def compile_parts(model: nn.Module, criterion: nn.Module, *, blocks_only: bool) -> None:
    """Compile what can be of model and loss, each part when it first runs, and anew for other sizes; say which parts.

    Nothing is left uncompiled without a word: code that cannot be compiled whole, and more variants of it than there is room
    for, are errors of `torch._dynamo.exc`.
    """
    from torch._dynamo import config as dynamo  # takes a while

    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"  # PyTorch 2.6
    setattr(dynamo, limit, 64)  # sizes, windowed and global blocks, training and evaluation, frozen blocks
    setattr(dynamo, f"fail_on_{limit}_hit".replace("cache_size", "cache"), True)
    parts: Any = model
    units: list[nn.Module] = [*(parts.blocks if blocks_only else getattr(parts, "compile_units", [model])),
                              *getattr(criterion, "compile_units", [])]
    for unit in units:
        unit.compile(fullgraph=True)
    logger.info("compiled: %s; all else of model and loss runs as it is", ", ".join(
        f"{count} {name}" for name, count in Counter(type(unit).__name__ for unit in units).items()))


def continue_average(hooks: Sequence[Hook], model: nn.Module, start: dict[str, Any], label_map: LabelMap) -> None:
    """Let the EMA go on from the average that a checkpoint holds beside its weights, where that is an average of this model."""
    for hook in hooks:
        if isinstance(hook, EMAHook) and average_can_continue(model, start, label_map=label_map):
            hook.load_state_dict(average_state(hook, model, start, label_map))
            logger.info("the average goes on from the checkpoint's own")


def average_state(hook: EMAHook, model: nn.Module, content: dict[str, Any], label_map: LabelMap | None = None) -> dict[str, Any]:
    """Return the state in which an EMA goes on from the average that a checkpoint of the model holds."""
    average = copy.deepcopy(model)
    load_weights(average, content, ema=True, label_map=label_map)
    warmed_up = math.ceil(10 * hook.tau)  # its decay must not grow from 0 again, or the average would be lost at once
    return {"num_updates": warmed_up, "average": average.state_dict()}


def best_content(model: nn.Module, *, config: ModelConfig, args: dict[str, Any], label_map: LabelMap) -> dict[str, Any]:
    """Return what a best file holds of a model: in the published layout, unless the model is somebody's own."""
    if isinstance(model, RFDETR):
        return checkpoint_payload(model, config, args=args, label_map=label_map)
    return {"model": model.state_dict(), "args": args, "label_map": label_map.to_dict()}


def load_best(model: nn.Module, path: Path) -> dict[str, Any]:
    """Fill the model from a best file, and return what the file holds."""
    if isinstance(model, RFDETR):
        content = read_checkpoint(path)
        load_weights(model, content)
    else:
        content = load_checkpoint(path)
        model.load_state_dict(content["model"])
    return content
