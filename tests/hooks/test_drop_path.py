"""Drop schedules against the goldens, and when the model is told."""

import numpy as np
import pytest
from stub_trainer import StubTrainer, golden

from hooks import DropPathHook
from hooks.drop_path import drop_schedule

ERRORS = {"ValueError": ValueError, "NotImplementedError": NotImplementedError}


@pytest.mark.parametrize("case", golden("drop_schedule"), ids=lambda case: f"{case['mode']}-{case['schedule']}")
def test_schedules_of_the_goldens(case):
    arguments = [case[name] for name in ("drop_rate", "epochs", "niter_per_ep", "cutoff_epoch", "mode", "schedule")]
    if "error" in case:
        with pytest.raises(ERRORS[case["error"]]):
            drop_schedule(*arguments)
    else:
        table = drop_schedule(*arguments)
        assert table.dtype == np.float64 and table == pytest.approx(np.array(case["values"]), abs=1e-15)


class Recorder:
    def __init__(self):
        self.calls = []

    def update_drop_path(self, rate):
        self.calls.append(("drop_path", rate))

    def update_dropout(self, rate):
        self.calls.append(("dropout", rate))


def run(hook, steps, **arguments):
    trainer = StubTrainer(**arguments)
    trainer.unwrapped_model = Recorder()
    calls = {}
    hook.before_train(trainer)
    for trainer.step in steps:
        trainer.unwrapped_model.calls = []
        hook.before_step(trainer, [])
        calls[trainer.step] = trainer.unwrapped_model.calls
    return calls


def test_the_model_is_told_only_of_changes():
    hook = DropPathHook(0.2, 0.1, cutoff_epoch=1, mode="early")
    calls = run(hook, range(9), max_epochs=2, steps_per_epoch=4)
    assert calls.pop(0) == [("drop_path", 0.2), ("dropout", 0.1)]
    assert calls.pop(4) == [("drop_path", 0.0), ("dropout", 0.0)]
    assert not any(calls.values())


def test_a_resumed_run_starts_with_the_rate_of_its_step():
    hook = DropPathHook(0.2, cutoff_epoch=2, mode="early", schedule="linear")
    assert run(hook, [3], max_epochs=2, steps_per_epoch=2) == {3: [("drop_path", 0.0)]}
    assert run(DropPathHook(0.2), [3], max_epochs=2, steps_per_epoch=2) == {3: [("drop_path", 0.2)]}


def test_after_the_table_nothing_changes():
    assert run(DropPathHook(0.2), [8], max_epochs=2, steps_per_epoch=4) == {8: []}


def test_rates_of_zero_leave_the_model_alone():
    assert run(DropPathHook(), range(3)) == {0: [], 1: [], 2: []}


def test_mistakes_are_found_at_once():
    with pytest.raises(ValueError, match="'soon' is not one of standard, early, late"):
        DropPathHook(0.1, mode="soon")
    with pytest.raises(NotImplementedError, match="late"):
        DropPathHook(0.1, mode="late", schedule="linear")
    with pytest.raises(ValueError, match="drop_path=1.0"):
        DropPathHook(1.0)
