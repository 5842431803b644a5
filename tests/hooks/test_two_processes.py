"""Two Gloo processes: a signal to one stops both at the same step, logged means are of both, one of them writes."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import pickle, signal, sys
sys.path.insert(0, {engine_tests!r})
import torch, torch.distributed as dist
from engine.distributed import leave_process_group
from hooks import BestCheckpointHook, CheckpointHook, Hook, InterruptHook, LogHook
from toy import make_trainer

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + {out!r} + "/meeting_point", rank=rank, world_size=2)

class Sender(Hook):
    def after_step(self, trainer):
        if trainer.step == 4 and rank == 1:
            signal.raise_signal(signal.SIGUSR1)

class Writer:
    lines = []
    def write(self, scalars, step, epoch):
        self.lines.append((step, scalars))
    def close(self):
        pass

class Recorder(Hook):
    losses = []
    def after_step(self, trainer):
        self.losses.append(trainer.losses["loss"].item())
        trainer.log(f"mine/{{rank}}", trainer.step)
        trainer.log("mine/both", rank)

class Publisher(Hook):
    def after_epoch(self, trainer):
        trainer.publish_metrics({{"val/mAP_50_95": 0.5}})

log = LogHook([Writer()], every_steps=2)
hooks = [Recorder(), log, BestCheckpointHook(), Sender(), InterruptHook(), CheckpointHook(), Publisher()]
trainer = make_trainer({out!r}, hooks=hooks, num_samples=40, rank=rank, world_size=2)
trainer.train()
said = dict(step=trainer.step, reason=trainer.stop_reason, losses=Recorder.losses, lines=Writer.lines)
said["state"] = log.state_dict()["means"]["totals"].tolist()
pickle.dump(said, open({out!r} + f"/rank{{rank}}.pkl", "wb"))
leave_process_group()
"""


def test_two_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(engine_tests=str(Path(__file__).parents[1] / "engine"), out=str(tmp_path)))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    processes = [subprocess.Popen([sys.executable, str(script), str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    main, other = (pickle.loads((tmp_path / f"rank{rank}.pkl").read_bytes()) for rank in range(2))
    mine = {name: value for name, value in main["lines"][0][1].items() if name.startswith("mine/")}
    assert mine == {"mine/0": 1.5, "mine/1": 1.5, "mine/both": 0.5}, "what any rank has logged, the mean of all"

    assert main["step"] == other["step"] == 4
    assert other["reason"] == "received SIGUSR1" and main["reason"] == "rank 1: received SIGUSR1"
    assert other["lines"] == [] and [step for step, _ in main["lines"]] == [2, 4]
    for row, (_, scalars) in enumerate(main["lines"]):
        losses = main["losses"][2 * row : 2 * row + 2] + other["losses"][2 * row : 2 * row + 2]
        assert scalars["train/loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert main["state"] == other["state"]
    assert (tmp_path / "checkpoint.pth").exists()
