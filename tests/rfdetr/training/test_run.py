"""A run from Python: the same as from the command lines, with one's own parts, and leaving nothing behind."""

import gc
import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from engine import load_checkpoint
from rfdetr import build_criterion, build_model, load
from rfdetr.errors import InputError
from rfdetr.training import (
    DataConfig,
    EarlyStoppingConfig,
    EvalConfig,
    OptimConfig,
    RunConfig,
    build_trainer,
    evaluate,
    train,
)
from rfdetr.training.parsing import plain_dict
from rfdetr.training.without_effect import settings_without_effect, warn_of_settings_without_effect

ROOT = Path(__file__).parents[3]
DOORS = {
    "tools": [str(ROOT / "tools" / "train.py"), "--cfg"],
    "fit": ["-c", "from rfdetr.training.main import main; main()", "fit", "--config"],
}


def content(folder: Path) -> dict:
    """Names of a run's files, its metrics without clocks, and its weights."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "metrics": [{key: value for key, value in line.items() if key not in ("train/images_per_s", "train/data_wait")}
                    for line in lines],
        "results": json.loads((folder / "results.json").read_text()),
        "config": {**yaml.safe_load((folder / "config.yaml").read_text()), "train": None},
    }  # fmt: skip


def test_every_door_leads_to_the_same_run(small, tmp_path):
    train(small("python"))
    build_trainer(small("built")).train()
    for name, words in DOORS.items():
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(plain_dict(small(name))))
        done = subprocess.run([sys.executable, *words, str(tmp_path / "run.yaml")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    expected = content(tmp_path / "python")
    weights = load_checkpoint(tmp_path / "python" / "checkpoint.pth")
    for name in ("built", *DOORS):
        assert content(tmp_path / name) == expected, name
        again = load_checkpoint(tmp_path / name / "checkpoint.pth")
        for part in ("model", "ema_model"):
            assert all(torch.equal(again[part][key], value) for key, value in weights[part].items())


def test_a_configuration_is_read_with_overrides(small, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plain_dict(small())))
    config = RunConfig.from_yaml(tmp_path / "run.yaml", train={"epochs": 3}, **{"optim.lr": 0.5, "eval.monitor": "F1"})
    assert (config.train.epochs, config.train.device) == (3, "cpu"), "the rest of the section stays"
    assert (config.optim.lr, config.eval.monitor) == (0.5, "F1")
    assert RunConfig.from_yaml(tmp_path / "run.yaml") == small()
    with pytest.raises(InputError, match=r"--train\.epoch: there is no such option; did you mean --train\.epochs"):
        RunConfig.from_yaml(tmp_path / "run.yaml", train={"epoch": 3})


def test_it_stops_and_goes_on(small, tmp_path):
    config = small(train=replace(small().train, max_hours=1e-9))
    assert train(config)["status"] == "interrupted"
    assert not (tmp_path / "run" / "results.json").exists()
    results = train(small(), resume="auto")
    assert (results["status"], results["epochs"]) == ("done", 1)


def test_what_is_not_as_expected_is_said_in_one_line(small, tmp_path, caplog):
    """Random weights, few images, and a run that is at its end."""
    with caplog.at_level(logging.INFO):
        train(small())
        said = "\n".join(caplog.messages)
        assert said.count("the model starts from random weights") == 1
        assert said.count("4 samples are few for batches of 2: images are drawn with replacement, 5 steps an epoch") == 1
        starts = [message.split()[0] for message in caplog.messages]
        assert [start for start in starts if start in ("epoch", "1/1")] == ["epoch", "1/1"], "the table of one epoch"
        caplog.clear()
        train(small(), resume="auto")
        assert [message for message in caplog.messages if "nothing is left to do" in message] == [caplog.messages[-1]]
        assert "random weights" not in " ".join(caplog.messages)


def test_a_second_call_finds_nothing_left_of_the_first(small, tmp_path):
    config = small(data=replace(small().data, num_workers=1))
    before = logging.getLogger("rfdetr").handlers + logging.getLogger().handlers
    for name in ("first", "second"):
        train(replace(config, train=replace(config.train, output_dir=str(tmp_path / name))))
    gc.collect()
    assert torch.multiprocessing.active_children() == []
    assert logging.getLogger("rfdetr").handlers + logging.getLogger().handlers == before
    assert not torch.distributed.is_initialized()
    assert content(tmp_path / "first")["metrics"] == content(tmp_path / "second")["metrics"]


# --- one's own parts ---


class Pairs(torch.utils.data.Dataset):
    """Pictures in memory, of any sizes, with a box each; the brightness is drawn at random."""

    class_names = ["bright", "dark"]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int):
        pixels = np.full((48 + index, 64, 3), 128, dtype=np.uint8)
        pixels[8:40, 10:50] = (240, 20)[index % 2] - np.random.randint(5)
        return Image.fromarray(pixels), {"boxes": [[0.47, 0.5, 0.62, 0.6]], "labels": [index % 2]}


class Doubled(torch.nn.Module):
    """A criterion around the detector's own."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0
        self.weight_dict = {name: 2 * weight for name, weight in inner.weight_dict.items()}

    def forward(self, outputs, targets):
        self.calls += 1
        return self.inner(outputs, targets)


def own_parts(config):
    architecture = config.model.architecture(2)
    return {"model": build_model(architecture), "criterion": Doubled(build_criterion(architecture)), "train_set": Pairs(),
            "val_set": Pairs(), "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)}


def test_a_run_of_ones_own_parts(small, tmp_path):
    config = small(data=DataConfig(batch_size=2, num_workers=0))
    torch.manual_seed(0)
    parts = own_parts(config)
    results = train(config, **parts)
    assert parts["criterion"].calls == 5
    assert results["status"] == "done" and "val/AP/dark" in results["best"]["metrics"]
    best = load_checkpoint(tmp_path / "run" / "checkpoint_best_total.pth")
    assert [row["name"] for row in best["label_map"]["classes"]] == ["bright", "dark"]
    (found,) = load(tmp_path / "run" / "checkpoint_best_total.pth", "cpu").predict(Pairs()[0][0], threshold=0.0)
    assert set(found.names) <= {"bright", "dark"} and found.boxes.shape[1] == 4


def test_ones_own_data_resume_in_the_middle_of_an_epoch(small, tmp_path):
    """What the data set draws belongs to the position in the run."""
    runs = {}
    for name, workers in (("straight", 0), ("stopped", 2)):
        config = small(name, data=DataConfig(batch_size=2, num_workers=workers, multi_scale=True))
        parts = {"train_set": Pairs(), "val_set": Pairs()}
        if name == "stopped":
            assert train(replace(config, train=replace(config.train, max_hours=1e-9)), **parts)["status"] == "interrupted"
        train(config, resume="auto", **parts)
        runs[name] = load_checkpoint(tmp_path / name / "checkpoint.pth")["model"]
    assert all(torch.equal(value, runs["stopped"][key]) for key, value in runs["straight"].items())


@pytest.mark.parametrize(("sample", "message"), [
    ((torch.zeros(3, 64, 64), {"boxes": [[0.5] * 4], "labels": [0, 1]}), r"Broken\[\d\]: 1 boxes and 2 labels"),
    ((torch.zeros(3, 64, 64), {"boxes": [[10, 10, 50, 50]], "labels": [0]}), r"boxes must be cxcywh as fractions"),
    ((torch.zeros(3, 64, 64), {"boxes": [[0.5] * 4], "labels": [2]}), r"labels must be below 2"),
    ((torch.zeros(3, 64, 64), {"labels": [0]}), r"must be a dict with boxes and labels"),
    (torch.zeros(3, 64, 64), r"is not a pair of image and target"),
])  # fmt: skip
def test_samples_that_do_not_fit_are_named(small, sample, message):
    class Broken(Pairs):
        def __getitem__(self, index):
            return sample

    with pytest.raises(InputError, match=message):
        train(small(data=DataConfig(batch_size=2, num_workers=0)), train_set=Broken(), val_set=Pairs())


def test_parts_that_do_not_fit_are_refused(small):
    config = small(data=DataConfig(batch_size=2, num_workers=0))
    other = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="optimizer: it is of other parameters than the model's"):
        build_trainer(config, train_set=Pairs(), val_set=Pairs(), optimizer=torch.optim.SGD(other.parameters(), lr=1.0))

    class Nameless(Pairs):
        class_names = None

    with pytest.raises(InputError, match="Nameless has no `class_names`"):
        build_trainer(config, train_set=Nameless(), val_set=Pairs())
    with pytest.raises(InputError, match="needs __getitem__ and __len__"):
        build_trainer(config, train_set=3, val_set=Pairs())


# --- evaluate and predict ---


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    (folder.parent / "run.yaml").write_text(yaml.safe_dump({
        "model": {"variant": "pico", "resolution": 64, "num_queries": 10, "group_detr": 2},
        "data": {"dataset_dir": data, "batch_size": 2, "num_workers": 0},
        "train": {"epochs": 1, "device": "cpu", "output_dir": str(folder)},
        "log": {"plots": False, "tensorboard": False},
    }))
    train(RunConfig.from_yaml(folder.parent / "run.yaml"))
    return folder


def test_evaluate_returns_the_numbers_of_training(finished):
    results = json.loads((finished / "results.json").read_text())
    content = evaluate(finished / "checkpoint_best_total.pth")
    expected = {key: value for key, value in results["best"]["metrics"].items() if not key.startswith("val/ema_")}
    assert len(content["coco"]) == 12 and content["per_class"]["box"]["objects"] == 4
    if "val/mAP_50_95" in expected and load_checkpoint(finished / "checkpoint_best_total.pth")["epoch"]:
        assert content["metrics"].keys() == expected.keys()
    narrowed = evaluate(finished / "checkpoint_best_total.pth", eval={"per_class": False})
    assert "val/AP/box" not in narrowed["metrics"]
    with pytest.raises(InputError, match="eval.max_dets: 0 is not possible"):
        evaluate(finished / "checkpoint_best_total.pth", eval={"max_dets": 0})
    with pytest.raises(InputError, match="has no test split"):
        evaluate(finished / "checkpoint_best_total.pth", "test")


def test_settings_that_change_nothing_are_named_in_one_line(small, caplog):
    config = small(early_stopping=EarlyStoppingConfig(patience=3),
                   optim=OptimConfig(schedule="cosine", lr_drop=5, warmup_epochs=2))
    assert set(settings_without_effect(config)) == {"early_stopping.patience", "optim.lr_drop", "optim.warmup_epochs"}
    warn_of_settings_without_effect(config)
    (record,) = caplog.records
    assert "early_stopping.patience (early_stopping.enabled is false)" in record.getMessage()
    assert settings_without_effect(small()) == {}


def test_the_monitored_metric_is_that_of_the_variant_unless_told_otherwise(small):
    assert small(eval=EvalConfig(monitor="mAP_50")).monitor == "mAP_50"
    assert small().monitor == "mAP_50_95"
    assert small(model=replace(small().model, variant="pico_seg")).monitor == "segm_mAP_50_95"
