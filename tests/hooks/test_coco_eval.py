"""The hook that evaluates: what it publishes and when."""

import pytest
import torch
from stub_trainer import StubTrainer, through_a_file
from torch import nn

from hooks import COCOEvalHook, EarlyStopHook, EMAHook, Hook

BOX = torch.tensor([[0.5, 0.5, 0.2, 0.4]])


class Detector(nn.Module):
    """Find one box, `error` of the picture too far to the right; the dropout must not act."""

    def __init__(self, error=0.0):
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error))
        self.dropout = nn.Dropout(0.9)

    def forward(self, samples, targets=None):
        boxes = BOX + self.error * torch.tensor([1.0, 0, 0, 0])
        return {"pred_boxes": self.dropout(boxes).expand(len(samples), 1, 4)}


def postprocess(outputs, sizes):
    results = []
    for boxes, (height, width) in zip(outputs["pred_boxes"], sizes.tolist()):
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
        scale = torch.tensor([width, height, width, height])
        results.append({"boxes": corners * scale, "labels": torch.tensor([0]), "scores": torch.tensor([0.7])})
    return results


class Loader:
    """Three images, each with one object; draws a number when it starts, as PyTorch's loaders do."""

    def __iter__(self):
        torch.rand(1)
        for image_id in range(3):
            target = {"boxes": BOX, "labels": torch.tensor([0]), "iscrowd": torch.tensor([0]), "area": torch.tensor([1600.0])}
            yield (
                torch.zeros(1, 3, 8, 8),
                [{**target, "orig_size": torch.tensor([100, 200]), "image_id": torch.tensor([image_id])}],
            )


class Listener(Hook):
    def __init__(self):
        self.heard = []

    def after_eval(self, trainer, metrics):
        self.heard.append((trainer.epoch, metrics))


def make_run(*, with_ema=False, max_epochs=5, **arguments):
    listener, hook = Listener(), COCOEvalHook(Loader(), postprocess, ["cat"], **arguments)
    trainer = StubTrainer(model=Detector(), hooks=[listener, hook], max_epochs=max_epochs)
    if with_ema:
        trainer.eval_models["ema"] = Detector(error=0.05)
    return trainer, hook, listener


def finish_epoch(trainer, hook):
    trainer.epoch += 1
    trainer.step += trainer.steps_per_epoch
    hook.after_epoch(trainer)


def test_both_models_under_their_names():
    trainer, hook, listener = make_run(with_ema=True)
    finish_epoch(trainer, hook)
    ((epoch, metrics),) = listener.heard
    assert epoch == 1 and metrics["val/mAP_50_95"] == pytest.approx(1.0)
    assert metrics["val/ema_mAP_50_95"] == pytest.approx(0.3)  # an overlap of 0.6 passes 3 of 10 thresholds
    expected = {"mAP_50", "mAP_75", "mAR", "mAP_medium", "F1", "precision", "recall", "AP/cat"}
    assert {f"val/{name}" for name in expected} | {f"val/ema_{name}" for name in expected} <= set(metrics)
    assert trainer.unwrapped_model.training
    assert set(hook.last_metrics) == {"regular", "ema"} and hook.last_metrics["ema"].confusion(0.5).tolist() == [[3, 0], [0, 0]]


def test_only_the_models_asked_for():
    trainer, hook, listener = make_run(with_ema=True, models=("ema",), split="test", per_class=False)
    finish_epoch(trainer, hook)
    assert {name.split("mAP")[0] for name in listener.heard[0][1] if "mAP" in name} == {"test/ema_"}
    assert not any("AP/" in name for name in listener.heard[0][1])


def test_every_epochs_and_the_last():
    trainer, hook, listener = make_run(every_epochs=2)
    for _ in range(5):
        finish_epoch(trainer, hook)
    assert [epoch for epoch, _ in listener.heard] == [2, 4, 5]


def test_random_numbers_go_on_as_without_it():
    trainer, hook, _ = make_run()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    finish_epoch(trainer, hook)
    assert torch.equal(torch.rand(4), expected)


def test_no_evaluation_when_time_is_up():
    trainer, hook, listener = make_run()
    trainer.stop("somebody else's reason")
    finish_epoch(trainer, hook)
    assert len(listener.heard) == 1
    trainer.interrupt("time is up")
    finish_epoch(trainer, hook)
    assert len(listener.heard) == 1

    resumed, second, listener = make_run()  # makes up for it
    second.load_state_dict(through_a_file(hook.state_dict()))
    resumed.epoch = trainer.epoch
    second.before_train(resumed)
    assert [epoch for epoch, _ in listener.heard] == [2]
    third = COCOEvalHook(Loader(), postprocess, ["cat"])
    third.load_state_dict(through_a_file(second.state_dict()))
    third.before_train(resumed)
    assert len(listener.heard) == 1  # nothing to make up for


def test_with_the_average_and_early_stopping():
    hook = COCOEvalHook(Loader(), postprocess, ["cat"])
    trainer = StubTrainer(model=Detector(), hooks=[EMAHook(), EarlyStopHook(patience=1), hook])
    for each in trainer.hooks:
        each.before_train(trainer)
    finish_epoch(trainer, hook)
    assert trainer.stop_reason is None
    finish_epoch(trainer, hook)
    assert "early stop" in trainer.stop_reason


def test_impossible_arguments():
    with pytest.raises(ValueError, match="every_epochs=0"):
        COCOEvalHook(Loader(), postprocess, ["cat"], every_epochs=0)


def test_hooks_follow_the_evaluation_of_each_model():
    class Follower(Hook):
        def __init__(self):
            self.heard = []

        def before_eval(self, trainer, name):
            self.heard.append(name)

        def after_eval_batch(self, trainer, name, batch, outputs, results):
            assert (len(batch[1]), len(outputs["pred_boxes"]), len(results)) == (1, 1, 1)
            self.heard.append((name, int(batch[1][0]["image_id"])))

    trainer, hook, _ = make_run(with_ema=True)
    follower = Follower()
    trainer.hooks.insert(0, follower)
    finish_epoch(trainer, hook)
    assert follower.heard == ["regular", "ema", *((name, image) for image in range(3) for name in ("regular", "ema"))]
