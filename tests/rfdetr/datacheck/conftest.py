"""A small clean data set on disk, as content to spoil, and the check of it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfdetr.datacheck import DatasetCheck, check_dataset

HEIGHT, WIDTH = 120, 160
FOLDERS = {"train": "train", "val": "valid"}


@pytest.fixture(scope="session")
def real_data() -> Path:
    if "RFDETR_TEST_DATA" not in os.environ:
        pytest.skip("RFDETR_TEST_DATA is not set")
    return Path(os.environ["RFDETR_TEST_DATA"])


def save_picture(path: Path, seed: int, size: tuple[int, int] = (HEIGHT, WIDTH), **options) -> None:
    """Write a smooth random picture, which is like no other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size[::-1], Image.BICUBIC).save(path, **options)


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


class DataSet:
    """A folder in Roboflow's layout with a cat and a dog on each image; tests change `content` and files, then check it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content = {split: self._clean(split, count) for split, count in (("train", 12), ("val", 6))}
        for split, content in self.content.items():
            (root / FOLDERS[split]).mkdir(parents=True)
            for image in content["images"]:
                save_picture(self.path(split, image["file_name"]), seed=image["id"])

    @staticmethod
    def _clean(split: str, count: int) -> dict:
        images, annotations = [], []
        for number in range(count):
            image_id = {"train": 100, "val": 200}[split] + number
            images.append({"id": image_id, "file_name": f"{split}_{number}.jpg", "height": HEIGHT, "width": WIDTH})
            for category, box in ((1, [10, 20, 40, 30]), (2, [70 + number, 50, 44, 52])):
                annotations.append({"id": 10 * image_id + category, "image_id": image_id, "category_id": category, "bbox": box,
                                    "area": box[2] * box[3], "iscrowd": 0, "segmentation": rectangle(*box)})
        categories = [{"id": 0, "name": "animals", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "animals"},
                      {"id": 2, "name": "dog", "supercategory": "animals"}]
        return {"images": images, "annotations": annotations, "categories": categories}

    def path(self, split: str, name: str) -> Path:
        return self.root / FOLDERS[split] / name

    def image(self, number: int, split: str = "train") -> dict:
        return self.content[split]["images"][number]

    def cat(self, number: int, split: str = "train") -> dict:
        return self.content[split]["annotations"][2 * number]

    def dog(self, number: int, split: str = "train") -> dict:
        return self.content[split]["annotations"][2 * number + 1]

    def set_box(self, annotation: dict, box: list[float]) -> None:
        annotation.update(bbox=box, area=box[2] * box[3], segmentation=rectangle(*box))

    def write(self) -> Path:
        for split, content in self.content.items():
            self.path(split, "_annotations.coco.json").write_text(json.dumps(content))
        return self.root

    def check(self, **options) -> DatasetCheck:
        return check_dataset(self.write(), input_size=(160, 160), **options)


@pytest.fixture
def dataset(tmp_path) -> DataSet:
    return DataSet(tmp_path / "data")


def counts(check: DatasetCheck) -> dict[tuple[str, str], int]:
    """What was found: (split, name) -> count."""
    return {(found.split, found.name): found.count for found in check.findings}


@pytest.fixture
def found():
    return counts


@pytest.fixture
def picture():
    return save_picture
