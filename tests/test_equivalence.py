"""A batch of 8, four accumulated batches of 2, and two processes with batches of 4 train the same detector."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rfdetr.shapes.dataset import make_shapes

SCRIPT = str(Path(__file__).with_name("equivalence_run.py"))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("equivalence")
    make_shapes(folder / "data", num_train=48, num_val=1, num_test=1, image_size=64)
    return folder


def train(folder: Path, name: str, launcher: list[str], batch_size: int, grad_accum_steps: int) -> dict:
    arguments = [folder / "data", folder / name, batch_size, grad_accum_steps]
    command = [sys.executable, *launcher, SCRIPT, *map(str, arguments)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    subprocess.run(command, check=True, timeout=240, env=environment)
    return torch.load(folder / name)


def worst_relative_difference(ours: dict, others: dict) -> float:
    return max(float((value - others[key]).norm() / value.norm().clamp(min=1e-3)) for key, value in ours.items())


def test_one_batch_accumulated_batches_and_two_processes_train_the_same_detector(folder):
    big = train(folder, "big.pth", [], 8, 1)
    assert len(big["torch.float64"]["losses"]) == 20
    for name, launcher, batch_size, grad_accum_steps in (("accumulated.pth", [], 2, 4), ("two.pth", TORCHRUN, 4, 1)):
        other = train(folder, name, launcher, batch_size, grad_accum_steps)
        assert worst_relative_difference(big["torch.float64"]["model"], other["torch.float64"]["model"]) < 1e-9, name
        # in float32 Adam and the choice of the best tokens amplify rounding: only the first steps can agree
        first = [results["torch.float32"]["losses"][:3] for results in (big, other)]
        torch.testing.assert_close(*first, rtol=1e-4, atol=0)
