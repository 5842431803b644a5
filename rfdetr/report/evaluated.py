"""The parts of the page that follow the score threshold: classes, errors, sizes, pictures."""

import base64
import json
from collections.abc import Mapping, Sequence

import numpy as np

from rfdetr.evaluation.f1 import THRESHOLDS
from rfdetr.plots.colors import class_color
from rfdetr.report.detections import Picture
from rfdetr.report.errors import IGNORED, KINDS, RIGHT, SIZES, Errors, counts_by_threshold, find_errors, gains
from rfdetr.report.markup import Html, joined, number, section, table, tag
from rfdetr.report.read import Run

DEFAULT_THRESHOLD = 0.5  # where no evaluation has found a better one
MIN_DRAWN_SCORE = 0.05  # of detections in the pictures
MAX_LEGEND = 12
CLASSES_TEXT = "AP 50:95 of boxes; from the threshold on: right (TP), wrong (FP) and not found (FN) at IoU 0.5"
TIDE = ("After TIDE: Bolya et al., A General Toolbox for Identifying Object Detection Errors, ECCV 2020, arXiv 2008.08115. What "
        "is lost (dAP) counts every detection, whatever the threshold; it does not add up, since errors hide each other.")
ERROR_TEXTS = dict(zip(KINDS, (
    "right place, wrong class", "right class, box off (IoU 0.1 to 0.5)", "wrong class and box off", "object was found already",
    "no object there (IoU below 0.1)", "object that nothing found")))


def evaluated_parts(run: Run, place: int) -> Html:
    """Return the parts that follow the score threshold."""
    evaluation, metrics, names = run.evaluation, run.best["metrics"], run.class_names
    errors = find_errors(evaluation.images)
    counts = counts_by_threshold(errors, len(names))
    best = metrics.get("F1_threshold") or DEFAULT_THRESHOLD
    at = int(np.argmin(np.abs(THRESHOLDS - best)))
    data = json.dumps({name: values.tolist() for name, values in counts.items()}, separators=(",", ":"))
    slider = tag("label", "Score threshold ", tag("input", type="range", min=0, max=len(THRESHOLDS) - 1, value=at, step=1),
                 tag("output", f"{THRESHOLDS[at]:.2f}"), tag("small", " detections that score less do not count in what follows; "
                                                             "at first the threshold of the best F1"))
    values = run.class_values
    totals = [counts[name].sum(axis=0) for name in ("objects", "right", "wrong")]
    rows = [["all objects", number(metrics.get("mAP_50_95")), *_counts(*totals, at)]]
    rows += [[name, number(values.get(name)), *_counts(counts["objects"][row], counts["right"][row], counts["wrong"][row], at)]
             for row, name in enumerate(names)]
    heads = ["class", "AP", "objects", "right", "wrong", "not found", "precision", "recall", "F1"]
    return tag(
        "div", tag("div", slider, class_="threshold"), tag("script", Html(data), type="application/json"),
        section("Classes", table(heads, rows, caption=CLASSES_TEXT, sortable=True,
                                 attributes=lambda row: {"data_class": row - 1})),
        section("Errors", _error_table(errors, counts, at)),
        section("Sizes", table(["objects", "AP", "objects", "found", "recall"], size_rows(run, counts, at),
                                caption="AP 50:95, and how many are found, by the size of the objects",
                                attributes=lambda row: {"data_size": row})),
        section("Pictures with the largest errors", *_pictures(run, errors, place)), class_="evaluated", data_run=run.name)


def _counts(objects: int, right: np.ndarray, wrong: np.ndarray, at: int) -> list[str]:
    """Return the cells that page.js writes anew when the threshold moves."""
    found, false = int(right[at]), int(wrong[at])
    ratios = (found / part if part else None for part in (found + false, objects, (objects + found + false) / 2))
    return [*map(number, (int(objects), found, false, int(objects) - found)), *map(number, ratios)]


def _error_table(errors: Errors, counts: Mapping[str, np.ndarray], at: int) -> Html:
    gained = gains(errors)
    largest = max(max(gained[kind] for kind in KINDS), 1e-9)
    rows = [[joined([kind, tag("small", " ", ERROR_TEXTS[kind])]), number(int(counts["errors"][place, at])), number(gained[kind]),
             tag("span", class_="bar", style=f"width: {max(gained[kind], 0) / largest:.0%}")] for place, kind in enumerate(KINDS)]
    text = f"Errors of boxes; AP50 is {number(gained['AP50'])}, and would be higher by so much without errors of a kind"
    made = table(["error", "number", "AP50 lost", ""], rows, caption=text, attributes=lambda row: {"data_error": row})
    return tag("div", made, tag("p", TIDE, class_="note"), class_="errors")


def size_rows(run: Run, counts: Mapping[str, np.ndarray] | None = None, at: int = 0) -> list[list[str]]:
    texts = ("small, below 32 x 32 pixels", "medium", "large, above 96 x 96 pixels")
    rows = [[text, number(run.best["metrics"].get(f"mAP_{size}"))] for size, text in zip(SIZES, texts)]
    for place, row in enumerate(rows if counts is not None else []):
        objects, found = int(counts["size_objects"][place]), int(counts["size_right"][place, at])
        row += [number(objects), number(found), number(found / objects if objects else None)]
    return rows


def _pictures(run: Run, errors: Errors, place: int) -> list[Html]:
    images, names, made = run.evaluation.images, run.class_names, []
    starts = np.cumsum([0, *(len(image.detections) for image in images)])
    object_starts = np.cumsum([0, *(len(image.targets) for image in images)])
    is_drawn = (errors.scores >= MIN_DRAWN_SCORE) & (errors.kinds != IGNORED)
    for image, picture in run.evaluation.pictures.items():
        rows = starts[image] + np.flatnonzero(is_drawn[starts[image] : starts[image + 1]])
        objects = range(object_starts[image], object_starts[image + 1])
        found = [_box(images[image].detections.boxes[row - starts[image]], int(errors.labels[row]), names, errors.scores[row],
                      "right" if errors.kinds[row] == RIGHT else KINDS[errors.kinds[row]], picture) for row in rows]
        truth = [_box(box, int(errors.object_labels[row]), names, errors.found_at[row],
                      "object" if errors.counts[row] else "crowd", picture)
                 for row, box in zip(objects, images[image].targets.boxes)]
        labels = sorted({*errors.object_labels[objects].tolist(), *errors.labels[rows].tolist()})
        made.append(_picture(picture, f"p{place}-{image}", truth, found, {_name(names, label): label for label in labels}))
    if not made:
        return [tag("p", "There are none." if run.results else "There are none yet: they are kept when the run is at its end.")]
    return [tag("p", "First what is there, then what was found. Dashed is what was not found, or is wrong."),
            tag("div", *made, class_="pictures")]


def _picture(picture: Picture, name: str, truth: list[Html], found: list[Html], classes: Mapping[str, int]) -> Html:
    height, width = picture.size
    source = f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}"
    shown = tag("image", href=source, width=width, height=height, id=name, preserveAspectRatio="none")
    sides = [
        tag("svg", first, tag("g", *boxes, class_="boxes"), viewBox=f"0 0 {width} {height}", role="img",
            aria_label=f"{text} in {picture.name}", style=f"font-size: {width / 28:.1f}px")
        for text, first, boxes in (("what is there", shown, truth), ("what was found", tag("use", href=f"#{name}"), found))
    ]
    legend = [tag("li", tag("span", class_="swatch", style=f"background: {_color(label)}"), text)
              for text, label in list(classes.items())[:MAX_LEGEND]]
    more = tag("li", f"and {len(classes) - MAX_LEGEND} more") if len(classes) > MAX_LEGEND else None
    return tag("figure", tag("figcaption", picture.name, tag("small", class_="verdict")), tag("div", *sides, class_="pair"),
               tag("ul", *legend, more))


def _box(box: np.ndarray, label: int, names: Sequence[str], score: float, kind: str, picture: Picture) -> Html:
    """Draw a box; `score` is its own, or of an object's that of the detection that found it."""
    height, width = picture.size
    x0, y0, x1, y1 = (round(float(value), 1) for value in np.clip(np.nan_to_num(box), 0, [width, height, width, height]))
    is_wrong, score = kind in KINDS, round(float(max(score, -1)), 3)
    text = f"{_name(names, label)}{f' {score:.2f}' if score >= 0 and kind not in ('object', 'crowd') else ''}"
    shape = tag("rect", tag("title", f"{text}, {kind}"), x=x0, y=y0, width=max(x1 - x0, 0.5), height=max(y1 - y0, 0.5),
                stroke=_color(label))
    note = tag("text", f"{text}, {kind}" if is_wrong else text, x=x0, y=max(y0, round(width / 28)))  # where page.js finds room
    return tag("g", shape, note, class_="wrong" if is_wrong else kind, data_kind=kind, data_score=score)


def _color(label: int) -> str:
    return "rgb({} {} {})".format(*class_color(label))


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)
