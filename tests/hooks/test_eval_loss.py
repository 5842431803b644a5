"""The criterion on evaluation batches: the loss of the split, however it is cut into batches, and a metric like any other."""

import math

import pytest
import torch
from stub_trainer import StubTrainer
from torch import nn

from engine.hook import Hook, measured
from hooks import BestCheckpointHook, EarlyStopHook, EvalLossHook


class Counting(nn.Module):
    """The distance of a number to that of each object, divided by the objects."""

    weight_dict = {"loss_far": 2.0}

    def forward(self, outputs, targets, num_boxes=None):
        assert not self.training
        total = sum((output - target["boxes"]).abs().sum() for output, target in zip(outputs["value"], targets))
        return {"loss_far": total / (num_boxes or self.count_boxes(targets)), "error": torch.tensor(9.0)}

    def count_boxes(self, targets):
        return sum(len(target["boxes"]) for target in targets)


class Plain(nn.Module):
    def forward(self, outputs, targets):
        return {"mean": outputs["value"].mean()}


VALUES = torch.tensor([1.0, 5.0, 2.0])
TARGETS = [{"boxes": torch.tensor(values)} for values in ([0.0, 1.0, 2.0], [], [4.0])]


def evaluated(criterion, batches):
    hook = EvalLossHook()
    trainer = StubTrainer(hooks=[hook, Hook()])
    trainer.criterion = criterion
    for _ in range(2):  # an evaluation knows nothing of the one before
        hook.before_eval(trainer, "ema")
        for images in batches:
            hook.after_eval_batch(trainer, "ema", (None, TARGETS[images]), {"value": VALUES[images]}, [])
        found = measured(trainer, "ema")
    assert criterion.training
    return found


@pytest.mark.parametrize("batches", [[slice(0, 3)], [slice(0, 1), slice(1, 2), slice(2, 3)], [slice(0, 2), slice(2, 3)]])
def test_the_loss_of_all_objects_whatever_the_batches(batches):
    assert evaluated(Counting(), batches) == {"loss": pytest.approx(2 * 4 / 4), "loss_far": pytest.approx(1.0)}
    assert evaluated(Plain(), batches) == {"loss": pytest.approx(8 / 3), "mean": pytest.approx(8 / 3)}


def test_without_images_or_objects():
    assert evaluated(Counting(), []) == {}
    assert evaluated(Counting(), [slice(1, 2)]) == {"loss": 0.0, "loss_far": 0.0}


def test_less_is_better_for_best_checkpoints(tmp_path):
    hook = BestCheckpointHook(monitor_regular="val/loss", monitor_ema="val/ema_loss")
    trainer = StubTrainer(tmp_path, hooks=[hook])
    trainer.eval_models["ema"] = nn.Linear(1, 1)
    for trainer.epoch, (regular, ema) in enumerate([(3.0, 2.5), (2.0, math.nan), (2.2, 2.4), (2.0, 2.6)], start=1):
        trainer.publish_metrics({"val/loss": regular, "val/ema_loss": ema})
    hook.after_train(trainer)
    files = [tmp_path / f"checkpoint_best_{name}.pth" for name in ("regular", "ema", "total")]
    assert [torch.load(file, weights_only=True)["epoch"] for file in files] == [2, 3, 2]
    again = BestCheckpointHook(monitor_regular="val/loss", monitor_ema="val/ema_loss")
    again.load_state_dict(hook.state_dict())
    again.before_train(trainer)
    assert again.best == {"regular": -2.0, "ema": -2.4}, "the files hold what the state says"
    (tmp_path / "checkpoint_best_ema.pth").unlink()
    again.load_state_dict(hook.state_dict())
    again.before_train(trainer)
    assert again.best == {"regular": -2.0, "ema": -math.inf}


@pytest.mark.parametrize(("values", "settings", "stops_at", "reason"), [
    ([3, 2, 1.5, 1.6, 1.7, 1.8], {"patience": 2}, 5, "2 evaluations in a row were not better than 1.5"),
    ([3, 2, 0.4], {"stopping_threshold": 0.5}, 3, "0.4000 is below stopping_threshold 0.5"),
    ([3, 2, 9], {"divergence_threshold": 5}, 3, "9.0000 is above divergence_threshold 5"),
    ([3, math.inf], {}, 2, "the metric is inf"),
])  # fmt: skip
def test_less_is_better_for_early_stopping(values, settings, stops_at, reason):
    hook = EarlyStopHook(monitor_regular="val/loss", monitor_ema="val/ema_loss", **settings)
    trainer = StubTrainer(hooks=[hook])
    for trainer.epoch, value in enumerate(values, start=1):
        trainer.publish_metrics({"val/loss": value, "val/mAP_50": 0.5})
        if trainer.stop_reason:
            break
    assert trainer.epoch == stops_at and reason in trainer.stop_reason
