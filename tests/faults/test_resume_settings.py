"""A resumed run takes its state from the checkpoint and its settings from the new command; what cannot change is refused."""

import json
import os
import shutil
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

sys.path.append(str(Path(__file__).parent))
import small_runs as small

from engine import load_checkpoint
from rfdetr.errors import InputError
from rfdetr.training import build_trainer, train
from rfdetr.training.resume import load_state

BASE = {"optim.schedule": "cosine", "optim.warmup_epochs": 0.5, "optim.optimizer_args": {"betas": [0.8, 0.99]}}
EPOCHS = {"train.epochs": 3}  # of the whole run; the first one stops after one


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return small.make_data(tmp_path_factory.mktemp("data") / "set", 12)


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory) -> Path:
    """The folder of a run of three epochs that was stopped in the middle of the second."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    run = small.config(data, folder, **BASE, **EPOCHS)
    trainer = build_trainer(run)
    stop_at(trainer, 9)
    trainer.train()
    assert load_checkpoint(folder / "checkpoint.pth")["step"] == 9
    return folder


def stop_at(trainer, step: int) -> None:
    hook = next(hook for hook in trainer.hooks if hook.name == "InterruptHook")
    hook.after_step = lambda trainer: trainer.interrupt("stopped") if trainer.step == step else None


def loaded(stopped: Path, data: str, **settings):
    """Return a trainer with the state of the stopped run, and with other settings."""
    trainer = build_trainer(small.config(data, stopped, **{**BASE, **EPOCHS, **settings}), resumed=True)
    load_state(trainer, load_checkpoint(stopped / "checkpoint.pth"))
    return trainer


def fresh_rates(data: str, folder: Path, step: int, **settings) -> list[float]:
    """Return the learning rates at a step of a run that had these settings from its start on."""
    trainer = build_trainer(small.config(data, folder, **{**BASE, **EPOCHS, **settings}))
    steps(trainer, step)
    return rates(trainer)


def steps(trainer, number: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a schedule without an optimizer
        for _ in range(number):
            trainer.lr_scheduler.step()


def rates(trainer) -> list[float]:
    return [group["lr"] for group in trainer.optimizer.param_groups]


@pytest.mark.parametrize("changed", [
    {"optim.lr": 1e-5}, {"optim.lr_encoder": 1e-5}, {"optim.lr_component_decay": 1.0, "optim.lr_vit_layer_decay": 1.0},
    {"optim.lr_min_factor": 0.5}, {"optim.schedule": "step", "optim.lr_drop": 1}, {"train.epochs": 9},
    {"optim.schedule": "ExponentialLR", "optim.schedule_args": {"gamma": 0.9}}, {"optim.warmup_epochs": 2.0},
    {"optim.schedule": "flat_cosine"}, {"optim.schedule": "polynomial", "optim.schedule_args": {"power": 2.0}},
    {"optim.groups": [{"match": "*.bias", "lr_scale": 2.0}]}, {"train.max_steps": 12},
], ids=str)  # fmt: skip
def test_rates_and_schedule_are_those_of_the_new_command(data, stopped, tmp_path, changed):
    trainer = loaded(stopped, data, **changed)
    assert rates(trainer) == fresh_rates(data, tmp_path, 9, **changed)
    steps(trainer, 1)
    assert rates(trainer) == fresh_rates(data, tmp_path, 10, **changed)


def test_a_composed_schedule_moves_with_all_its_parts(data, tmp_path):
    settings = {"optim.schedule": "CosineAnnealingLR", "optim.schedule_args": {"T_max": 20}, "train.epochs": 3}
    run = small.config(data, tmp_path / "run", **settings, **{"optim.warmup_epochs": 0.5})
    trainer = build_trainer(run)
    stop_at(trainer, 9)
    trainer.train()
    for changed in ({}, {"optim.schedule_args": {"T_max": 40}}, {"optim.lr": 1e-4}):
        new = {**settings, "optim.warmup_epochs": 0.5, **changed}
        again = build_trainer(small.config(data, tmp_path / "run", **new), resumed=True)
        load_state(again, load_checkpoint(tmp_path / "run" / "checkpoint.pth"))
        straight = build_trainer(small.config(data, tmp_path / "other", **new))
        steps(straight, 9)
        for _ in range(5):
            assert rates(again) == rates(straight), changed
            steps(again, 1), steps(straight, 1)


@pytest.mark.parametrize(("changed", "field", "value"), [
    ({"optim.weight_decay": 0.5}, "weight_decay", 0.5), ({"optim.optimizer_args": {"betas": [0.5, 0.9]}}, "betas", (0.5, 0.9)),
    ({"optim.optimizer_args": {"eps": 1e-3}}, "eps", 1e-3), ({"optim.optimizer_args": {"fused": False}}, "fused", False),
])  # fmt: skip
def test_what_the_optimizer_is_told_acts_and_its_moments_stay(data, stopped, changed, field, value):
    before, trainer = loaded(stopped, data), loaded(stopped, data, **changed)
    assert any(type(value)(group[field]) == value for group in trainer.optimizer.param_groups)
    names = {parameter: name for name, parameter in trainer.unwrapped_model.named_parameters()}
    moments = {names[parameter]: state["exp_avg"] for parameter, state in trainer.optimizer.state.items()}
    expected = {name: before.optimizer.state[p]["exp_avg"] for name, p in before.unwrapped_model.named_parameters()
                if p in before.optimizer.state}
    assert moments.keys() == expected.keys()
    assert all(torch.equal(moments[name], value) for name, value in expected.items())


def test_moments_find_their_parameters_in_other_groups(data, stopped):
    saved = load_checkpoint(stopped / "checkpoint.pth")
    by_name = dict(zip(saved["parameter_names"], range(len(saved["parameter_names"]))))
    one_rate = {"optim.lr_component_decay": 1.0, "optim.lr_vit_layer_decay": 1.0, "optim.lr_encoder": 1e-3}
    trainer = loaded(stopped, data, **one_rate)
    assert len(trainer.optimizer.param_groups) != len(saved["optimizer"]["param_groups"])
    for name, parameter in trainer.unwrapped_model.named_parameters():
        if parameter in trainer.optimizer.state:
            assert torch.equal(trainer.optimizer.state[parameter]["exp_avg"],
                               saved["optimizer"]["state"][by_name[name]]["exp_avg"]), name


@pytest.mark.parametrize(("changed", "message"), [
    ({"optim.optimizer": "SGD", "optim.optimizer_args": {}}, "the optimizer is SGD now and was AdamW"),
    ({"optim.optimizer_args": {"amsgrad": True}}, "need max_exp_avg_sq"),
    ({"data.single_class": True}, "trained on other classes: the checkpoint has 2 classes, .* has 1 classes, 'object'"),
    ({"model.num_queries": 20}, "another model: model.num_queries 10 there, 20 here$"),
    ({"model.resolution": 128, "model.variant": "nano"}, "model.variant 'pico' there, 'nano' here; model.resolution 64 there"),
    ({"model.weights": "somewhere.pth"}, "model.weights was None and is 'somewhere.pth'"),
], ids=str)  # fmt: skip
def test_what_cannot_change_is_refused_with_both_values(data, stopped, changed, message):
    before = (stopped / "checkpoint.pth").read_bytes()
    with pytest.raises(InputError, match=message):
        train(small.config(data, stopped, **{**BASE, **EPOCHS, **changed}), resume="auto")
    assert (stopped / "checkpoint.pth").read_bytes() == before


def test_differences_are_one_table_and_the_configuration_tells_what_acted(data, stopped, tmp_path, caplog):
    shutil.copytree(stopped, tmp_path / "run")
    changed = {"optim.lr": 1e-5, "data.batch_size": 3, "train.epochs": 2, "eval.monitor": "F1"}
    with caplog.at_level("INFO"):
        results = train(small.config(data, tmp_path / "run", **{**BASE, **changed}), resume="auto")
    (table,) = [message for message in caplog.messages if message.startswith("resumed with other settings")]
    rows = [line.split() for line in table.splitlines()[2:]]
    assert {row[0] for row in rows} == {*changed, "train.output_dir"}
    assert ["optim.lr", "0.001", "1e-05"] in rows and ["eval.monitor", "None", "'F1'"] in rows
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["optim"]["lr"], written["data"]["batch_size"]) == (1e-5, 3)
    assert results["epochs"] == 2
    assert "says nothing of val/F1" in caplog.text
    rates = [line["train/lr"] for line in small.lines(tmp_path / "run") if "train/lr" in line]
    assert [rate > 1e-5 for rate in rates] == [True] * 4 + [False] * 2, "each line once, those of before too"


@pytest.mark.parametrize(("changed", "place"), [
    ({"data.batch_size": 1}, (1, 6)), ({"train.grad_accum_steps": 2}, (1, 1)), ({"data.dataset_dir": "smaller"}, (1, 3)),
    ({"data.sampling": "repeat_factor", "data.repeat_threshold": 1.0}, (1, 3)),
], ids=str)  # fmt: skip
def test_the_nearest_whole_step_of_other_data_or_batches(data, stopped, tmp_path, changed, place):
    """The run stopped after 3 of 6 steps of 2 images in its second epoch."""
    if "data.dataset_dir" in changed:
        changed = {"data.dataset_dir": small.make_data(tmp_path / "set", 10)}
    trainer = loaded(stopped, data, **changed)
    assert (trainer.epoch, trainer.epoch_step) == place
    assert trainer.step == trainer.epoch * trainer.steps_per_epoch + trainer.epoch_step


def test_patience_and_more_of_it(data, tmp_path, caplog):
    stop = {"early_stopping.enabled": True, "early_stopping.patience": 1, "early_stopping.min_delta": 1.0, "train.epochs": 4}
    folder = tmp_path / "run"
    results = train(small.config(data, folder, **stop))
    assert results["epochs"] == 2 and "early stop" in results["stop_reason"]
    written = (folder / "results.json").read_bytes(), (folder / "checkpoint.pth").read_bytes()
    with caplog.at_level("INFO"):
        again = train(small.config(data, folder, **stop), resume="auto")
    assert again == {**results, "status": "done"} and "nothing is left to do" in caplog.text
    assert written == ((folder / "results.json").read_bytes(), (folder / "checkpoint.pth").read_bytes())
    (folder / "results.json").unlink()  # killed before it was written
    assert train(small.config(data, folder, **stop), resume="auto")["epochs"] == 2
    more = train(small.config(data, folder, **{**stop, "early_stopping.patience": 2}), resume="auto")
    assert more["epochs"] == 3
    without = train(small.config(data, folder, **{**stop, "early_stopping.enabled": False}), resume="auto")
    assert without["epochs"] == 4 and without["stop_reason"] is None
    further = train(small.config(data, folder, **{**stop, "early_stopping.enabled": False, "train.epochs": 5}), resume="auto")
    assert further["epochs"] == 5


def test_another_folder_is_made_whole(data, stopped, tmp_path, caplog):
    run = small.config(data, tmp_path / "b", **BASE, **EPOCHS, **{"eval.run_test": True, "log.tensorboard": True})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="already holds a run"):
        train(run, resume=str(stopped / "checkpoint.pth"))
    (tmp_path / "b" / "metrics.jsonl").unlink()
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    results = train(run, resume=str(stopped / "checkpoint.pth"))
    assert {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()} == before
    assert results["best"] and results["test"]
    assert {line["step"] for line in small.lines(tmp_path / "b")} >= {2, 4, 6, 8, 10, 12}
    assert small.lines(tmp_path / "b")[:3] == small.lines(stopped)[:3]


def test_killed_while_files_are_brought_along(data, stopped, tmp_path):
    def die_at_the_third() -> None:
        original, copied = shutil.copyfile, []
        end = partial(os.kill, os.getpid(), signal.SIGKILL)
        shutil.copyfile = lambda *names: end() if len(copied) == 2 else copied.append(original(*names))

    run = small.config(data, tmp_path / "b", **BASE, **{"train.epochs": 2})
    resume = str(stopped / "checkpoint.pth")
    assert small.run_in_child(run, die_at_the_third, resume=resume) == -signal.SIGKILL
    assert small.run_in_child(run, resume=resume) == 0
    assert load_checkpoint(tmp_path / "b" / "checkpoint.pth")["step"] == 12
    assert not (tmp_path / "b" / ".coming").exists()


def test_a_best_file_that_is_missing_or_another_is_not_counted_on(data, stopped, tmp_path, caplog):
    shutil.copytree(stopped, tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pth")
    state["hooks"]["BestCheckpointHook"]["best"] = {"regular": 2.0, "ema": 2.0}  # of which no weights are known
    torch.save(state, tmp_path / "run" / "checkpoint.pth")
    (tmp_path / "run" / "checkpoint_best_ema.pth").unlink(missing_ok=True)
    results = train(small.config(data, tmp_path / "run", **BASE, **{"train.epochs": 2}), resume="auto")
    assert "is not there any more" in caplog.text and results["best"]["epoch"] == 2
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
