"""Eight images are eight images: a batch of 8, four accumulated batches of 2, and two processes with 4 train the same detector."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rfdetr.data.shapes import make_shapes

SCRIPT = str(Path(__file__).with_name("equivalence_run.py"))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("equivalence")
    make_shapes(folder / "data", num_train=48, num_val=1, num_test=1, image_size=64)
    return folder


def train(folder: Path, name: str, launcher: list[str], batch_size: int, grad_accum_steps: int) -> dict:
    command = [sys.executable, *launcher, SCRIPT, str(folder / "data"), str(folder / name), str(batch_size), str(grad_accum_steps)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run(command, check=True, timeout=240, env=environment)
    return torch.load(folder / name)


def test_one_batch_accumulated_batches_and_two_processes_train_the_same_detector(folder):
    big = train(folder, "big.pth", [], 8, 1)
    assert len(big["losses"]) == 20
    for name, launcher, batch_size, grad_accum_steps in (("accumulated.pth", [], 2, 4), ("two.pth", TORCHRUN, 4, 1)):
        other = train(folder, name, launcher, batch_size, grad_accum_steps)
        difference = max(
            float((value - other["model"][key]).norm() / value.norm().clamp(min=1e-3)) for key, value in big["model"].items()
        )
        assert difference < 1e-9, f"{name}: weights differ by {difference:.1e}"
