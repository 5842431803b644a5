"""Plots of a run: its curves, precision over recall, confusion between classes. matplotlib is optional: without it, no plots."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rfdetr.plots.colors import class_color, ink
from rfdetr.plots.text import chart_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MAX_NAMED_CLASSES = 15  # more classes are not all in a legend
NUM_EXTREMES = 6  # classes with a name where there are more
MAX_NUMBERED_CLASSES = 25  # of a confusion matrix


class Series(NamedTuple):
    """The values of one scalar over the run."""

    steps: list[int]
    values: list[float]


class Panel(NamedTuple):
    """One of the plots of curves.png: what is written at a line, and the line's tag in metrics.jsonl."""

    title: str
    tags: dict[str, str]
    unit: bool = False  # the values lie in 0..1
    colors: Mapping[str, int] = MappingProxyType({})  # labels of classes; others have the colours of their places


def read_scalars(path: Path) -> dict[str, Series]:
    """Read metrics.jsonl: tag -> its finite values. Lines that are not whole are left out (a killed run may end in one)."""
    scalars: dict[str, Series] = {}
    for row in _rows(path):
        for tag, value in row.items():
            if tag not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value):
                series = scalars.setdefault(tag, Series([], []))
                series.steps.append(row["step"])
                series.values.append(value)
    return scalars


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, KeyError, TypeError):
            continue
        yield row


def plot_curves(metrics_file: Path, path: Path, *, steps_per_epoch: int, class_names: Sequence[str] = ()) -> bool:
    """Plot loss, learning rate and metrics over the epochs; False if there is nothing to plot, or nothing to plot with.

    Args:
        steps_per_epoch: after the last evaluation; what was before it, the file says.
        class_names: give each class its colour.
    """
    scalars = read_scalars(metrics_file)
    panels = [panel for panel in _panels(scalars, class_names) if any(tag in scalars for tag in panel.tags.values())]
    if not panels:
        logger.warning("%s is not drawn: %s holds no values of training or evaluation", path, metrics_file)
        return False
    columns = min(3 if len(panels) <= 6 else 4, len(panels))
    rows = -(-len(panels) // columns)
    ends = _epoch_ends(metrics_file, steps_per_epoch)

    def draw(figure: Figure) -> None:
        for index, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(rows, columns, index + 1), panel, scalars, ends)

    return _save_figure(path, (5.2 * columns, 3.6 * rows), draw)


def plot_pr_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], class_names: Sequence[str], path: Path, *, model: str
) -> bool:
    """Plot precision over recall at IoU 0.5, for each class and their mean; of many classes the best and the worst are named.

    Args:
        curves: class name -> recall (n,), precision (n,), on the same recalls for all classes.
        class_names: of all labels in their order, which gives the colours.
        model: what is shown, for the title.
    """
    if not curves:
        logger.warning("%s is not drawn: no class has objects in this split", path)
        return False
    mean = np.mean([precision for _, precision in curves.values()], axis=0)
    labels = {name: label for label, name in enumerate(class_names)}
    ranked = sorted(curves, key=lambda name: -curves[name][1].mean())
    named = ranked if len(ranked) <= MAX_NAMED_CLASSES else [*ranked[:NUM_EXTREMES], *ranked[-NUM_EXTREMES:]]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for recall, precision in curves.values() if len(named) < len(ranked) else ():
            axes.plot(recall, precision, color="0.82", linewidth=0.5)
        for name in named:
            recall, precision = curves[name]
            axes.plot(recall, precision, linewidth=1.3, label=f"{chart_text(name)}  {precision.mean():.3f}",
                      **_style(labels.get(name, 0)))
        axes.plot(recall, mean, color="black", linewidth=2.5, label=f"mean of {len(curves)}  {mean.mean():.3f}")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02),
                 title=f"Precision over recall at IoU 0.5: {model}")
        axes.grid(alpha=0.3)
        extremes = f", the best and worst {NUM_EXTREMES}" if len(named) < len(ranked) else ""
        axes.legend(title=f"AP at IoU 0.5{extremes}", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return _save_figure(path, (8.6, 5.2), draw)


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], path: Path, *, score_threshold: float, model: str) -> bool:
    """Plot which class was taken for which; of many classes those with the most errors, and the others together.

    Args:
        confusion: (K+1, K+1) counts; rows: true class, then background; columns: predicted class, then missed.
        score_threshold: from which on detections were counted; for the title.
        model: what is shown, for the title.
    """
    confusion, names = _most_confused(confusion, class_names)
    size = len(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(max(4.5, 1.8 + 0.5 * size), 16.0)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(size), [*names, "missed"], rotation=90)
        axes.set_yticks(range(size), [*names, "background"])
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(f"{model}\nscore {score_threshold:.2f} or better, IoU 0.5", fontsize=11)
        axes.axhline(size - 1.5, color="0.4", linewidth=1)
        axes.axvline(size - 1.5, color="0.4", linewidth=1)
        for row, column in np.argwhere(confusion > 0):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{confusion[row, column]}", ha="center", va="center", fontsize=8, color=color)
        figure.colorbar(image, ax=axes, shrink=0.7, label="share of the row")

    return _save_figure(path, (side + 1.4, side), draw)


def _most_confused(confusion: np.ndarray, class_names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the counts and names to be shown: where there are many classes, those with few errors are taken together."""
    num_classes = len(class_names)
    names = [chart_text(name) for name in class_names]
    if num_classes <= MAX_NUMBERED_CLASSES:
        return confusion, names
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    ranked = np.argsort(-(errors.sum(axis=0) + errors.sum(axis=1))[:num_classes], kind="stable")
    shown = np.sort(ranked[: MAX_NUMBERED_CLASSES - 1])
    groups = np.full(num_classes + 1, len(shown))  # row of each class: the others' is the last but one
    groups[shown], groups[num_classes] = np.arange(len(shown)), len(shown) + 1
    counts = np.zeros((len(shown) + 2, len(shown) + 2), dtype=np.int64)
    np.add.at(counts, (groups[:, None], groups[None]), confusion)
    return counts, [*(names[label] for label in shown), f"{num_classes - len(shown)} others"]


def _epoch_ends(metrics_file: Path, steps_per_epoch: int) -> tuple[list[float], list[float]]:
    """Return steps and the epochs that they end, from those of the evaluations on; for `np.interp`."""
    steps, epochs = [0.0], [0.0]
    for row in _rows(metrics_file):
        if row.get("epoch", 0) > epochs[-1] and any(tag.startswith("val/") for tag in row):
            steps.append(row["step"])
            epochs.append(row["epoch"])
    beyond = 10**6
    return [*steps, steps[-1] + beyond * steps_per_epoch], [*epochs, epochs[-1] + beyond]


def _panels(scalars: Mapping[str, Series], class_names: Sequence[str] = ()) -> list[Panel]:
    """Choose what to plot of the scalars that there are."""
    terms = [tag for tag in ("loss_ce", "loss_bbox", "loss_giou", "loss_mask_ce", "loss_mask_dice") if f"train/{tag}" in scalars]
    models = {"regular": "val/", "ema": "val/ema_"}
    losses = {"training": "train/loss", **{f"val, {name}": f"{prefix}loss" for name, prefix in models.items()}}
    sets = {tag.partition("/")[0]: tag for tag in scalars if tag.endswith("/mAP_50_95") and not tag.startswith("val/")}
    model = "val/ema_" if "val/ema_mAP_50_95" in scalars else "val/"
    classes = {tag.removeprefix(f"{model}AP/"): tag for tag in scalars if tag.startswith(f"{model}AP/")}
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
        panels.append(Panel(f"AP 50:95 by class ({of_model})", classes, unit=True,
                            colors={name: label for label, name in enumerate(class_names)}))
    return panels


def _draw_panel(
    axes: Axes, panel: Panel, scalars: Mapping[str, Series], epoch_ends: tuple[Sequence[float], Sequence[float]]
) -> None:
    lines = {name: scalars[tag] for name, tag in panel.tags.items() if tag in scalars}
    for place, (name, series) in enumerate(lines.items()):
        marker = "o" if len(series.steps) < 40 else None
        axes.plot(np.interp(series.steps, *epoch_ends), series.values, label=chart_text(name), marker=marker, markersize=3,
                  linewidth=1.4, **_style(panel.colors.get(name, place)))
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlim(left=0)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    axes.grid(alpha=0.3)
    values = np.concatenate([series.values for series in lines.values()])
    if panel.unit:
        values = values[values >= 0]  # -1: there was nothing to measure
        axes.set_ylim(0, min(1.02, max(1.1 * values.max(initial=0), 0.01)))
    elif len(values) > 20:  # a wild beginning must not flatten the rest
        low, high = values.min(), min(values.max(), 2 * np.quantile(values, 0.9))
        axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
    if len(lines) > 1:
        axes.legend(fontsize=8, ncols=2 if len(lines) > 6 else 1)


def _style(label: int) -> dict[str, Any]:
    """Return how a class's line looks: also in grey, neighbours differ."""
    return {"color": ink(class_color(label)), "linestyle": ("-", "--", "-.", ":")[label % 4]}


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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may be in any script
        figure.savefig(path, bbox_inches="tight", pad_inches=0.1)
    return True
