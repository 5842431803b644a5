"""Folders of runs, as they are left by training, made by hand."""

import io
import json
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rfdetr.evaluation.records import Detections, ImageRecord, Targets
from rfdetr.report.detections import Evaluation, Picture, save_evaluation

Boxes = Sequence[tuple]


def _image(found: Boxes = (), there: Boxes = (), crowd: Sequence[int] = (), image_id: int | None = None) -> ImageRecord:
    """Make a record of `found` (box, label, score) and `there` (box, label); `crowd` are places in `there`."""
    boxes, labels, scores = ([entry[column] for entry in found] for column in range(3))
    of_targets, names = ([entry[column] for entry in there] for column in range(2))
    targets = Targets(np.array(of_targets, np.float32).reshape(-1, 4), np.array(names, np.int64),
                      crowd=np.isin(np.arange(len(there)), crowd), areas=np.zeros(len(there)))
    targets.areas = targets.areas_of_boxes
    return ImageRecord(Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64),
                                  scores=np.array(scores, np.float32)), targets, image_id)


@pytest.fixture(scope="session")
def image() -> Callable[..., ImageRecord]:
    return _image


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """`make_run(name, class_names)` writes the folder of a run; without `images` it has no detections, as older runs."""

    def make(name: str, names: Sequence[str] = ("cat", "dog"), images: Sequence[ImageRecord] | None = None, *,
             metrics: dict | None = None, lines: Sequence[dict] | None = None, **settings) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        metrics = {"mAP_50_95": 0.4, "mAP_small": -1.0, "F1_threshold": 0.5, "AP/" + names[0]: 0.25, **(metrics or {})}
        if lines is None:
            lines = [{"step": 4, "epoch": 0, "train/loss": 7.0},
                     {"step": 4, "epoch": 1, **{f"val/{key}": value for key, value in metrics.items()}}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "config.yaml").write_text(yaml.safe_dump(settings or {"train": {"epochs": 2}}))
        rows = [{"label": label, "category_id": label, "name": text} for label, text in enumerate(names)]
        (folder / "label_map.json").write_text(json.dumps({"kind": "contiguous", "classes": rows}))
        if images is not None:
            jpeg = io.BytesIO()
            Image.new("RGB", (40, 30)).save(jpeg, "JPEG")
            about = {"model": "regular", "epoch": 1, "step": 4, "class_names": list(names), "seconds": 2.0, "metrics": metrics}
            pictures = {place: Picture(f"<i>{place}</i>.jpg", (300, 400), jpeg.getvalue()) for place in range(len(images[:2]))}
            save_evaluation(Evaluation(images, about, pictures), folder / "detections.npz")
        return folder

    return make


class Page(HTMLParser):
    """What a browser would make of a page: elements that are closed, texts, addresses."""

    VOID = {"meta", "link", "input", "br", "image", "rect", "line", "circle", "polyline", "use"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.texts.append(data)
            if {"td", "th"} & set(self.stack):
                self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """Return the cells of the first row that begins so."""
        return next(row for row in self.rows if row and row[0].startswith(name))[1:]


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Page]:
    return Page
