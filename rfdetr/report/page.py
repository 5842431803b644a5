"""The page itself: one file without requests, made of what the folders of runs say."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.evaluation.f1 import THRESHOLDS
from rfdetr.files import replacing_file
from rfdetr.plots.colors import class_color
from rfdetr.report.curves import draw_curves
from rfdetr.report.errors import IGNORED, KINDS, RIGHT, SIZES, Errors, counts_by_threshold, find_errors, gains
from rfdetr.report.markup import Html, duration, number, table, tag
from rfdetr.report.read import METRICS, REPORT, RESULTS, Run, flat, open_runs

MIN_DRAWN_SCORE = 0.05  # of detections in the pictures
DEFAULT_THRESHOLD = 0.5
METRIC_ROWS = {"mAP_50_95": "mAP 50:95", "mAP_50": "mAP 50", "mAP_75": "mAP 75", "segm_mAP_50_95": "mask mAP 50:95",
               "segm_mAP_50": "mask mAP 50", "F1": "F1", "precision": "precision", "recall": "recall",
               "F1_threshold": "score threshold of the best F1"}
MODEL_NAMES = {"regular": "weights as trained", "ema": "their average (EMA)", "average": "mean of the best checkpoints"}
ERROR_TEXTS = dict(zip(KINDS, (
    "right place, wrong class", "right class, box off (IoU 0.1 to 0.5)", "wrong class and box off", "object was found already",
    "no object there (IoU below 0.1)", "object that nothing found")))


def write_report(folders: Sequence[str | Path], output: Path | None = None, *, defaults: Mapping[str, Any]) -> Path:
    """Write the page of one run or several, and return where it is.

    Args:
        output: the file; None: report.html in the folder of the run, or of several in the current folder.
        defaults: nested settings of a run that sets nothing, from which differences are marked.

    Raises:
        InputError: a folder holds no run.
    """
    runs = open_runs(folders)
    path = output or (runs[0].folder / REPORT if len(runs) == 1 else Path(REPORT))
    with replacing_file(path) as temporary:
        temporary.write_text(make_page(runs, defaults), encoding="utf-8")
    return path


def make_page(runs: Sequence[Run], defaults: Mapping[str, Any], *, live: str = "") -> str:
    """Return the HTML; `live` is the state that a served page compares with the server's, to know when to load again."""
    several = len(runs) > 1
    sections = {"Summary": _summary(runs), "Curves": draw_curves(runs)}
    if several:
        sections = {"Summary": sections["Summary"], "Settings that differ": _differences(runs), "Curves": sections["Curves"],
                    "Classes side by side": _classes_of_all(runs)}
    body = [_section(title, content) for title, content in sections.items()]
    for place, run in enumerate(runs):
        body += [tag("h2", run.name, class_="run") if several else None, *_run_sections(run, place, flat(defaults))]
    title = "Training report: " + ", ".join(run.name for run in runs)
    page = resources.files("rfdetr.report")
    style, script = (Html((page / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    head = tag("head", tag("meta", charset="utf-8"), tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
               tag("title", title), tag("style", style))
    made = tag("p", f"Made {time.strftime('%Y-%m-%d %H:%M')} of ", ", ".join(str(run.folder) for run in runs), class_="made")
    content = tag("body", tag("header", tag("h1", title), made), tag("main", *body), tag("script", script), data_live=live or None)
    return "<!DOCTYPE html>\n" + tag("html", head, content, lang="en")


def _section(title: str, *content: Any) -> Html:
    return tag("section", tag("h2", title), *content)


def _summary(runs: Sequence[Run]) -> Html:
    columns = [_summary_of(run) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return table(["", *(run.name for run in runs)], [[name, *(column.get(name, "-") for column in columns)] for name in names],
                 caption="How good, which weights, when, and how long")


def _summary_of(run: Run) -> dict[str, str]:
    best, sessions = run.best, run.facts.get("sessions", [])
    metrics, seconds = best["metrics"], [session.get("seconds") for session in sessions]
    test = {name.removeprefix("test/"): value for name, value in (run.results.get("test") or {}).items()}
    return {
        "status": f"{run.status}{': ' + str(run.results['stop_reason']) if run.results.get('stop_reason') else ''}",
        "best weights": f"{MODEL_NAMES.get(best['model'], '-')}, epoch {best['epoch']}" if best["model"] else "-",
        **{text: number(metrics.get(name)) for name, text in METRIC_ROWS.items() if name in metrics},
        **{f"test {METRIC_ROWS[name]}": number(test.get(name)) for name in ("mAP_50_95", "mAP_50", "segm_mAP_50_95") if name in test},
        "epochs, steps": f"{number(run.results.get('epochs', run.last('epoch')))}, "
                         f"{number(run.results.get('steps', run.last('step')))}",
        "started": str(sessions[0].get("started", "-")) if sessions else "-",
        "took": duration(sum(filter(None, seconds))) + (f" in {len(sessions)} parts" if len(sessions) > 1 else "") if seconds else "-",
        "images a second": number(_mean(run, "train/images_per_s"), 1),
        "waiting for data": f"{_mean(run, 'train/data_wait'):.1%}" if _mean(run, "train/data_wait") is not None else "-",
        "an evaluation": duration(best.get("seconds")),
    }


def _mean(run: Run, tag_name: str) -> float | None:
    values = [line[tag_name] for line in run.lines if isinstance(line.get(tag_name), (int, float))]
    return float(np.mean(values)) if values else None


def _differences(runs: Sequence[Run]) -> Html:
    settings = [flat(run.settings) for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = [[name, *(_plain(one.get(name)) for one in settings)] for name in names
            if any(one.get(name) != settings[0].get(name) for one in settings)]
    return table(["", *(run.name for run in runs)], rows, caption="Settings that are not the same") if rows else \
        tag("p", "The settings are the same.")


def _classes_of_all(runs: Sequence[Run]) -> Html:
    values = [_class_values(run) for run in runs]
    names = list(dict.fromkeys(name for one in values for name in one))
    return table(["class", *(f"AP, {run.name}" for run in runs)],
                 [[name, *(number(one.get(name)) for one in values)] for name in names], caption="AP 50:95", sortable=True)


def _class_values(run: Run) -> dict[str, float]:
    return {name.removeprefix("AP/"): value for name, value in run.best["metrics"].items() if name.startswith("AP/")}


def _run_sections(run: Run, place: int, defaults: Mapping[str, Any]) -> list[Html]:
    """Return what is about one run alone."""
    made = []
    if run.evaluation is None:
        names, values = run.class_names, _class_values(run)
        rows = [[name, number(values.get(name))] for name in dict.fromkeys([*names, *values])]
        made += [_section("Classes", table(["class", "AP"], rows, caption="AP 50:95 of the best weights", sortable=True)),
                 _section("Sizes", table(["objects", "AP"], _size_rows(run), caption="AP 50:95 by the size of the objects")),
                 tag("p", "Errors, the score threshold and the pictures are missing: the folder has no detections.npz, which is "
                          "written at the first evaluation of a run with log.report on.", class_="note")]
    else:
        made.append(_evaluated(run, place))
    made += [_section("Data", *_data(run)), _section("Settings", *_settings(run, defaults)), _section("Versions", _versions(run))]
    notes = [tag("p", problem, class_="note") for problem in run.problems]
    return [tag("article", *notes, *made)]


def _evaluated(run: Run, place: int) -> Html:
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
    values = _class_values(run)
    totals = [counts[name].sum(axis=0) for name in ("objects", "right", "wrong")]
    rows = [["all", number(metrics.get("mAP_50_95")), *_counts(*totals, at)]]
    rows += [[name, number(values.get(name)), *_counts(counts["objects"][row], counts["right"][row], counts["wrong"][row], at)]
             for row, name in enumerate(names)]
    heads = ["class", "AP", "objects", "right", "wrong", "not found", "precision", "recall", "F1"]
    return tag(
        "div", tag("div", slider, class_="threshold"), tag("script", Html(data), type="application/json"),
        _section("Classes", table(heads, rows, caption="AP 50:95; at the threshold: right (TP), wrong (FP), not found (FN), at IoU 0.5",
                                  sortable=True, attributes=lambda row: {"data_class": row - 1})),
        _section("Errors", _error_table(errors, counts, at)),
        _section("Sizes", table(["objects", "AP", "objects", "found", "recall"], _size_rows(run, counts, at),
                                caption="AP 50:95, and how many are found, by the size of the objects",
                                attributes=lambda row: {"data_size": row})),
        _section("Pictures with the largest errors", *_pictures(run, errors, place)), class_="evaluated")


def _counts(objects: int, right: np.ndarray, wrong: np.ndarray, at: int) -> list[str]:
    """Return the cells that page.js writes anew when the threshold moves."""
    found, false = int(right[at]), int(wrong[at])
    ratios = (found / part if part else None for part in (found + false, objects, (objects + found + false) / 2))
    return [*map(number, (int(objects), found, false, int(objects) - found)), *map(number, ratios)]


def _error_table(errors: Errors, counts: Mapping[str, np.ndarray], at: int) -> Html:
    gained = gains(errors)
    largest = max(max(gained[kind] for kind in KINDS), 1e-9)
    rows = [[kind, ERROR_TEXTS[kind], number(int(counts["errors"][place, at])), number(gained[kind]),
             tag("span", class_="bar", style=f"width: {max(gained[kind], 0) / largest:.0%}")] for place, kind in enumerate(KINDS)]
    return tag("div", table(
        ["error", "what it is", "number", "AP50 lost", ""], rows, attributes=lambda row: {"data_error": row},
        caption=f"Errors of boxes; AP50 is {number(gained['AP50'])}, and would be higher by so much without errors of a kind"),
        tag("p", "After TIDE: Bolya et al., A General Toolbox for Identifying Object Detection Errors, ECCV 2020, arXiv 2008.08115. "
                 "The gains (dAP) count every detection, whatever the threshold; they do not add up, since errors hide each other.",
            class_="note"))


def _size_rows(run: Run, counts: Mapping[str, np.ndarray] | None = None, at: int = 0) -> list[list[str]]:
    texts = ("small, below 32 x 32 pixels", "medium", "large, above 96 x 96 pixels")
    rows = [[text, number(run.best["metrics"].get(f"mAP_{size}"))] for size, text in zip(SIZES, texts)]
    for place, row in enumerate(rows if counts is not None else []):
        objects, found = int(counts["size_objects"][place]), int(counts["size_right"][place, at])
        row += [number(objects), number(found), number(found / objects if objects else None)]
    return rows


def _pictures(run: Run, errors: Errors, place: int) -> list[Html]:
    evaluation = run.evaluation
    starts, object_starts = (np.cumsum([0, *(len(getattr(image, side)) for image in evaluation.images)])
                             for side in ("detections", "targets"))
    made = []
    for image, picture in evaluation.pictures.items():
        rows, objects = (range(some[image], some[image + 1]) for some in (starts, object_starts))
        found = [_box(box, errors.labels[row], run.class_names, errors.scores[row], picture.size, KINDS[errors.kinds[row]]
                      if errors.kinds[row] >= 0 else "right")
                 for row, box in zip(rows, evaluation.images[image].detections.boxes)
                 if errors.scores[row] >= MIN_DRAWN_SCORE and errors.kinds[row] != IGNORED]
        truth = [_box(box, errors.object_labels[row], run.class_names, errors.found_at[row], picture.size,
                      "object" if errors.counts[row] else "crowd")
                 for row, box in zip(objects, evaluation.images[image].targets.boxes)]
        labels = sorted({*errors.object_labels[objects], *(errors.labels[row] for row in rows if errors.kinds[row] >= RIGHT
                                                          and errors.scores[row] >= MIN_DRAWN_SCORE)})
        made.append(_picture(picture, f"p{place}-{image}", truth, found, [(_name(run.class_names, label), label) for label in labels]))
    if not made:
        return [tag("p", "There are none yet: they are kept when the run is at its end." if not run.results else "There are none.")]
    return [tag("p", "Left what is there, right what was found. Dashed: not found, or wrong, with the kind of error and the score."),
            tag("div", *made, class_="pictures")]


def _picture(picture: Any, name: str, truth: list[Html], found: list[Html], classes: list[tuple[str, int]]) -> Html:
    height, width = picture.size
    source = f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}"
    shown = tag("image", href=source, width=width, height=height, id=name, preserveAspectRatio="none")
    sides = [tag("svg", first, *boxes, viewBox=f"0 0 {width} {height}", role="img", aria_label=f"{text} in {picture.name}",
                 style=f"font-size: {width / 28:.1f}px")
             for text, first, boxes in (("what is there", shown, truth), ("what was found", tag("use", href=f"#{name}"), found))]
    legend = [tag("li", tag("span", class_="swatch", style=f"background: {_color(label)}"), text) for text, label in classes]
    return tag("figure", tag("figcaption", picture.name, tag("small", class_="verdict")), tag("div", *sides, class_="pair"),
               tag("ul", *legend[:12], tag("li", f"and {len(legend) - 12} more") if len(legend) > 12 else None))


def _box(box: np.ndarray, label: int, names: Sequence[str], score: float, size: tuple[int, int], kind: str) -> Html:
    """Draw a box; `score` is its own, or of an object's that of the detection that found it."""
    height, width = size
    x0, y0, x1, y1 = (round(float(value), 1) for value in np.clip(np.nan_to_num(box), 0, [width, height, width, height]))
    is_wrong, score = kind in KINDS, round(float(max(score, -1)), 3)
    text = f"{_name(names, label)}{f' {score:.2f}' if score >= 0 and kind not in ('object', 'crowd') else ''}, {kind}"
    shape = tag("rect", tag("title", text), x=x0, y=y0, width=max(x1 - x0, 0.5), height=max(y1 - y0, 0.5), stroke=_color(label))
    note = tag("text", f"{kind} {score:.2f}", x=x0, y=max(y0, width / 28)) if is_wrong else None
    return tag("g", shape, note, class_=kind if kind in ("right", "object", "crowd") else "wrong", data_score=score)


def _color(label: int) -> str:
    return "rgb({} {} {})".format(*class_color(int(label)))


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def _data(run: Run) -> list[Html]:
    data = run.facts.get("data")
    if not data:
        return [tag("p", "Nothing is known of the data: the run has no check of it (older runs, and data sets of one's own).")]
    splits = {name: numbers for name, numbers in data["splits"].items()}
    rows = [[name, *(number(numbers[key]) for key in ("images", "background_images", "boxes", "crowds")),
             *(f"{numbers['box_sizes'][size]:.1%}" for size in ("tiny", *SIZES)), f"{numbers['median_objects']:g}, {numbers['max_objects']}"]
            for name, numbers in splits.items()]
    heads = ["split", "images", "without objects", "objects", "crowds", "tiny <8", "small <32", "medium", "large >96",
             "an image, median and most"]
    classes = list(dict.fromkeys(name for numbers in splits.values() for name in numbers["class_counts"]))
    findings = [tag("li", tag("b", found["severity"], class_=found["severity"]), f" {found['split']}: {found['count']} {found['text']}, "
                    f"for example {found['examples'][0]}; {found['advice']}") for found in data["findings"]]
    return [
        tag("p", f"{data['dataset_dir']}, format {data['format']}; sizes at the model's input, {data['input_size'][1]} x "
                 f"{data['input_size'][0]} pixels"),
        table(heads, rows, caption="What the splits hold"),
        tag("details", tag("summary", f"Objects of each class ({len(classes)})"),
            table(["class", *splits], [[name, *(number(numbers["class_counts"].get(name)) for numbers in splits.values())]
                                       for name in classes], caption="Objects of each class", sortable=True)),
        tag("h3", "Findings of the check"), tag("ul", *findings) if findings else tag("p", "Nothing was found."),
    ]


def _settings(run: Run, defaults: Mapping[str, Any]) -> list[Html]:
    settings = flat(run.settings)
    changed = [name for name, value in settings.items() if name in defaults and _plain(value) != _plain(defaults[name])]
    rows = {name: [name, tag("code", _plain(value)), tag("code", _plain(defaults.get(name)))] for name, value in settings.items()}
    return [
        table(["setting", "value", "default"], [rows[name] for name in changed], caption="What differs from the defaults"),
        tag("details", tag("summary", f"All {len(rows)} settings"),
            table(["setting", "value", "default"], rows.values(), caption="All settings; those that differ are marked",
                  attributes=lambda place: {"class_": "changed" if list(rows)[place] in changed else None})),
    ] if settings else [tag("p", "The folder has no config.yaml.")]


def _plain(value: Any) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _versions(run: Run) -> Html:
    versions = run.facts.get("versions")
    return table(["", "version"], list(map(list, versions.items())), caption="What the run was made with") if versions else \
        tag("p", "Not known: the run is older than this page.")


def state_of(runs: Sequence[Run]) -> str:
    """Return what changes when a page has to be made anew."""
    paths = [run.folder / name for run in runs for name in (METRICS, RESULTS)]
    return " ".join(f"{path.stat().st_mtime_ns}-{path.stat().st_size}" if path.exists() else "-" for path in paths)
