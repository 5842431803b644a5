"""What a model found in the images of an evaluation, beside what is there, in one small file: so a report needs no model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.evaluation.records import Detections, ImageRecord, Targets
from rfdetr.files import replacing_file

MAX_DETECTIONS = 100  # of an image, the best ones, as COCO's tables have it


@dataclass(frozen=True)
class Picture:
    """A small JPEG of an evaluated image; `size` (h, w) is the original's, in whose pixels boxes are."""

    name: str
    size: tuple[int, int]
    jpeg: bytes


@dataclass(frozen=True)
class Evaluation:
    """The images of an evaluation and what is known of it.

    `about` holds `model` ("regular", "ema" or "average"), `epoch`, `step`, `class_names` and the `metrics`, without their prefix;
    `pictures` go by the image's place in `images`.
    """

    images: Sequence[ImageRecord]
    about: Mapping[str, Any]
    pictures: Mapping[int, Picture] = field(default_factory=dict)


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write the file: boxes and scores as they were measured, at most `MAX_DETECTIONS` an image, without masks."""
    found = [_best(image.detections) for image in evaluation.images]
    targets = [image.targets for image in evaluation.images]
    pictures = [{"place": place, "name": picture.name, "size": list(picture.size), "bytes": len(picture.jpeg)}
                for place, picture in evaluation.pictures.items()]
    about = json.dumps({**evaluation.about, "pictures": pictures}).encode()
    columns = {
        "about": np.frombuffer(about, np.uint8),
        "image_ids": [-1 if image.image_id is None else image.image_id for image in evaluation.images],
        "num_found": [len(some) for some in found],
        "num_targets": [len(some) for some in targets],
        "found_boxes": _joined(found, "boxes"), "found_labels": _joined(found, "labels"), "scores": _joined(found, "scores"),
        "boxes": _joined(targets, "boxes"), "labels": _joined(targets, "labels"), "crowd": _joined(targets, "crowd"),
        "areas": _joined(targets, "areas"),
        "jpegs": np.frombuffer(b"".join(picture.jpeg for picture in evaluation.pictures.values()), np.uint8),
    }
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **columns)


def load_evaluation(path: Path) -> Evaluation:
    """Read the file again; whatever is wrong with it is an OSError, ValueError, KeyError or zipfile.BadZipFile."""
    with np.load(path, allow_pickle=False) as columns:
        data = {name: columns[name] for name in columns.files}
    about = json.loads(data["about"].tobytes())
    found = _split(data["num_found"], data["found_boxes"], data["found_labels"], data["scores"])
    targets = _split(data["num_targets"], data["boxes"], data["labels"], data["crowd"], data["areas"])
    found = [Detections(boxes, labels.astype(np.int64), scores=scores) for boxes, labels, scores in found]
    targets = [Targets(boxes, labels.astype(np.int64), crowd=crowd.astype(bool), areas=areas)
               for boxes, labels, crowd, areas in targets]
    images = list(map(ImageRecord, found, targets, data["image_ids"].tolist()))
    pictures, start = {}, 0
    for entry in about.pop("pictures"):
        jpeg = data["jpegs"][start : start + entry["bytes"]].tobytes()
        pictures[entry["place"]] = Picture(entry["name"], tuple(entry["size"]), jpeg)
        start += entry["bytes"]
    return Evaluation(images, about, pictures)


def _best(found: Detections) -> Detections:
    kept = np.sort(np.argsort(-found.scores, kind="stable")[:MAX_DETECTIONS])
    return Detections(found.boxes[kept], found.labels[kept], scores=found.scores[kept])


def _joined(instances: Sequence[Any], name: str) -> np.ndarray:
    shape = (0, 4) if name.endswith("boxes") else (0,)
    return np.concatenate([getattr(some, name) for some in instances]) if instances else np.zeros(shape)


def _split(counts: np.ndarray, *columns: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    ends = np.cumsum(counts.astype(int))[:-1]
    return list(zip(*(np.split(column, ends) for column in columns))) if len(counts) else []
