"""What only a GPU can show: ``pytest tests/cuda``, in at most 8 minutes on one GPU.

Most tests are also run on the CPU, so that what they say of the loop is known to hold before a GPU sees it.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from engine.device import use_device
from engine.randomness import set_deterministic
from rfdetr.shapes.dataset import make_shapes
from rfdetr.training import RunConfig, build_trainer
from rfdetr.training.evaluation import config_of

SMALL = {
    "model": {"variant": "pico", "resolution": 64, "num_queries": 10, "group_detr": 2},
    "data": {"batch_size": 2, "num_workers": 0, "multi_scale": False, "augment": "flips"},
    "optim": {"lr": 1e-3, "lr_encoder": 1e-3},
    "train": {"epochs": 1, "precision": "fp32"},
    "log": {"tensorboard": False, "plots": False, "progress": False, "every_steps": 2},
}


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> torch.device:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        use_device(torch.device("cuda", 0))
        return torch.device("cuda", 0)
    return torch.device("cpu")


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    use_device(torch.device("cuda", 0))
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def plain_settings():
    """Exact products in fp32, and what a test changes for the whole process as it was."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    set_deterministic(False)
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """16 training images: 8 steps of an epoch."""
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", num_train=16, num_val=4, num_test=1, image_size=64)


@pytest.fixture
def configure(shapes, tmp_path):
    """Return a function that makes a small configuration, with changes to its sections, for a device."""

    def make(device: torch.device, folder: str = "run", **sections: dict) -> RunConfig:
        settings = {name: {**SMALL.get(name, {}), **sections.get(name, {})} for name in {**SMALL, **sections}}
        settings["data"]["dataset_dir"] = str(shapes)
        settings["train"] |= {"device": str(device), "output_dir": str(tmp_path / folder)}
        return config_of({"args": {}}, settings)

    return make


@pytest.fixture
def build(configure):
    """Return a function that makes a trainer of such a configuration."""

    def make(device: torch.device, hooks: list = (), **sections: dict):
        return build_trainer(configure(device, **sections), hooks)

    return make


@pytest.fixture
def group(device, tmp_path):
    """A process group with this process alone, of the backend that several would have."""
    options = {"device_id": device} if device.type == "cuda" else {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/meeting_point", rank=0, world_size=1, **options)
    yield backend
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def report(request, tmp_path_factory):
    """A dict that is printed at the end, and written to the file that RFDETR_CUDA_REPORT names."""
    found: dict = {}
    yield found
    path = Path(os.environ.get("RFDETR_CUDA_REPORT") or tmp_path_factory.mktemp("cuda") / "report.json")
    path.write_text(json.dumps(found, indent=2) + "\n")
    request.config.get_terminal_writer().line(f"\n{path}:\n{json.dumps(found, indent=2)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of this folder last: they start threads of autograd, after which a forked process can no longer train."""
    items.sort(key=lambda item: Path(__file__).parent in item.path.parents)
