"""Weights by formula, and one small detector of each kind, for the tests of checkpoints."""

import importlib.util
from pathlib import Path

import pytest
import torch

from rfdetr.build import build_model
from rfdetr.config import VARIANTS
from rfdetr.weights import official_state_dict

GOLDENS = Path(__file__).parents[2] / "goldens" / "detector"


def _formula():
    spec = importlib.util.spec_from_file_location("golden_formula", GOLDENS / "formula.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORMULA = _formula()


@pytest.fixture(scope="session")
def golden_folder():
    return GOLDENS


@pytest.fixture(scope="session")
def layout():
    """Function: variant -> published names, shapes and dtypes."""
    return lambda variant: FORMULA.load_layout(GOLDENS / f"layout_{variant}.json")


def _filled(shapes):
    return {
        name: torch.zeros(shape, dtype=torch.bool) if name == "_kp_active_mask" else torch.from_numpy(FORMULA.fill(name, shape))
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="session")
def nano_weights(layout):
    """The "model" dict of a published nano file; tests must not change its tensors."""
    return _filled({name: spec["shape"] for name, spec in layout("nano").items()})


@pytest.fixture(scope="session")
def pico_weights():
    """The same for pico, which is small enough to be saved and loaded many times."""
    return _filled({name: tensor.shape for name, tensor in official_state_dict(build_model(VARIANTS["pico"])).items()})


@pytest.fixture(scope="session")
def blank():
    """Function: configuration -> model of zeros, made in no time."""
    def make(config):
        with torch.device("meta"):
            model = build_model(config)
        model.to_empty(device="cpu")
        for tensor in model.state_dict().values():
            tensor.zero_()
        return model

    return make


@pytest.fixture
def pico():
    return build_model(VARIANTS["pico"])
