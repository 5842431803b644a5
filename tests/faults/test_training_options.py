"""What people ask of a trainer, all at once: stopped in the middle of an epoch, with workers and in processes, it is one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parent))
import small_runs as small

from engine import load_checkpoint
from rfdetr.training import build_trainer, train
from rfdetr.training.parsing import plain_dict

OPTIONS = {
    "train.epochs": 5, "train.max_steps": 28,
    "optim.schedule": "plateau", "optim.schedule_args": {"patience": 1, "min_delta": 99.0, "metric": "val/ema_loss"},
    "train.keep_top": 3, "train.keep_every_epochs": 2, "eval.loss": True, "eval.monitor": "loss",
    "optim.groups": [{"match": "*.bias", "lr_scale": 2.0, "weight_decay": 0.0}], "optim.warmup_epochs": 0.5,
}

TOGETHER = {**OPTIONS, "train.max_steps": 14, "loss.normalize": "window", "train.precision": "fp32", "drop.dropout": 0.0,
            "data.batch_size": "auto", "train.effective_batch": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return small.make_data(tmp_path_factory.mktemp("data") / "set", 12)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    results = train(small.config(data, folder, **OPTIONS))
    assert (results["epochs"], results["steps"], results["status"]) == (4, 28, "done")
    return folder


@pytest.mark.parametrize(("step", "num_workers"), [(15, 0), (26, 2)])
def test_stopped_in_the_middle_of_an_epoch(data, straight, tmp_path, step, num_workers):
    options = {**OPTIONS, "data.num_workers": num_workers}
    trainer = build_trainer(small.config(data, tmp_path / "run", **options))
    hook = next(hook for hook in trainer.hooks if hook.name == "InterruptHook")
    hook.after_step = lambda trainer: trainer.interrupt("stopped") if trainer.step == step else None
    trainer.train()
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pth")["step"] == step
    train(small.config(data, tmp_path / "run", **options), resume="auto")
    assert [name for name in small.same_results(straight, tmp_path / "run") if "num_workers" not in name] == []
    for path in straight.glob("checkpoint_*_*.pth"):  # the epochs, the kept ones, their mean
        found = small.differences(load_checkpoint(path), load_checkpoint(tmp_path / "run" / path.name))
        assert [where for where in found if "args" not in where and not where.endswith(small.CLOCKS)] == [], path


def test_what_the_run_shows(straight):
    names = sorted(path.name for path in straight.glob("checkpoint_*_*.pth"))
    steps = [name for name in names if "_step_" in name]
    assert names == sorted(["checkpoint_best_average.pth", "checkpoint_best_ema.pth", "checkpoint_best_regular.pth",
                            "checkpoint_best_total.pth", "checkpoint_epoch_0002.pth", "checkpoint_epoch_0004.pth", *steps])
    results = json.loads((straight / "results.json").read_text())
    assert len(steps) == 3 and sorted(results["average"]["files"]) == steps
    lines = small.lines(straight)
    assert [line["step"] for line in lines if "val/ema_loss" in line] == [6, 12, 18, 24, 28]
    rates = {line["step"]: line["train/lr"] for line in lines if "train/lr" in line}
    assert [rates[step] for step in (12, 14, 20, 26)] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6]), "no evaluation was better by 99"


def test_two_processes_are_one(data, tmp_path):
    one = small.config(data, tmp_path / "one", **TOGETHER)
    two = small.config(data, tmp_path / "two", **TOGETHER)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plain_dict(two)))
    train_tool = Path(__file__).parents[2] / "tools" / "train.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(train_tool), "--cfg"]
    done = subprocess.run([*command, str(tmp_path / "run.yaml")], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    train(one)
    found = [small.lines(tmp_path / name) for name in ("one", "two")]
    assert [line["step"] for line in found[0]] == [line["step"] for line in found[1]]
    for alone, together in zip(*found):
        # a rounding of the weights may swap two detections of almost equal score
        tolerance = {"abs": 0.03} if "val/mAP_50_95" in alone else {"rel": 1e-3, "abs": 1e-4}
        assert together == pytest.approx(alone, **tolerance)
    sizes = [yaml.safe_load((tmp_path / name / "config.yaml").read_text())["data"]["batch_size"] for name in ("one", "two")]
    assert sizes == [4, 2]
    losses = [[line["val/loss"] for line in lines if "val/loss" in line] for lines in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
