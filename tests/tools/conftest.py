"""A data set that a small detector learns something of in a few steps, and one finished run on it, shared by the tests."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rfdetr.training.commands import fit

sys.path.append(str(Path(__file__).parent))  # for `observers`

SETTINGS = {
    "model": {"variant": "pico", "resolution": 64, "num_queries": 10, "group_detr": 4},
    "data": {"batch_size": 4, "num_workers": 0, "multi_scale": False, "augment": "none"},
    "optim": {"lr": 3e-3, "lr_encoder": 3e-3, "clip_max_norm": 1.0},
    "train": {"epochs": 3, "device": "cpu"},
    "ema": {"decay": 0.5},
    "log": {"every_steps": 2},
}


def _write_split(folder: Path, num_images: int, names: tuple[str, ...] = ("bright", "dark")) -> None:
    """Write images with one large rectangle each, whose class is its brightness, in Roboflow's layout."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(num_images)
    images, annotations = [], []
    for number in range(num_images):
        (x, y), (w, h) = generator.integers(8, 14, 2).tolist(), generator.integers(38, 46, 2).tolist()
        pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
        pixels[y : y + h, x : x + w] = (240, 20)[number % 2]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
        annotations.append({"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [x, y, w, h], "area": w * h})
    categories = [{"id": 1 + index, "name": name} for index, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture
def write_split():
    return _write_split


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split, num_images in (("train", 24), ("valid", 8), ("test", 4)):
        _write_split(root / split, num_images)
    return root


@pytest.fixture(scope="session")
def config_file(tmp_path_factory, dataset_dir) -> str:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "data": {**SETTINGS["data"], "dataset_dir": str(dataset_dir)}}))
    return str(path)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, config_file) -> Path:
    """The folder of a run that went to its end."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert fit(["--cfg", config_file, "--train.output_dir", str(folder), "--eval.run_test", "true"]) == 0
    return folder
