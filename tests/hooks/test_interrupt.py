"""Signals and the time budget end a run after the current step, and leave the process as it was."""

import signal
import threading

import pytest
from toy import make_trainer

from hooks import CheckpointHook, COCOEvalHook, Hook, InterruptHook


class Sender(Hook):
    """Send this process a signal, or several, during a step."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def after_batch(self, trainer, batch, outputs):
        if trainer.step + 1 == self.step:
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_stops_after_the_step(tmp_path, name):
    before = signal.getsignal(getattr(signal, name))
    trainer = make_trainer(tmp_path, hooks=[Sender(3, getattr(signal, name)), InterruptHook(), CheckpointHook()])
    trainer.train()
    assert trainer.step == 3 and trainer.interrupted and trainer.stop_reason == f"received {name}"
    assert (tmp_path / "checkpoint.pth").exists()
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a script
    trainer = make_trainer(tmp_path, hooks=[Sender(3, signal.SIGINT, signal.SIGINT), InterruptHook()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.step == 2 and signal.getsignal(signal.SIGINT) == before


def test_time_budget(tmp_path):
    trainer = make_trainer(tmp_path, hooks=[InterruptHook(max_hours=1e-9)])
    trainer.train()
    assert trainer.step == 1 and trainer.interrupted and "time budget" in trainer.stop_reason


def test_undisturbed(tmp_path):
    trainer = make_trainer(tmp_path, hooks=[InterruptHook(max_hours=1)])
    trainer.train()
    assert trainer.step == 12 and not trainer.interrupted


def test_at_the_end_of_an_epoch_nothing_is_evaluated(tmp_path):
    class Unwanted:
        def __iter__(self):
            raise AssertionError("evaluated")

    publisher = COCOEvalHook(Unwanted(), None, [])
    trainer = make_trainer(tmp_path, hooks=[Sender(6, signal.SIGTERM), InterruptHook(), publisher])
    trainer.train()
    assert (trainer.epoch, trainer.step) == (1, 6)


def test_a_signal_during_an_evaluation(tmp_path):
    class Publisher(Hook):
        def after_epoch(self, trainer):
            signal.raise_signal(signal.SIGUSR1)
            trainer.publish_metrics({})

    trainer = make_trainer(tmp_path, hooks=[InterruptHook(), Publisher()])
    trainer.train()
    assert trainer.step == 6


def test_outside_the_main_thread_training_goes_on(tmp_path):
    trainer = make_trainer(tmp_path, hooks=[InterruptHook()])
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.step == 12


def test_impossible_arguments():
    with pytest.raises(ValueError, match="max_hours=-1"):
        InterruptHook(max_hours=-1)
