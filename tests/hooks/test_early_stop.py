"""Early stopping against the goldens (decision 7), and what they do not show."""

import logging
import math

import pytest
from stub_trainer import StubTrainer, golden, through_a_file

from hooks import EarlyStopHook

REGULAR, EMA = "val/mAP_50_95", "val/ema_mAP_50_95"
CASES = golden("early_stopping")


def published(epoch):
    return {name: value for name, value in ((REGULAR, epoch["regular"]), (EMA, epoch["ema"])) if value is not None}


@pytest.mark.parametrize("case", CASES)
def test_goldens(case):
    trainer = StubTrainer()
    hook = EarlyStopHook(case["patience"], case["min_delta"], use_ema=case["use_ema"], skip_first_epochs=case["skip_best_epochs"])
    for epoch in case["epochs"]:
        trainer.epoch = epoch["epoch"] + 1  # ours counts finished epochs
        hook.after_eval(trainer, published(epoch))
        assert (trainer.stop_reason is not None) == epoch["should_stop"]
        assert hook.best == pytest.approx(epoch["best_score"], abs=1e-6) and hook.num_bad == epoch["wait_count"]
        hook.load_state_dict(through_a_file(hook.state_dict()))


def stops(values, **arguments):
    """Return after how many evaluations the run is stopped, None if it is not."""
    hook, trainer = EarlyStopHook(**arguments), StubTrainer()
    for number, value in enumerate(values, start=1):
        trainer.epoch = number
        hook.after_eval(trainer, value if isinstance(value, dict) else {REGULAR: value})
        if trainer.stop_reason:
            return number
    return None


def test_thresholds():
    assert stops([0.5, 0.8, 0.81], stopping_threshold=0.8) == 3
    assert stops([0.5, 0.2, 0.19], divergence_threshold=0.2) == 3


def test_non_finite_values():
    assert stops([0.1, math.nan]) == 2
    assert stops([0.1, math.inf, -math.inf, math.nan, 0.2], check_finite=False, patience=3) == 4
    assert stops([{REGULAR: math.nan, EMA: 0.1}, {REGULAR: 0.2, EMA: math.inf}]) is None  # the finite one counts
    assert stops([{REGULAR: math.nan, EMA: math.nan}]) == 1
    assert stops([{REGULAR: 0.5, EMA: math.nan}], use_ema=True) == 1


def test_own_monitors():
    hook, trainer = EarlyStopHook(1, monitor_regular="val/F1", monitor_ema="val/ema_F1"), StubTrainer()
    for value in (0.5, 0.4):
        hook.after_eval(trainer, {"val/F1": value, REGULAR: 0.9})
    assert "not better than 0.5000" in trainer.stop_reason


def test_evaluations_without_the_metric_do_not_count(caplog):
    with caplog.at_level(logging.WARNING):
        assert stops([{"val/loss": 1.0}] * 5 + [0.1] * 2, patience=2) is None
    assert len(caplog.records) == 1 and "val/loss" in caplog.text


def test_impossible_arguments():
    with pytest.raises(ValueError, match="patience=0"):
        EarlyStopHook(0)


def test_each_decision_is_told_if_asked_for(caplog):
    values = [0.9, 0.5, 0.4, {"val/loss": 1.0}, 0.6, 0.6, 0.6]
    with caplog.at_level(logging.INFO):
        stops(values, patience=2, verbose=True, skip_first_epochs=1)
        expected = ["epoch 1 is one of the first 1", "0.5000 is the best so far", "0.4000, the best is 0.5000; 1 of 2",
                    f"neither {REGULAR} nor {EMA}", "0.6000 is the best so far", "0.6000, the best is 0.6000; 1 of 2",
                    "0.6000, the best is 0.6000; 2 of 2", "the run stops here, 2 evaluations in a row"]
        lines = [record.message for record in caplog.records if record.levelno == logging.INFO]
        assert len(lines) == len(expected) and all(text in line for text, line in zip(expected, lines))
        caplog.clear()
        stops([0.5, 0.4, 0.4], patience=2)
        assert not caplog.records


def test_a_stop_at_once_is_told_if_asked_for(caplog):
    with caplog.at_level(logging.INFO):
        stops([0.9], stopping_threshold=0.8, verbose=True)
    assert [record.message for record in caplog.records] == [
        "early stopping: the run stops here, the metric 0.9000 is above stopping_threshold 0.8"
    ]


@pytest.mark.parametrize(("value", "found"), [(math.nan, True), (0.0, False)])
def test_what_is_not_finite_is_remembered(value, found):
    hook, trainer = EarlyStopHook(patience=1), StubTrainer()
    trainer.epoch = 1
    for _ in range(2):
        hook.after_eval(trainer, {REGULAR: value})
    assert trainer.stop_reason and hook.found_non_finite == found
