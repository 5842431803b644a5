"""Two torchrun agents, as on two machines: they train what one process trains, and one of them writes the files.

A part is frozen and activations are recomputed, to show that neither gets in the way of several processes.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rfdetr.training.commands import fit

TRAIN = Path(__file__).parents[2] / "tools" / "train.py"
CLOCKS = {"train/images_per_s": 0.0, "train/data_wait": 0.0}
SHORT = ("--train.epochs", "3", "--eval.every_epochs", "3", "--loss.normalize", "window", "--log.plots", "false",
         "--log.tensorboard", "false", "--model.freeze", '["backbone.encoder.cls_token"]',
         "--model.gradient_checkpointing", "true", "--train.precision", "fp32")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_node(node: int, meeting: str, *argv: str) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1",
        "--rdzv_backend", "c10d", "--rdzv_endpoint", meeting, "--rdzv_id", "test", str(TRAIN), *argv,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_nodes_train_what_one_process_trains(config_file, tmp_path):
    meeting = f"127.0.0.1:{free_port()}"
    argv = ["--cfg", config_file, *SHORT]
    nodes = [start_node(node, meeting, *argv, "--data.batch_size", "2", "--train.output_dir", str(tmp_path / "two"))
             for node in range(2)]
    assert fit([*argv, "--data.batch_size", "4", "--train.output_dir", str(tmp_path / "one")]) == 0
    for process in nodes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output

    one, two = read_lines(tmp_path / "one"), read_lines(tmp_path / "two")
    assert [line["step"] for line in two] == [line["step"] for line in one], "half a batch each"
    assert max(line.get("val/mAP_50_95", 0.0) for line in one) > 0
    for alone, together in zip(one, two):
        # a rounding of the weights may swap two detections of almost equal score
        tolerance = {"abs": 0.02} if "val/mAP_50_95" in alone else {"rel": 1e-3, "abs": 1e-4}
        assert {**together, **CLOCKS} == pytest.approx({**alone, **CLOCKS}, **tolerance)
    assert json.loads((tmp_path / "two" / "results.json").read_text())["steps"] == one[-1]["step"]
