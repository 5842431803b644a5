"""Runs of a few seconds, in processes that may be killed, and what they leave."""

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine import load_checkpoint
from rfdetr.training import RunConfig, train

TINY = {
    "model.variant": "pico", "model.resolution": 64, "model.num_queries": 10, "model.group_detr": 2,
    "data.batch_size": 2, "data.num_workers": 0, "data.multi_scale": False, "data.augment": "flips", "optim.lr": 1e-3,
    "train.epochs": 2, "train.device": "cpu", "train.save_every_steps": 2, "log.every_steps": 2, "log.csv": True,
    "log.tensorboard": False, "log.plots": False, "log.progress": False, "drop.dropout": 0.1,
}  # fmt: skip
CLOCKS = ("train/images_per_s", "train/data_wait")
RESULT = ("checkpoint.pth", "checkpoint_best_regular.pth", "checkpoint_best_ema.pth", "checkpoint_best_total.pth")


def make_data(root: Path, num_images: int = 4) -> str:
    """Write pictures of a rectangle each, of two classes."""
    for split in ("train", "valid", "test"):
        (root / split).mkdir(parents=True)
        images = [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in range(num_images)]
        for image in images:
            pixels = np.full((64, 64, 3), 40 * (image["id"] % 5), dtype=np.uint8)
            pixels[10:40, 10:50] = 240 - 100 * (image["id"] % 2)
            Image.fromarray(pixels).save(root / split / image["file_name"])
        boxes = [{"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0}
                 for n in range(num_images)]
        categories = [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return str(root)


def config(data: str, folder: Path, **settings: Any) -> RunConfig:
    """Configure a run; settings are given as ``**{"optim.lr": 1.0}``."""
    values = {**TINY, "data.dataset_dir": data, "train.output_dir": str(folder), **settings}
    made = RunConfig()
    sections = {section.name: getattr(made, section.name) for section in fields(made) if is_dataclass(section.default)}
    for name, section in sections.items():
        own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
        sections[name] = replace(section, **own)
    return replace(made, **sections, hooks=values.get("hooks", ()))


def in_child(action: Callable[[], Any]) -> int:
    """Do something in a process of its own; return its exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(action,))
    process.start()
    process.join(240)
    return process.exitcode


def _quietly(action: Callable[[], Any]) -> None:
    shown = sys.stderr  # pytest shows it if the test fails
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            action()
        except BaseException:
            traceback.print_exc(file=shown)
            raise


def run_in_child(run: RunConfig, before: Callable[[], Any] = lambda: None, **arguments: Any) -> int:
    return in_child(lambda: (before(), train(run, **arguments)))


def lines(folder: Path) -> list[dict]:
    """Read metrics.jsonl without what the clock decides."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in found]


def table(folder: Path) -> list[list[str]]:
    """Read metrics.csv without the columns of the clock."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    kept = [index for index, name in enumerate(rows[0]) if name not in CLOCKS]
    return [[row[index] for index in kept] for row in rows]


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return where two contents of checkpoints differ, by a bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [found for index, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{where}/{index}")]
    return [] if one == other else [where]


def same_results(one: Path, other: Path) -> list[str]:
    """Return what differs between two finished runs but for clocks and the name of their folder."""
    found = []
    for name in RESULT:
        contents = [load_checkpoint(folder / name) for folder in (one, other)]
        found += [where for where in differences(*contents, name) if not any(
            part in where for part in ("args/train/output_dir", "RunFolderHook/args", *CLOCKS))]
    found += ["metrics.jsonl"] if lines(one) != lines(other) else []
    found += ["metrics.csv"] if table(one) != table(other) else []
    found += ["results.json"] if (one / "results.json").read_text() != (other / "results.json").read_text() else []
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    return found + (["files"] if names[0] != names[1] else [])
