"""A data set that takes no time, and a small configuration for it."""

import json

import numpy as np
import pytest
from PIL import Image

from rfdetr.training import DataConfig, DetectorConfig, LogConfig, RunConfig, TrainConfig


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """Four images of one rectangle each, in two splits."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "valid"):
        (root / split).mkdir()
        images = [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in range(4)]
        for image in images:
            pixels = np.full((64, 64, 3), 40 * image["id"], dtype=np.uint8)
            pixels[10:40, 10:50] = 240
            Image.fromarray(pixels).save(root / split / image["file_name"])
        annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 10, 40, 30], "area": 1200,
                        "segmentation": [[10, 10, 50, 10, 50, 40, 10, 40]]} for n in range(4)]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return str(root)


@pytest.fixture
def small(data, tmp_path):
    """`small(folder, **sections)` configures a run of some seconds."""

    def make(folder: str = "run", **sections) -> RunConfig:
        settings = {
            "model": DetectorConfig(variant="pico", resolution=64, num_queries=10, group_detr=2),
            "data": DataConfig(dataset_dir=data, batch_size=2, num_workers=0, multi_scale=False, augment="flips"),
            "train": TrainConfig(epochs=1, device="cpu", output_dir=str(tmp_path / folder)),
            "log": LogConfig(tensorboard=False, plots=False, progress=False, every_steps=1),
        }
        return RunConfig(**{**settings, **sections})

    return make
