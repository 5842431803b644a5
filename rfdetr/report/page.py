"""The page itself: one file without requests, made of what the folders of runs say."""

import json
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.files import replacing_file
from rfdetr.report.curves import draw_curves
from rfdetr.report.errors import SIZES
from rfdetr.report.evaluated import evaluated_parts, size_rows
from rfdetr.report.markup import Html, duration, joined, number, section, table, tag
from rfdetr.report.read import DETECTIONS, METRICS, REPORT, RESULTS, Run, flat, open_runs

METRIC_ROWS = {"mAP_50_95": "mAP 50:95", "mAP_50": "mAP 50", "mAP_75": "mAP 75", "segm_mAP_50_95": "mask mAP 50:95",
               "segm_mAP_50": "mask mAP 50", "F1": "best F1, mean of the classes",
               "precision": "precision there", "recall": "recall there", "F1_threshold": "its score threshold"}
MODEL_NAMES = {"regular": "weights as trained", "ema": "average of the weights (EMA)", "average": "mean of the best checkpoints"}
RUN_SECTIONS = ("Classes", "Errors", "Sizes", "Pictures with the largest errors", "Data", "Settings", "Versions")


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
    defaults = flat(defaults)
    body = [
        section("Summary", _summary(runs)),
        section("Settings that differ", _differences(runs, defaults)) if several else None,
        section("Curves", draw_curves(runs)),
        section("Classes side by side", _classes_of_all(runs)) if several else None,
    ]
    for place, run in enumerate(runs):
        body += [tag("h2", run.name, class_="run") if several else None, *_run_sections(run, place, defaults)]
    title = "Training report: " + ", ".join(run.name for run in runs)
    page = resources.files("rfdetr.report")
    style, script = (Html((page / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    head = tag("head", tag("meta", charset="utf-8"), tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
               tag("link", rel="icon", href="data:,"), tag("title", title), tag("style", style))
    made = tag("p", f"Made {time.strftime('%Y-%m-%d %H:%M')} of ", ", ".join(str(run.folder) for run in runs), class_="made")
    main, links = _with_links(tag("main", *body), () if len(runs) == 1 else RUN_SECTIONS)
    content = tag("body", tag("header", tag("h1", title), made, links), main, tag("script", script), data_live=live or None)
    return "<!DOCTYPE html>\n" + tag("html", head, content, lang="en")


def _with_links(body: Html, without: Sequence[str]) -> tuple[Html, Html]:
    """Return a page's content with an id for each heading, and links to those that are not called so."""
    head, *parts = body.split("<h2")  # of texts it would be &lt;h2
    titles = [part.partition(">")[2].partition("</h2>")[0] for part in parts]
    links = [joined([tag("a", Html(title), href=f"#part{place}"), " "]) for place, title in enumerate(titles)
             if title not in without]
    return Html(head + "".join(f'<h2 id="part{place}"{part}' for place, part in enumerate(parts))), tag("nav", *links)


def _summary(runs: Sequence[Run]) -> Html:
    columns = [_summary_of(run) for run in runs]
    names = [name for name in columns[0] if any(column[name] != "-" for column in columns)]
    return table(["", *(run.name for run in runs)], [[name, *(column[name] for column in columns)] for name in names],
                 caption="How good, which weights, when, and how long")


def _summary_of(run: Run) -> dict[str, str]:
    best, sessions = run.best, run.facts.get("sessions", [])
    metrics, seconds = best["metrics"], [session.get("seconds") for session in sessions]
    test = {name.removeprefix("test/"): value for name, value in (run.results.get("test") or {}).items()}
    return {
        "status": f"{run.status}{': ' + str(run.results['stop_reason']) if run.results.get('stop_reason') else ''}",
        "best weights": f"{MODEL_NAMES.get(best['model'], '-')}, epoch {best['epoch']}" if best["model"] else "-",
        **{text: number(metrics.get(name)) for name, text in METRIC_ROWS.items()},
        **{f"test {METRIC_ROWS[name]}": number(test.get(name)) for name in ("mAP_50_95", "mAP_50", "segm_mAP_50_95")},
        "epochs, steps": ", ".join(number(run.results.get(f"{name}s", run.last(name))) for name in ("epoch", "step")),
        "started": str(sessions[0].get("started", "-")) if sessions else "-",
        "took": duration(sum(filter(None, seconds))) + f" in {len(sessions)} parts" * (len(sessions) > 1) if sessions else "-",
        "images a second": number(_mean(run, "train/images_per_s"), 1),
        "share of it waiting for data": number(_mean(run, "train/data_wait")),
        "an evaluation": duration(best.get("seconds")),
    }


def _mean(run: Run, tag_name: str) -> float | None:
    values = [line[tag_name] for line in run.lines if isinstance(line.get(tag_name), (int, float))]
    return float(np.mean(values)) if values else None


def _differences(runs: Sequence[Run], defaults: Mapping[str, Any]) -> Html:
    settings = [{**defaults, **flat(run.settings)} for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = [[name, *(_plain(one.get(name)) for one in settings)] for name in names
            if any(one.get(name) != settings[0].get(name) for one in settings)]
    return table(["", *(run.name for run in runs)], rows, caption="Settings that are not the same") if rows else \
        tag("p", "The settings are the same.")


def _classes_of_all(runs: Sequence[Run]) -> Html:
    values = [run.class_values for run in runs]
    names = list(dict.fromkeys(name for one in values for name in one))
    return table(["class", *(f"AP, {run.name}" for run in runs)],
                 [[name, *(number(one.get(name)) for one in values)] for name in names], caption="AP 50:95", sortable=True)


def _run_sections(run: Run, place: int, defaults: Mapping[str, Any]) -> list[Html]:
    """Return what is about one run alone."""
    made = []
    if run.evaluation is None:
        names, values = run.class_names, run.class_values
        rows = [[name, number(values.get(name))] for name in dict.fromkeys([*names, *values])]
        made += [section("Classes", table(["class", "AP"], rows, caption="AP 50:95 of the best weights", sortable=True)),
                 section("Sizes", table(["objects", "AP"], size_rows(run), caption="AP 50:95 by the size of the objects")),
                 tag("p", "Errors, the score threshold and the pictures are missing: the folder has no detections.npz, which is "
                          "written at the first evaluation of a run with log.report on.", class_="note")]
    else:
        made.append(evaluated_parts(run, place))
    made += [section("Data", *_data(run)), section("Settings", *_settings(run, defaults)), section("Versions", _versions(run))]
    notes = [tag("p", problem, class_="note") for problem in run.problems]
    return [tag("article", *notes, *made)]


def _data(run: Run) -> list[Html]:
    data = run.facts.get("data")
    if not data:
        return [tag("p", "Nothing is known of the data: the run has no check of it (older runs, and data sets of one's own).")]
    splits = data["splits"]
    columns = [[*(number(numbers[key]) for key in ("images", "background_images", "boxes", "crowds")),
                *(f"{numbers['box_sizes'][size]:.1%}" for size in ("tiny", *SIZES)),
                f"{numbers['median_objects']:g}, {numbers['max_objects']}"] for numbers in splits.values()]
    names = ["images", "without objects", "objects", "crowds", "tiny <8", "small <32", "medium", "large >96",
             "an image, median and most"]
    classes = list(dict.fromkeys(name for numbers in splits.values() for name in numbers["class_counts"]))
    findings = [tag("li", tag("b", found["severity"], class_=found["severity"]), f" {found['split']}: {found['count']} ",
                    f"{found['text']}, for example {found['examples'][0]}; {found['advice']}") for found in data["findings"]]
    return [
        tag("p", f"{data['dataset_dir']}, format {data['format']}; sizes at the model's input, {data['input_size'][1]} x "
                 f"{data['input_size'][0]} pixels"),
        table(["", *splits], list(zip(names, *columns)), caption="What the splits hold"),
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
    paths = [run.folder / name for run in runs for name in (METRICS, RESULTS, DETECTIONS)]
    return " ".join(f"{path.stat().st_mtime_ns}-{path.stat().st_size}" if path.exists() else "-" for path in paths)
