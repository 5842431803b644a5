"""When checkpoint.pth is written, what is in it, and that a run goes on from it bit for bit."""

import pytest
import torch
from stub_trainer import Constant, StubTrainer
from toy import StopAt, make_trainer, weights

from engine import load_checkpoint
from hooks import BestCheckpointHook, CheckpointHook, EarlyStopHook, EMAHook, Hook

PATH = "checkpoint.pth"


class Publisher(Hook):
    """Publish a metric that falls with the epoch."""

    def after_epoch(self, trainer):
        trainer.publish_metrics({"val/mAP_50_95": 1 / trainer.epoch})


class CountingCheckpointHook(CheckpointHook):
    """Note at which (epoch, step) it saves."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.saves = []

    def _save(self, trainer):
        super()._save(trainer)
        self.saves.append((trainer.epoch, trainer.step))


@pytest.mark.parametrize(
    "arguments, hooks, expected",
    [
        ({}, [], [(1, 6), (2, 12)]),
        ({}, [Publisher()], [(1, 6), (1, 6), (2, 12), (2, 12)]),
        ({"every_steps": 3}, [], [(0, 3), (1, 6), (1, 9), (2, 12)]),
        ({"every_epochs": 5}, [], [(2, 12)]),
        ({"every_epochs": 0, "every_steps": 6}, [], [(0, 6), (1, 12), (2, 12)]),
        ({}, [StopAt(8)], [(1, 6), (1, 8)]),
    ],
)
def test_when_it_is_written(tmp_path, arguments, hooks, expected):
    hook = CountingCheckpointHook(**arguments)
    make_trainer(tmp_path, hooks=[hook, *hooks]).train()
    assert hook.saves == expected
    assert load_checkpoint(tmp_path / PATH)["step"] == expected[-1][1]


def test_content(tmp_path):
    hook = CheckpointHook(metadata={"args": {"lr": 1.0}, "label_map": None})
    make_trainer(tmp_path, hooks=[EMAHook(), hook], max_epochs=1).train()
    content = load_checkpoint(tmp_path / PATH)
    assert content["args"] == {"lr": 1.0} and content["label_map"] is None
    assert {"model", "optimizer", "lr_scheduler", "scaler", "epoch", "step", "hooks", "rng", "ema_model"} <= set(content)
    assert content["ema_model"].keys() == content["model"].keys()
    average = content["hooks"]["EMAHook"]["average"]
    assert all(torch.equal(average[name], content["ema_model"][name]) for name in average)


def test_the_average_is_stored_once(tmp_path):
    sizes = []
    for hooks in ([], [EMAHook()]):
        trainer = StubTrainer(tmp_path, torch.nn.Linear(300, 300, bias=False), hooks)
        for hook in hooks:
            hook.before_train(trainer)
        CheckpointHook().after_epoch(trainer)
        sizes.append((tmp_path / PATH).stat().st_size)
    assert sizes[1] - sizes[0] < 1.1 * 300 * 300 * 4


def test_what_an_evaluation_changed_is_saved(tmp_path):
    hooks = [BestCheckpointHook(), EarlyStopHook(patience=2), CheckpointHook(), Publisher()]
    make_trainer(tmp_path, hooks=hooks, max_epochs=5).train()
    states = load_checkpoint(tmp_path / PATH)["hooks"]
    assert states["BestCheckpointHook"]["best"]["regular"] == 1.0
    assert states["EarlyStopHook"] == {"best": 1.0, "num_bad": 2}


def test_a_damaged_file_is_replaced_by_the_one_before(tmp_path):
    hook, trainer = CheckpointHook(keep=1), StubTrainer(tmp_path, Constant())
    for trainer.epoch in (1, 2):
        hook.after_epoch(trainer)
    (tmp_path / PATH).write_bytes((tmp_path / PATH).read_bytes()[:-100])
    assert load_checkpoint(tmp_path / PATH, fallback=True)["epoch"] == 1


def test_resumed_at_any_step_ends_at_the_same_bits(tmp_path):
    def all_hooks():
        return [EMAHook(0.9, 3), CheckpointHook(every_steps=1)]

    whole = make_trainer(tmp_path / "whole", dropout=0.3, hooks=all_hooks())
    whole.train()
    for step in (2, 6, 9):
        folder = tmp_path / str(step)
        make_trainer(folder, dropout=0.3, hooks=[*all_hooks(), StopAt(step)]).train()
        resumed = make_trainer(folder, dropout=0.3, hooks=all_hooks())
        resumed.load_state_dict(load_checkpoint(folder / PATH))
        resumed.train()
        assert torch.equal(weights(resumed), weights(whole))
        for name, value in whole.eval_models["ema"].state_dict().items():
            assert torch.equal(resumed.eval_models["ema"].state_dict()[name], value)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="keep=-1"):
        CheckpointHook(keep=-1)


def test_the_last_step_of_an_epoch_is_left_to_after_epoch(tmp_path):
    hook, trainer = CountingCheckpointHook(every_steps=1), StubTrainer(tmp_path, Constant(), steps_per_epoch=4)
    for trainer.step, trainer.epoch_step in ((12, 3), (13, 4)):
        hook.after_step(trainer)
    assert hook.saves == [(0, 12)]
