"""The table of a run on the console: which columns it has, and what is written in them."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engine.trainer import Trainer
from hooks.best_checkpoint import BestCheckpointHook
from hooks.eval_loss import EvalLossHook
from hooks.monitor import direction

NOTHING = "-"


class Column(NamedTuple):
    """`key` in the row's values; where there is no room, columns of the highest `rank` are left out first."""

    key: str
    title: str
    rank: int = 0

    @property
    def width(self) -> int:
        return max(len(self.title), 7)


def columns_of_run(trainer: Trainer, room: int | None = None) -> list[Column]:
    """Return the columns that this run can fill, as far as there is room for them (characters; None: for all)."""
    evaluation = next((hook for hook in trainer.hooks if hasattr(hook, "evaluate_and_publish")), None)
    models = [name for name in getattr(evaluation, "models", ("regular", "ema")) if name in trainer.eval_models]
    prefixes = {name: ("val/", "") if name == "regular" else (f"val/{name}_", f"{name.upper()} ") for name in models}
    has_masks, has_loss = "loss_mask_ce" in trainer.losses, any(isinstance(hook, EvalLossHook) for hook in trainer.hooks)
    columns = [Column("epoch", "epoch"), Column("loss", "loss")]
    columns += [Column(f"loss_{term}", term, 5) for term in ("ce", "bbox", "giou", "mask_ce", "mask_dice")
                if f"loss_{term}" in trainer.losses]
    for prefix, title in prefixes.values():
        columns += [Column(f"{prefix}loss", f"{title}val loss", 2)] if has_loss else []
        columns += [Column(f"{prefix}mAP_50_95", f"{title}mAP")]
        columns += [Column(f"{prefix}segm_mAP_50_95", f"{title}mask mAP")] if has_masks else []
        columns += [Column(f"{prefix}mAP_50", f"{title}mAP_50", 3), Column(f"{prefix}F1", f"{title}F1", 4)]
    for name in getattr(evaluation, "sets", ()):
        columns += [Column(f"{name}/{prefix.removeprefix('val/')}mAP_50_95", f"{name} {title}mAP", 1)
                    for prefix, title in prefixes.values()]
    columns += [Column("images/s", "images/s", 3)]
    columns += [Column("memory", "memory", 4)] if trainer.device.type == "cuda" else []
    columns += [Column("left", "left")]
    while room is not None and len(header(columns)) > room and (rank := max(column.rank for column in columns)):
        columns = [column for column in columns if column.rank < rank]
    return columns


def header(columns: Sequence[Column]) -> str:
    """Return the first line of the table."""
    return shown_row(columns, [column.title for column in columns])


def shown_row(columns: Sequence[Column], texts: Sequence[str]) -> str:
    """Return a line of the table."""
    return "  ".join(text.rjust(column.width) for column, text in zip(columns, texts))


def cells(trainer: Trainer, columns: Sequence[Column], row: Mapping[str, float | str]) -> list[str]:
    """Return what is written in the columns: what was not measured as "-", what is the best so far with a star."""
    best = _best_keys(trainer, columns, row)
    return [_text(column.key, row.get(column.key, math.nan)) + ("*" if column.key in best else "") for column in columns]


def _text(key: str, value: float | str) -> str:
    if isinstance(value, str):
        return value or NOTHING
    is_metric = direction(key) > 0
    if not math.isfinite(value) or is_metric and value < 0:  # -1: there is nothing to measure
        return NOTHING
    return f"{value:.1f}" if key == "images/s" else f"{value:.4f}" if "/" in key and is_metric else f"{value:.4g}"


def _best_keys(trainer: Trainer, columns: Sequence[Column], row: Mapping[str, float | str]) -> set[str]:
    """Return the columns to be marked: those of metrics that have just become the best, or of their model's mAP instead."""
    keys, marked = {column.key for column in columns}, set()
    for hook in [hook for hook in trainer.hooks if isinstance(hook, BestCheckpointHook)]:
        for name, monitor in hook.monitors.items():
            if monitor in row and direction(monitor) * row[monitor] == hook.best[name]:
                own = "val/mAP_50_95" if name == "regular" else f"val/{name}_mAP_50_95"
                marked.add(monitor if monitor in keys else own)
    return marked
