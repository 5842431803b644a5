"""Small data sets on disk, and the real ones where RFDETR_TEST_DATA says that they are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def real_data() -> Path:
    if "RFDETR_TEST_DATA" not in os.environ:
        pytest.skip("RFDETR_TEST_DATA is not set")
    return Path(os.environ["RFDETR_TEST_DATA"])


@pytest.fixture(scope="session")
def write_picture():
    """`write_picture(path, (h, w), seed)` writes a smooth random picture and returns its pixels (h, w, 3)."""
    def write(path: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size[::-1], Image.BICUBIC)
        image.save(path)
        return np.asarray(image)
    return write


@pytest.fixture
def coco_content():
    """`coco_content(num_images)`: classes cat (id 3) and dog (id 7), image i with i % 3 boxes, and one crowd on image 1."""
    def make(num_images: int = 6, *, size: tuple[int, int] = (60, 80), extension: str = "png") -> dict:
        images, annotations = [], []
        for i in range(num_images):
            images.append({"id": 10 + i, "file_name": f"picture_{i}.{extension}", "height": size[0], "width": size[1]})
            for j in range(i % 3):
                x, y = 5 + 30 * j, 4 + i
                polygon = [x, y, x + 20, y, x + 20, y + 16, x, y + 16]
                annotations.append({"id": len(annotations), "image_id": 10 + i, "category_id": (3, 7)[j], "bbox": [x, y, 20, 16],
                                    "area": 300 + j, "iscrowd": 0, "segmentation": [polygon]})
        runs = {"size": list(size), "counts": [100, size[0] * size[1] - 100]}
        annotations.append({"id": 900, "image_id": 11, "category_id": 3, "bbox": [1, 1, 70, 50], "area": 3500, "iscrowd": 1,
                            "segmentation": runs})
        categories = [{"id": 3, "name": "cat", "supercategory": "none"}, {"id": 7, "name": "dog", "supercategory": "none"}]
        return {"images": images, "annotations": annotations, "categories": categories}
    return make


@pytest.fixture
def write_roboflow(tmp_path, write_picture):
    """`write_roboflow(train=content, valid=content)` writes a data set in Roboflow's layout and returns its folder."""
    def write(**splits) -> Path:
        for split, content in splits.items():
            folder = tmp_path / "data" / split
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_annotations.coco.json").write_text(json.dumps(content))
            for image in content["images"]:
                write_picture(folder / image["file_name"], (image["height"], image["width"]), seed=image["id"])
        return tmp_path / "data"
    return write


@pytest.fixture
def class_counts():
    """`class_counts(dataset)`: number of boxes of each class, crowds left out."""
    def count(dataset) -> dict[str, int]:
        targets = [dataset[index][1] for index in range(len(dataset))]
        labels = np.concatenate([target["labels"][target["iscrowd"] == 0] for target in targets])
        return dict(zip(dataset.label_map.names, np.bincount(labels, minlength=len(dataset.label_map.names)).tolist()))
    return count
