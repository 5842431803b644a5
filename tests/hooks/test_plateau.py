"""Learning rates that fall when a metric no longer improves."""

import pytest
import torch
from stub_trainer import StubTrainer, through_a_file

from hooks import PlateauHook
from hooks.monitor import direction


def make_run(hook, warmup=0):
    trainer = StubTrainer(hooks=[hook])
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))
    hook.before_train(trainer)
    return trainer


def rates(trainer, metric, values):
    """Take a step and then evaluate, for each value; return the learning rate of each step that would come next."""
    found = []
    for value in values:
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.publish_metrics({metric: value})
        found.append(trainer.optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(("metric", "sign"), [("val/mAP_50", 1), ("val/loss", -1), ("val/ema_loss_ce", -1)])
def test_it_falls_after_so_many_evaluations_without_a_better_one(metric, sign):
    assert direction(metric) == sign
    hook = PlateauHook(metric, factor=0.5, patience=2, min_delta=0.1, min_scale=0.2)
    values = [sign * value for value in (1.0, 1.05, 1.2, 1.0, 1.25, 1.0, float("nan"), 1.0, 1.0, 1.0, 1.0)]
    assert rates(make_run(hook), metric, values) == pytest.approx([0.5] * 4 + [0.25] * 2 + [0.125] * 2 + [0.1] * 3)


def test_it_goes_on_where_it_was_with_new_settings():
    hook = PlateauHook("val/F1", factor=0.5, patience=2)
    trainer = make_run(hook, warmup=2)
    assert rates(trainer, "val/F1", [1.0, 0.5, 0.5, 0.5]) == pytest.approx([0.5 * 2 / 3, 0.5, 0.25, 0.25])
    again = PlateauHook("val/F1", factor=0.1, patience=2)
    again.load_state_dict(through_a_file(hook.state_dict()))
    resumed = make_run(again)
    assert resumed.optimizer.param_groups[0]["lr"] == 0.25
    assert rates(resumed, "val/F1", [0.9, 2.0, 1.5, 1.5]) == pytest.approx([0.025, 0.025, 0.025, 0.0025])


def test_another_metric_is_seen_for_the_first_time_and_a_missing_one_named(caplog):
    hook = PlateauHook("val/F1", patience=1)
    hook.load_state_dict({"scale": 0.5, "best": 9.0, "num_bad": 0, "metric": "val/mAP"})
    assert rates(make_run(hook), "val/F1", [0.1, 0.2]) == [0.25, 0.25]
    trainer = make_run(PlateauHook("val/F2"))
    rates(trainer, "val/F1", [0.1, 0.2])
    assert caplog.text.count("Did you mean val/F1?") == 1
