"""Plots of a run: its curves, precision over recall, confusion between classes. matplotlib is optional: without it, no plots."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rfdetr.plots.colors import class_color, ink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MAX_NAMED_CLASSES = 15  # more classes are drawn without a legend
MAX_NUMBERED_CLASSES = 25  # a larger confusion matrix is drawn without numbers


class Series(NamedTuple):
    """The values of one scalar over the run."""

    steps: list[int]
    values: list[float]


class Panel(NamedTuple):
    """One of the plots of curves.png: what is written at a line, and the line's tag in metrics.jsonl."""

    title: str
    tags: dict[str, str]
    unit: bool = False  # the values lie in 0..1
    log: bool = False


def read_scalars(path: Path) -> dict[str, Series]:
    """Read metrics.jsonl: tag -> its finite values. Lines that are not whole are left out (a killed run may end in one)."""
    scalars: dict[str, Series] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, KeyError, TypeError):
            continue
        for tag, value in row.items():
            if tag not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value):
                series = scalars.setdefault(tag, Series([], []))
                series.steps.append(step)
                series.values.append(value)
    return scalars


def plot_curves(metrics_file: Path, path: Path) -> bool:
    """Plot loss, learning rate and metrics over the steps; False if there is nothing to plot, or nothing to plot with."""
    scalars = read_scalars(metrics_file)
    panels = [panel for panel in _panels(scalars) if any(tag in scalars for tag in panel.tags.values())]
    if not panels:
        logger.warning("%s is not drawn: %s holds no values of training or evaluation", path, metrics_file)
        return False
    columns = min(3 if len(panels) <= 6 else 4, len(panels))
    rows = -(-len(panels) // columns)

    def draw(figure: Figure) -> None:
        for index, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(rows, columns, index + 1), panel, scalars)

    return _save_figure(path, (5.2 * columns, 3.6 * rows), draw)


def plot_pr_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path) -> bool:
    """Plot precision over recall at IoU 0.5, for each class and their mean.

    Args:
        curves: class name -> recall (n,), precision (n,), on the same recalls for all classes.
    """
    if not curves:
        logger.warning("%s is not drawn: no class has objects in this split", path)
        return False
    mean = np.mean([precision for _, precision in curves.values()], axis=0)
    few = len(curves) <= MAX_NAMED_CLASSES

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for label, (name, (recall, precision)) in enumerate(curves.items()):
            style = {"label": f"{name}  {precision.mean():.3f}", "color": ink(class_color(label))} if few else {"color": "0.75"}
            axes.plot(recall, precision, linewidth=1.2 if few else 0.6, **style)
        axes.plot(recall, mean, color="black", linewidth=2.5, label=f"mean of {len(curves)}  {mean.mean():.3f}")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision over recall at IoU 0.5")
        axes.grid(alpha=0.3)
        axes.legend(title="AP at IoU 0.5", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return _save_figure(path, (8.0, 5.2), draw)


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], path: Path, *, score_threshold: float) -> bool:
    """Plot which class was taken for which.

    Args:
        confusion: (K+1, K+1) counts; rows: true class, then background; columns: predicted class, then missed.
        score_threshold: from which on detections were counted; for the title.
    """
    size = len(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(max(4.5, 1.8 + 0.62 * size), 16.0)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(size), [*class_names, "missed"], rotation=90)
        axes.set_yticks(range(size), [*class_names, "background"])
        axes.set(xlabel="predicted", ylabel="true", title=f"Detections with score ≥ {score_threshold:.2f} at IoU 0.5")
        axes.axhline(size - 1.5, color="0.4", linewidth=1)
        axes.axvline(size - 1.5, color="0.4", linewidth=1)
        if size <= MAX_NUMBERED_CLASSES:
            for row, column in np.argwhere(confusion > 0):
                color = "white" if shares[row, column] > 0.6 else "black"
                axes.text(column, row, f"{confusion[row, column]}", ha="center", va="center", fontsize=8, color=color)
        figure.colorbar(image, ax=axes, shrink=0.7, label="share of the row")

    return _save_figure(path, (side + 1.4, side), draw)


def _panels(scalars: Mapping[str, Series]) -> list[Panel]:
    """Choose what to plot of the scalars that there are."""
    terms = [tag for tag in ("loss_ce", "loss_bbox", "loss_giou", "loss_mask_ce", "loss_mask_dice") if f"train/{tag}" in scalars]
    models = {"regular": "val/", "ema": "val/ema_"}
    losses = {"training": "train/loss", **{f"val, {name}": f"{prefix}loss" for name, prefix in models.items()}}
    sets = {tag.partition("/")[0]: tag for tag in scalars if tag.endswith("/mAP_50_95") and not tag.startswith("val/")}
    model = "val/ema_" if "val/ema_mAP_50_95" in scalars else "val/"
    classes = [tag.removeprefix(f"{model}AP/") for tag in scalars if tag.startswith(f"{model}AP/")]
    of_model = "ema" if model == "val/ema_" else "regular"
    panels = [
        Panel("loss", losses),
        Panel("loss terms of the last layer, unweighted", {term.removeprefix("loss_"): f"train/{term}" for term in terms}),
        Panel("learning rate", {"lr": "train/lr"}),
        Panel("mAP 50:95", {name: f"{prefix}mAP_50_95" for name, prefix in models.items()} | sets, unit=True),
        Panel("mAP 50", {name: f"{prefix}mAP_50" for name, prefix in models.items()}, unit=True),
        Panel(f"at the best threshold ({of_model})", {tag: f"{model}{tag}" for tag in ("F1", "precision", "recall")}, unit=True),
    ]
    if any(tag.startswith("val/segm_") for tag in scalars):
        panels.append(Panel("mask mAP 50:95", {name: f"{prefix}segm_mAP_50_95" for name, prefix in models.items()}, unit=True))
    if 1 < len(classes) <= MAX_NAMED_CLASSES:
        panels.append(Panel(f"AP 50:95 by class ({of_model})", {name: f"{model}AP/{name}" for name in classes}, unit=True))
    return panels


def _draw_panel(axes: Axes, panel: Panel, scalars: Mapping[str, Series]) -> None:
    lines = {name: scalars[tag] for name, tag in panel.tags.items() if tag in scalars}
    for label, (name, series) in enumerate(lines.items()):
        marker = "o" if len(series.steps) < 40 else None
        color = ink(class_color(label))
        axes.plot(series.steps, series.values, label=name, color=color, marker=marker, markersize=3, linewidth=1.4)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if panel.unit:
        axes.set_ylim(0, 1)
    else:
        axes.set_ylim(bottom=min(0.0, min(min(series.values) for series in lines.values())))
    if len(lines) > 1:
        axes.legend(fontsize=8, ncols=2 if len(lines) > 6 else 1)


def _save_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> bool:
    """Make a figure of `size` inches without pyplot, which would pick a window system and keep global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("%s is not drawn: matplotlib is not installed (pip install matplotlib)", path)
        return False
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    figure.savefig(path)
    return True
