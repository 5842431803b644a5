"""What the folder of a run says, finished or not, with or without the files that older runs did not write."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rfdetr.errors import InputError

SETTINGS, METRICS, RESULTS, LABEL_MAP = "config.yaml", "metrics.jsonl", "results.json", "label_map.json"
DETECTIONS, FACTS, REPORT = "detections.npz", "run_facts.json", "report.html"
MODELS = {"regular": "val/", "ema": "val/ema_"}  # and how their metrics begin


@dataclass(frozen=True)
class Run:
    """A run's folder, read when it is asked for; what is missing or broken is empty, and named in `problems`."""

    folder: Path
    name: str

    @cached_property
    def problems(self) -> list[str]:
        return []

    @cached_property
    def settings(self) -> dict[str, Any]:
        return _mapping(self._read(SETTINGS, yaml.safe_load))

    @cached_property
    def results(self) -> dict[str, Any]:
        """Empty while the run is not at its end."""
        return _mapping(self._read(RESULTS, json.loads))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `ReportHook` wrote: `versions`, `sessions` (started, seconds, ...) and `data`, the check of the data set."""
        return _mapping(self._read(FACTS, json.loads))

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; the last one may be being written."""
        return [line for line in map(_line, (self._read(METRICS, str) or "").splitlines()) if line is not None]

    @cached_property
    def class_names(self) -> list[str]:
        if self.evaluation is not None:
            return list(self.evaluation.about["class_names"])
        rows = _mapping(self._read(LABEL_MAP, json.loads)).get("classes", [])
        return [str(row.get("name")) for row in rows if isinstance(row, dict)]

    @cached_property
    def evaluation(self) -> Any:
        """The `Evaluation` of the best weights, None without."""
        from rfdetr.report.detections import load_evaluation  # NumPy and the COCO engine, for which bad input does not wait

        try:
            return load_evaluation(self.folder / DETECTIONS)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            self.problems.append(f"{DETECTIONS} cannot be read ({type(error).__name__})")
            return None

    @cached_property
    def best(self) -> dict[str, Any]:
        """The evaluation that decided about the best weights: `model`, `epoch` and `metrics` without their prefix."""
        if self.evaluation is not None:
            return dict(self.evaluation.about)
        best = _mapping(self.results.get("best"))
        lines = [{"epoch": best.get("epoch"), **_mapping(best.get("metrics"))}] if best.get("metrics") else self.lines
        monitor = self.monitor
        sign = -1 if monitor.startswith("loss") else 1
        found = [(sign * line[prefix + monitor], -place, model, line) for place, line in enumerate(lines)
                 for model, prefix in MODELS.items() if isinstance(line.get(prefix + monitor), (int, float))]
        if not found:
            return {"model": None, "epoch": None, "metrics": {}}
        _, _, model, line = max(found, key=lambda entry: entry[:2])
        return {"model": model, "epoch": line.get("epoch"), "metrics": without_prefix(line, model)}

    @property
    def class_values(self) -> dict[str, float]:
        """AP 50:95 of each class, of the best weights."""
        return {name.removeprefix("AP/"): value for name, value in self.best["metrics"].items() if name.startswith("AP/")}

    @property
    def monitor(self) -> str:
        """The metric that decides, without its prefix."""
        settings = {name: _mapping(self.settings.get(name)) for name in ("eval", "model")}
        has_masks = "seg" in str(settings["model"].get("variant", ""))
        return settings["eval"].get("monitor") or ("segm_mAP_50_95" if has_masks else "mAP_50_95")

    @property
    def status(self) -> str:
        return str(self.results.get("status", "not at its end (still training, or stopped)"))

    def last(self, tag: str) -> float | None:
        """Return the latest value of a tag."""
        return next((line[tag] for line in reversed(self.lines) if isinstance(line.get(tag), (int, float))), None)

    def _read(self, name: str, parse: Any) -> Any:
        try:
            return parse((self.folder / name).read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.problems.append(f"{name} cannot be read ({type(error).__name__})")
            return None


def open_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Return the runs of these folders, each with a name of its own.

    Raises:
        InputError: a folder is missing or holds no run.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    for path in paths:
        if not any((path / name).is_file() for name in (SETTINGS, METRICS)):
            there = "holds no run" if path.is_dir() else "is no folder"
            raise InputError(f"{path}: {there}; name the folder of a run (train.output_dir), which has {SETTINGS} and {METRICS}")
    names = [path.resolve().name for path in paths]
    return [Run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names)]


def without_prefix(metrics: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return the metrics of a model under their own names."""
    prefix = MODELS.get(model, f"val/{model}_")
    others = tuple(other for other in MODELS.values() if len(other) > len(prefix))
    return {name.removeprefix(prefix): value for name, value in metrics.items()
            if name.startswith(prefix) and not name.startswith(others)}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under their whole names, section.field."""
    found = {}
    for name, value in settings.items():
        is_section = isinstance(value, Mapping) and not prefix
        found |= flat(value, f"{name}.") if is_section else {f"{prefix}{name}": value}
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), (int, float)) else None
