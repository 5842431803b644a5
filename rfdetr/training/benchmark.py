"""How fast this machine trains: rows measured in processes of their own, here and, alternating, in another environment."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rfdetr.errors import InputError, did_you_mean

COCO_IMAGES = 118_287  # of train2017
WORK = str(Path(__file__).with_name("benchmark_work.py"))
# not run as a script: its folder would come first in the import path, and loader processes that are spawned would run it again
RUN_WORK = "import sys; exec(compile(open(sys.argv[1], encoding='utf-8').read(), sys.argv[1], 'exec'))"


class Row(NamedTuple):
    """A line of the table: a number of what a job returns."""

    job: str
    number: str = "seconds"


ROWS = {
    "step": Row("step"), "forward": Row("forward"), "losses": Row("losses"), "loader": Row("loader"), "evaluate": Row("evaluate"),
    "epoch": Row("epoch"), "start": Row("start", "process_seconds"), "save": Row("save"), "memory": Row("step", "megabytes"),
    "kernels": Row("kernels", "count"),
}


def check_rows(names: str) -> list[str]:
    """Return the rows that are named, with commas between them."""
    rows = [name.strip() for name in names.split(",")]
    for name in rows:
        if name not in ROWS:
            raise InputError(f"--rows: {name!r} is no row; {did_you_mean(name, list(ROWS))}")
    return rows


class Side:
    """An interpreter that does the work: this one, or that of another environment."""

    def __init__(self, python: str | None = None) -> None:
        self.name = "" if python is None else f"--against {python}: "
        found = sys.executable if python is None else shutil.which(python)
        if found is None:
            raise InputError(f"{self.name}there is no such program; give the Python of an environment with the published "
                             "package, such as /path/to/venv/bin/python")
        self.python = found
        self.environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        if python is None:  # what this process finds, the other one has to find as well
            self.environment["PYTHONPATH"] = os.pathsep.join(folder for folder in sys.path if folder)

    def measure(self, job: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the numbers of a job and the seconds of its process; None where the package there has no such job.

        Raises:
            InputError: it failed; says with which last words.
        """
        began, last_words = time.perf_counter(), ""
        try:
            done = subprocess.run([self.python, "-c", RUN_WORK, WORK, job, json.dumps(settings)], env=self.environment,
                                  capture_output=True, text=True)
            last_words = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode} and said nothing"])[-1]
            found = json.loads(done.stdout.splitlines()[-1])
        except (OSError, IndexError, ValueError) as error:
            raise InputError(f"{self.name}{job} could not be measured: {last_words or error}{_hint(last_words)}") from error
        return None if found is None else {**found, "process_seconds": time.perf_counter() - began}


def _hint(last_words: str) -> str:
    if "No module named" in last_words:
        return "; install it in that environment"
    return "; take a smaller batch, or a smaller resolution" if "out of memory" in last_words else ""


def run_benchmark(rows: Sequence[str], settings: Mapping[str, Any], other: Side | None, *, rounds: int, with_cost: bool
                  ) -> dict[str, Any]:
    """Measure rows, on both sides in turn if there are two.

    Args:
        settings: what `rfdetr.training.benchmark_work` wants to know.
        rounds: how often each side measures a row; the median counts.

    Returns:
        what the JSON file holds: settings, `here` and `there` (the facts of each side), `rows`, `epoch` and `cost`.
    """
    sides = {"here": Side()} if other is None else {"here": Side(), "there": other}
    result = {"settings": {name: value for name, value in settings.items() if name != "folder"}}
    for name, side in reversed(sides.items()):  # the other one first, which may not be what it should be
        result[name] = side.measure("facts", settings)
    if other is not None:
        _check_comparable(other, result["there"], settings)
    jobs = dict.fromkeys([ROWS[row].job for row in rows] + ["step"] * with_cost)
    found: dict[str, dict[str, list]] = {job: {name: [] for name in sides} for job in jobs}
    for job in jobs:
        for _ in range(rounds):
            for name, side in sides.items():
                if found[job][name][-1:] != [None]:  # it has no such job
                    found[job][name].append(side.measure(job, settings))
    result["rows"] = {row: _row(found[ROWS[row].job], ROWS[row].number) for row in rows}
    if "epoch" in jobs:
        result["epoch"] = found["epoch"]["here"][-1]
    if with_cost:
        result["cost"] = _cost(_row(found["step"], "seconds")["here"], sides["here"].measure("cost", settings), settings)
    return result


def _check_comparable(other: Side, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if facts["is_ours"]:
        return
    if settings["variant"].startswith("pico"):
        raise InputError(f"{other.name}{facts['package']} has no {settings['variant']}; choose another --model.variant")
    if settings["has_masks"] or settings["resolution"][0] != settings["resolution"][1]:
        raise InputError(f"{other.name}masks and inputs that are not square are measured on this side alone; compare a variant "
                         "of boxes, or leave --against out")


def _row(found: Mapping[str, Sequence[Mapping[str, float] | None]], number: str) -> dict[str, Any]:
    """Return the median of each side, their ratio, and what they are made of."""
    numbers = {name: [one.get(number) for one in measured if one is not None] for name, measured in found.items()}
    runs = {name: [value for value in values if value is not None] for name, values in numbers.items()}
    medians = {name: statistics.median(values) if values else None for name, values in runs.items()}
    ratio = medians["here"] / medians["there"] if medians.get("there") else None
    return {**medians, "ratio": ratio, "number": number, "runs": runs}


def _cost(step_seconds: float, measured: Mapping[str, float], settings: Mapping[str, Any]) -> dict[str, float]:
    images_per_s = settings["batch_size"] / step_seconds
    achieved = measured["flop"] / step_seconds
    return {**measured, "images_per_s": images_per_s, "epochs": settings["epochs"],
            "coco_hours": COCO_IMAGES * settings["epochs"] / images_per_s / 3600,
            "flop_per_s": achieved, "share_of_peak": achieved / measured["peak_flop_per_s"]}


def to_text(result: Mapping[str, Any]) -> str:
    """Return the table and what follows from it, for a terminal."""
    settings, names = result["settings"], [name for name in ("here", "there") if name in result]
    height, width = settings["resolution"]
    lines = [f"{settings['variant']}, {height} x {width} pixels, batch of {settings['batch_size']}, {settings['precision']}, "
             f"{settings['boxes']} boxes an image"]
    for name in names:
        facts = result[name]
        lines.append(f"{name}: {facts['package']}, PyTorch {facts['torch']}, {facts['device']}, {facts['instructions']}, "
                     f"{facts['threads']} threads")
    table = [["row", *names, "ratio"]]
    for name, row in result["rows"].items():
        cells = [_shown(row[side], row["number"]) for side in names]
        table.append([name, *cells, "-" if row["ratio"] is None else f"{row['ratio']:.2f}"])
    columns = 1 + len(names) + (len(names) > 1)  # one side has no ratio
    lines += ["", *(first.ljust(10) + "".join(cell.rjust(12) for cell in rest[: columns - 1]) for first, *rest in table)]
    return "\n".join([*lines, *_epoch_lines(result), *_cost_lines(result)])


def _epoch_lines(result: Mapping[str, Any]) -> list[str]:
    found, epochs = result.get("epoch"), result["settings"]["epochs"]
    if found is None:
        return []
    return ["", f"an epoch: {found['steps']:,} steps at {_time(found['step_seconds'])} (waiting for data "
                f"{found['data_wait']:.0%}), evaluation of {found['evaluation_images']:,} images "
                f"{_time(found['evaluation_seconds'])}, without its metrics",
            f"the run of {epochs} epochs: {_time(found['seconds'] * epochs)}"]


def _cost_lines(result: Mapping[str, Any]) -> list[str]:
    if (cost := result.get("cost")) is None:
        return []
    peak, size = cost["peak_flop_per_s"], cost["product_size"]
    return ["", f"{cost['images_per_s']:.1f} images/s; {cost['epochs']} epochs of COCO's {COCO_IMAGES:,} images: "
                f"{cost['coco_hours']:,.1f} hours of this device, steps alone",
            f"a step is {cost['flop'] / 1e9:,.1f} GFLOP, {cost['flop_per_s'] / 1e9:,.0f} GFLOP/s: {cost['share_of_peak']:.0%} of "
            f"the {peak / 1e9:,.0f} GFLOP/s that a product of two {size} x {size} matrices reaches"]


def _shown(value: float | None, number: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} MB" if number == "megabytes" else f"{value:,.0f}" if number == "count" else _time(value)


def _time(seconds: float) -> str:
    for limit, factor, unit in ((0.1, 1e-3, "ms"), (300, 1, "s"), (7200, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 86400:.1f} days"
