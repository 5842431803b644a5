"""The curves of runs over their epochs, as SVG."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from rfdetr.plots.colors import class_color, ink
from rfdetr.report.markup import Html, number, tag
from rfdetr.report.read import Run

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 460, 240, 52, 28, 10, 12
MAX_POINTS = 400  # of a line; more could not be told apart
MAX_OWN = 12  # panels of values that hooks log
DASHES = ("none", "6 3", "2 2", "8 2 2 2")
PANELS = {  # title -> what is written at a line -> its tag
    "Loss": {"training": "train/loss", "validation": "val/loss", "validation, EMA": "val/ema_loss"},
    "mAP 50:95": {"weights": "val/mAP_50_95", "EMA": "val/ema_mAP_50_95"},
    "mAP 50": {"weights": "val/mAP_50", "EMA": "val/ema_mAP_50"},
    "Mask mAP 50:95": {"weights": "val/segm_mAP_50_95", "EMA": "val/ema_segm_mAP_50_95"},
    "F1 at the best threshold": {"weights": "val/F1", "EMA": "val/ema_F1"},
    "Learning rate": {"learning rate": "train/lr"}, "Images a second": {"images/s": "train/images_per_s"},
}


class Line(NamedTuple):
    """One line of a panel; a value that is None is a gap."""

    name: str
    points: list[tuple[float, float | None]]
    color: str
    dash: str


def draw_curves(runs: Sequence[Run]) -> Html:
    """Draw a panel for each of `PANELS` of which there is something; lines of several runs differ in colour by run."""
    epochs = [_epochs(run.lines) for run in runs]
    figures = []
    for title, tags in (PANELS | _own_panels(runs)).items():
        lines = []
        for place, run in enumerate(runs):
            for kind, (label, name) in enumerate(tags.items()):
                points = [(epoch, _finite(line[name])) for epoch, line in zip(epochs[place], run.lines) if name in line]
                if any(value is not None for _, value in points):
                    text = label if len(runs) == 1 else f"{run.name}, {label}" if len(tags) > 1 else run.name
                    hue, dash = (kind, 0) if len(runs) == 1 else (place, kind)
                    color = " ".join(f"{255 * part:.0f}" for part in ink(class_color(hue)))
                    lines.append(Line(text, points, f"rgb({color})", DASHES[dash]))
        if lines:
            figures.append(_figure(title, lines))
    return tag("div", *figures, class_="curves") if figures else tag("p", "No values of training or evaluation yet.")


def _own_panels(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Return a panel for each value that a hook has logged, and for the AP of each further evaluation set."""
    names = sorted({name for run in runs for line in run.lines for name in line if "/" in name})
    published = {name.partition("/")[2] for name in names if name.startswith("val/")} - {"mAP_50_95"}
    own = [name for name in names if not name.startswith(("train/", "val/", "test/"))
           and name.partition("/")[2].removeprefix("ema_") not in published]
    return {name: {name: name} for name in own[:MAX_OWN]}


def _epochs(lines: Sequence[dict[str, Any]]) -> list[float]:
    """Return where each line stands in epochs: evaluations are at their ends, and lines between them in proportion."""
    ends = {0: 0.0} | {line["step"]: line["epoch"] for line in lines if line.get("epoch") and any(map(_is_of_evaluation, line))}
    if len(ends) == 1:
        for line in lines:  # the first line after the end of an epoch
            if (line.get("epoch") or 0) > max(ends.values()):
                ends[line["step"]] = line["epoch"]
    steps = sorted(ends)
    return [_between(line["step"], steps, [ends[step] for step in steps], lines[-1]["step"]) for line in lines]


def _between(step: float, steps: list[int], epochs: list[float], last: float) -> float:
    if len(steps) == 1:
        return step / max(last, 1)  # in the first epoch, whose length is not known yet
    after = min(max(bisect_left(steps, step), 1), len(steps) - 1)
    rate = (epochs[after] - epochs[after - 1]) / max(steps[after] - steps[after - 1], 1)
    return epochs[after] + (step - steps[after]) * rate


def _is_of_evaluation(name: str) -> bool:
    return name.startswith("val/")


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value != -1 else None


def _figure(title: str, lines: Sequence[Line]) -> Html:
    values = [value for line in lines for _, value in line.points if value is not None]
    low, high = min(0.0, *values), max(0.0, *values)
    across = _ticks(0, max(1.0, max(epoch for line in lines for epoch, _ in line.points)), 8, least=1)
    up = _ticks(low, high if high > low else low + 1, 5)
    x_scale = (WIDTH - LEFT - RIGHT) / across[-1]
    y_scale = (HEIGHT - TOP - BOTTOM) / (up[-1] - up[0])

    def place(epoch: float, value: float) -> tuple[float, float]:
        return round(LEFT + epoch * x_scale, 1), round(HEIGHT - BOTTOM - (value - up[0]) * y_scale, 1)

    parts = []
    for tick in up:
        _, y = place(0, tick)
        parts += [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"),
                  tag("text", f"{tick:.3g}", x=LEFT - 6, y=y + 4, text_anchor="end")]
    for tick in across:
        x, _ = place(tick, up[0])
        parts.append(tag("text", f"{tick:g}", x=x, y=HEIGHT - 9, text_anchor="middle"))
    for line in lines:
        for part in _parts(line.points):
            ends = [place(*point) for point in part]
            style = {"stroke": line.color, "stroke_dasharray": line.dash}
            parts.append(tag("polyline", points=" ".join(f"{x},{y}" for x, y in ends), **style))
            parts += [tag("circle", cx=x, cy=y, r=2.5, fill=line.color) for x, y in ends if len(ends) < 30]
    legend = [tag("li", tag("svg", tag("line", x1=0, x2=24, y1=6, y2=6, stroke=line.color, stroke_dasharray=line.dash),
                            viewBox="0 0 24 12", width=24, height=12, aria_hidden="true"), f" {line.name} ",
                  tag("b", _shown(next(value for _, value in reversed(line.points) if value is not None)))) for line in lines]
    picture = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title} over epochs")
    return tag("figure", tag("figcaption", title, tag("small", " over epochs, with the last value")), picture, tag("ul", *legend))


def _parts(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Cut a line at its gaps, and leave out what cannot be seen."""
    every = max(1, math.ceil(len(points) / MAX_POINTS))
    parts: list[list[tuple[float, float]]] = [[]]
    for place, (epoch, value) in enumerate(points):
        if value is None:
            parts.append([])
        elif place % every == 0 or place == len(points) - 1:
            parts[-1].append((epoch, value))
    return [part for part in parts if part]


def _ticks(low: float, high: float, number_of: int, least: float = 0.0) -> list[float]:
    """Return round numbers from `low` or below to `high` or above, `least` apart or more."""
    raw = max((high - low) / number_of, least, 1e-12)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    return [step * place for place in range(first, max(first + 1, math.ceil(high / step - 1e-9)) + 1)]


def _shown(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 0.001 else number(value)
