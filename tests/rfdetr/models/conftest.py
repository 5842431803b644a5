"""Detectors with the goldens' weights, and small detectors for tests of behaviour."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rfdetr.build import build_model
from rfdetr.config import VARIANTS
from rfdetr.nested_tensor import pad_images
from rfdetr.weights import load_weights

GOLDENS = Path(__file__).parents[2] / "goldens" / "detector"


def _import_formula():
    spec = importlib.util.spec_from_file_location("golden_formula", GOLDENS / "formula.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORMULA = _import_formula()


@functools.cache
def _golden_model(variant, num_queries, dtype):
    default = VARIANTS[variant]
    suffix = "" if num_queries == default.num_queries else f"_q{num_queries}"
    model = build_model(dataclasses.replace(default, num_queries=num_queries))
    arrays = FORMULA.state_dict_arrays(FORMULA.load_layout(GOLDENS / f"layout_{variant}{suffix}.json"))
    report = load_weights(model, {"model": {name: torch.from_numpy(array) for name, array in arrays.items()}})
    assert not report.missing
    return model.to(dtype)


@pytest.fixture(scope="session")
def golden_forward():
    """Function: name of a golden file -> its arrays, the model, and the inputs for evaluation and training."""
    def load(name):
        with np.load(GOLDENS / f"{name}.npz") as file:
            arrays = dict(file)
        meta = json.loads(str(arrays.pop("meta")))
        dtype = getattr(torch, meta["dtype"].removeprefix("torch."))

        def image(tag, shape):
            return torch.from_numpy(FORMULA.image(tag, shape)).to(dtype)

        if meta["image_shape"] is None:
            samples = pad_images([image(*each) for each in zip(meta["image_tags"], meta["image_list_shapes"])])
        else:
            samples = image(meta["image_tag"], meta["image_shape"])
        train_shape = meta.get("train_image_shape")
        return SimpleNamespace(
            arrays=arrays, model=_golden_model(meta["variant"], meta["num_queries"], dtype), samples=samples,
            train_samples=None if train_shape is None else image(meta["train_image_tag"], train_shape),
        )
    return load


@pytest.fixture(scope="session")
def golden_postprocess():
    """Function: name of a golden file -> inputs, and results for each image, and num_select."""
    def load(name):
        with np.load(GOLDENS / f"{name}.npz") as file:
            arrays = dict(file)
        meta = json.loads(str(arrays.pop("meta")))
        inputs = {key[3:]: torch.from_numpy(array) for key, array in arrays.items() if key.startswith("in/")}
        results = [
            {key.split("/")[2]: array for key, array in arrays.items() if key.startswith(f"out/{index}/")}
            for index in range(len(inputs["target_sizes"]))
        ]
        return inputs, results, meta["num_select"]
    return load


@pytest.fixture
def tiny():
    """Function: a pico detector made even smaller, with windows and any changed field."""
    def build(**fields):
        torch.manual_seed(0)
        small = {"out_feature_indexes": (1, 3), "num_windows": 2, "resolution": 64, "positional_encoding_size": 4,
                 "hidden_dim": 32, "dim_feedforward": 64, "sa_nheads": 2, "ca_nheads": 4, "num_queries": 7,
                 "num_select": 5, "group_detr": 3, "num_classes": 4}
        return build_model(dataclasses.replace(VARIANTS["pico"], **{**small, **fields}))
    return build
