"""The files of ``tools/predict.py``: what was found as JSON and drawn; and crops, YOLO's text files, a table.

Pictures give predictions.json, a list as COCO has it. A video gives predictions.jsonl, a line a frame, which is there as far as
it got, and one video. Everything else has its name when it is whole.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from rfdetr.data.outlines import outline
from rfdetr.detections import Prediction
from rfdetr.detector import Detector
from rfdetr.files import replacing_file
from rfdetr.prediction import drawn_paths, save_drawing
from rfdetr.video import Video, VideoWriter

RESULTS, LINES, PICTURES, DRAWN_VIDEO, TABLE = "predictions.json", "predictions.jsonl", "images", "video.mp4", "predictions.csv"
COLUMNS = ("picture", "time", "category_id", "category_name", "score", "x", "y", "width", "height")


class Shot(NamedTuple):
    """A picture on its way through the detector."""

    name: str
    image_id: int
    pixels: Tensor | np.ndarray | None
    time: float | None = None  # seconds since the first frame of a video


Write = Callable[[Shot, Prediction], None]


@contextmanager
def open_files(
    output: Path, detector: Detector, source: Video | Sequence[tuple[str, Path]], *, draw: bool, save: Sequence[str]
) -> Iterator[Write]:
    """Offer a function that writes what was found on one picture into all files."""
    is_video = isinstance(source, Video)
    makers = [_lines(output / LINES) if is_video else _list(output / RESULTS)]
    if draw:
        makers.append(_video(output / DRAWN_VIDEO, source) if is_video else _drawings(output, [name for name, _ in source]))
    more = {"crops": lambda: _crops(output), "yolo": lambda: _yolo(output, detector), "csv": lambda: _csv(output / TABLE)}
    makers += [more[name]() for name in save]
    with ExitStack() as stack:
        writers = [stack.enter_context(maker) for maker in makers]

        def write(shot: Shot, found: Prediction) -> None:
            for writer in writers:
                writer(shot, found)

        yield write


@contextmanager
def _list(path: Path) -> Iterator[Write]:
    separator = "\n"

    def write(shot: Shot, found: Prediction) -> None:
        nonlocal separator
        for row in found.to_coco(shot.image_id, shot.name):
            file.write(separator + json.dumps(row, ensure_ascii=False))
            separator = ",\n"

    with replacing_file(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        # names that are no UTF-8 have half characters, of which that error handler makes what JSON has for them
        file.write("[")
        yield write
        file.write("\n]\n")


@contextmanager
def _lines(path: Path) -> Iterator[Write]:
    def write(shot: Shot, found: Prediction) -> None:
        rows = [{key: value for key, value in row.items() if key != "image_id"} for row in found.to_coco(shot.image_id)]
        line = {"frame": shot.image_id, "time": round(shot.time, 6), "detections": rows}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        yield write


@contextmanager
def _drawings(output: Path, names: Sequence[str]) -> Iterator[Write]:
    drawn = dict(zip(names, drawn_paths(output / PICTURES, names)))
    yield lambda shot, found: save_drawing(drawn[shot.name], found.draw)


@contextmanager
def _video(path: Path, source: Video) -> Iterator[Write]:
    with replacing_file(path) as temporary:
        writer = VideoWriter(temporary, source.rate)
        try:
            yield lambda shot, found: writer.write(found.draw(), shot.time)
        finally:
            writer.close()


@contextmanager
def _crops(output: Path) -> Iterator[Write]:
    """Cut the objects out, into a folder for each class."""
    def write(shot: Shot, found: Prediction) -> None:
        picture = to_pil_image(found.pixels())
        corners = np.concatenate([np.floor(found.boxes[:, :2]), np.ceil(found.boxes[:, 2:])], axis=1)
        for number, (box, name) in enumerate(zip(corners.clip(0, [*picture.size] * 2).astype(int), found.names), start=1):
            folder = output / "crops" / (re.sub(r"[^\w .-]", "_", name).strip(" .") or "_")
            path = drawn_paths(folder, [shot.name])[0]
            if (box[:2] < box[2:]).all():
                save_drawing(path.with_name(f"{Path(shot.name).stem}-{number}.jpg"), partial(picture.crop, box.tolist()))

    yield write


@contextmanager
def _yolo(output: Path, detector: Detector) -> Iterator[Write]:
    """Write label files as YOLO's data sets have them, with polygons where there are masks, and the names of the classes."""
    def write(shot: Shot, found: Prediction) -> None:
        height, width = found.pixels().shape[1:]
        lines = []
        for row, label in enumerate(found.labels.tolist()):
            left, top, right, bottom = (found.boxes[row] / [width, height, width, height]).tolist()
            values = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            if found.masks is not None and found.masks[row].any():
                values = (outline(found.masks[row]) / [width, height]).ravel().tolist()
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]))
        path = drawn_paths(output / "labels", [shot.name])[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{Path(shot.name).stem}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")

    output.mkdir(parents=True, exist_ok=True)
    (output / "classes.txt").write_text("".join(f"{name}\n" for name in detector.label_map.names), encoding="utf-8")
    yield write


@contextmanager
def _csv(path: Path) -> Iterator[Write]:
    def write(shot: Shot, found: Prediction) -> None:
        for row in found.to_coco(shot.image_id):
            table.writerow([shot.name, "" if shot.time is None else f"{shot.time:.6f}", row["category_id"], row["category_name"],
                            row["score"], *row["bbox"]])

    with replacing_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        yield write
