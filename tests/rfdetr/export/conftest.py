"""Small models and pictures to export, and published variants with the goldens' weights."""

import dataclasses
import importlib.util
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfdetr import VARIANTS, LabelMap, build_model, checkpoint_payload, load_weights, official_state_dict

SMALL = {"resolution": (64, 96), "num_queries": 7, "num_select": 9, "num_classes": 2, "group_detr": 2,
         "out_feature_indexes": (1, 2)}  # few blocks: tracing and writing them is what takes time
CLASSES = LabelMap((3, 7), ("cat", "dog"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint(variant, args)` writes a small model, whose position table is of another size than its input."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(variant: str = "pico_seg", args: dict | None = None) -> Path:
        path = folder / f"{variant}-{zlib.crc32(json.dumps(args).encode())}.pth"
        if not path.exists():
            torch.manual_seed(0)
            config = dataclasses.replace(VARIANTS[variant], **SMALL)
            model = build_model(config)
            for layer, std in ((model.class_embed, 0.2), (model.bbox_embed.layers[-1], 0.05)):
                torch.nn.init.normal_(layer.weight, std=std)  # else all that is found is where it began, and scores alike
            torch.save(checkpoint_payload(model, config, args=args, label_map=CLASSES), path)
        return path

    return write


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, shape in enumerate([(40, 56, 3), (64, 96, 3), (90, 30, 3)]):
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory, pictures) -> str:
    """The pictures with a mask each, as a val split."""
    folder = tmp_path_factory.mktemp("data")
    images, annotations = [], []
    for number, path in enumerate(sorted(pictures.iterdir())):
        with Image.open(path) as image:
            images.append({"id": number, "file_name": path.name, "width": image.width, "height": image.height})
        annotations.append({"id": number, "image_id": number, "category_id": (3, 7)[number % 2], "bbox": [2, 3, 20, 30],
                            "area": 600, "segmentation": [[2, 3, 22, 3, 22, 33, 2, 33]]})
    (folder / "valid").symlink_to(pictures)
    categories = [{"id": id_, "name": name} for id_, name in zip(CLASSES.category_ids, CLASSES.category_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (pictures / "_annotations.coco.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture
def golden_checkpoint(tmp_path):
    """`golden_checkpoint(variant)` writes a published variant with weights by the goldens' formula."""
    place = Path(__file__).parents[2] / "goldens" / "detector" / "formula.py"
    spec = importlib.util.spec_from_file_location("golden_formula", place)
    formula = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formula)

    def write(variant: str) -> Path:
        model = build_model(VARIANTS[variant])
        state = {name: torch.from_numpy(formula.fill(name, value.shape)) if value.is_floating_point() else value
                 for name, value in official_state_dict(model).items()}
        load_weights(model, {"model": state})
        torch.save(checkpoint_payload(model, VARIANTS[variant]), tmp_path / f"{variant}.pth")
        return tmp_path / f"{variant}.pth"

    return write


@pytest.fixture(scope="session")
def real_images() -> Path:
    if "RFDETR_TEST_DATA" not in os.environ:
        pytest.skip("RFDETR_TEST_DATA is not set")
    return Path(os.environ["RFDETR_TEST_DATA"]) / "coco_real" / "val2017"
