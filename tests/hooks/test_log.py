"""Scalars: what is written and when, over a resume, and when a writer fails."""

import json
import logging
import math
import time

import pytest
import torch
from stub_trainer import StubTrainer, through_a_file
from toy import StopAt, make_trainer

from engine import load_checkpoint
from hooks import CheckpointHook, Hook, LogHook
from hooks.writers import JsonlWriter


class ListWriter:
    def __init__(self):
        self.lines, self.is_closed = [], False

    def write(self, scalars, step, epoch):
        self.lines.append((step, epoch, scalars))

    def close(self):
        self.is_closed = True


def train(tmp_path, every_steps, hooks=(), **arguments):
    writer = ListWriter()
    trainer = make_trainer(tmp_path, hooks=[LogHook([writer], every_steps=every_steps), *hooks], **arguments)
    trainer.train()
    return writer.lines


def test_training_scalars(tmp_path):
    class Recorder(Hook):
        losses, rates = [], []

        def before_optimizer_step(self, trainer):
            self.rates.append(trainer.optimizer.param_groups[0]["lr"])

        def after_step(self, trainer):
            self.losses.append(trainer.losses["loss"].item())

    lines = train(tmp_path, 4, [Recorder()])
    assert [(step, epoch) for step, epoch, _ in lines] == [(4, 0), (8, 1), (12, 1)]  # the epoch counts when its hooks have run
    for row, (_, _, scalars) in enumerate(lines):
        assert scalars["train/loss"] == pytest.approx(sum(Recorder.losses[4 * row : 4 * row + 4]) / 4, rel=1e-6)
        assert scalars["train/lr"] == Recorder.rates[4 * row + 3]
        assert {"train/loss_fit", "train/grad_norm", "train/images_per_s", "train/data_wait"} <= set(scalars)
        assert (
            scalars["train/skipped_updates"] == 0 and scalars["train/images_per_s"] > 0 and 0 <= scalars["train/data_wait"] <= 1
        )


def test_at_least_once_an_epoch_and_the_rest_at_the_end(tmp_path):
    assert [step for step, _, _ in train(tmp_path, 50)] == [6, 12]
    assert [step for step, _, _ in train(tmp_path, 5)] == [5, 10, 12]
    assert [step for step, _, _ in train(tmp_path, 5, [StopAt(7)])] == [5]


def test_a_resumed_run_logs_the_same(tmp_path):
    def run(folder, *hooks, resume=False):
        log = LogHook([JsonlWriter(folder / "metrics.jsonl")], every_steps=4)
        trainer = make_trainer(folder, hooks=[log, CheckpointHook(), *hooks], dropout=0.2)
        if resume:
            trainer.load_state_dict(load_checkpoint(folder / "checkpoint.pth"))
        trainer.train()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        clock = ("train/images_per_s", "train/data_wait")
        return [{key: value for key, value in line.items() if key not in clock} for line in lines]

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", StopAt(6))
    assert run(tmp_path / "parts", resume=True) == whole


def test_values_that_are_not_finite_are_left_out_of_the_mean():
    writer, trainer = ListWriter(), StubTrainer(steps_per_epoch=4)
    hook = LogHook([writer], every_steps=3)
    hook.before_train(trainer)
    for trainer.step, value in enumerate([1.0, math.nan, 3.0], start=1):
        trainer.losses = {"loss": torch.tensor(value), "loss_b": torch.tensor(math.inf)}
        if trainer.step == 3:
            trainer.losses["late"] = torch.tensor(5.0)
        hook.after_step(trainer)
        hook.load_state_dict(through_a_file(hook.state_dict()))
    scalars = writer.lines[0][2]
    assert scalars["train/loss"] == 2.0 and math.isnan(scalars["train/loss_b"]) and scalars["train/late"] == 5.0


def test_published_metrics_are_written(tmp_path):
    class Publisher(Hook):
        def after_epoch(self, trainer):
            trainer.publish_metrics({"val/mAP_50_95": 0.5})

    lines = train(tmp_path, 6, [Publisher()], max_epochs=1)
    assert lines[-1] == (6, 1, {"val/mAP_50_95": 0.5})


def test_a_failing_writer_is_dropped(tmp_path, caplog):
    class BrokenWriter(ListWriter):
        def write(self, scalars, step, epoch):
            raise OSError("disk full")

    good = ListWriter()
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, hooks=[LogHook([BrokenWriter(), good], every_steps=2)]).train()
    assert len([record for record in caplog.records if "BrokenWriter" in record.message]) == 1
    assert len(good.lines) == 6 and good.is_closed


def test_impossible_arguments():
    with pytest.raises(ValueError, match="every_steps=0"):
        LogHook([], every_steps=0)


def test_images_that_the_loader_left_out_are_counted(tmp_path):
    writer = ListWriter()
    trainer = make_trainer(tmp_path, hooks=[LogHook([writer], every_steps=6)])
    trainer.hooks.insert(0, _Spoiler())
    trainer.train()
    assert [scalars.get("train/bad_images") for _, _, scalars in writer.lines] == [None, 3]


class _Spoiler(Hook):
    def after_epoch(self, trainer):
        trainer.train_loader.num_bad_images = 3


def test_the_last_period_does_not_count_the_evaluation_after_it(tmp_path):
    class Slow(Hook):
        def after_epoch(self, trainer):
            time.sleep(0.3)

    writer = ListWriter()
    make_trainer(tmp_path, max_epochs=1, hooks=[LogHook([writer], every_steps=4), Slow()]).train()
    scalars = writer.lines[-1][2]
    assert writer.lines[-1][0] == 6 and scalars["train/images_per_s"] > 8 / 0.3


def test_the_end_of_an_epoch_is_the_epochs_own(tmp_path):
    """After a resume with another number of images a step, the steps of the run are not those of its epochs any more."""
    writer, trainer = ListWriter(), StubTrainer(steps_per_epoch=4)
    hook = LogHook([writer], every_steps=50)
    hook.before_train(trainer)
    trainer.losses = {"loss": torch.tensor(1.0)}
    for trainer.step, trainer.epoch_step in ((7, 3), (8, 4), (9, 1), (12, 4)):
        trainer.step += 3
        hook.after_step(trainer)
    assert [step for step, _, _ in writer.lines] == [11, 15]


class Logging(Hook):
    """Logs at every step, in some epochs only, between epochs, and pictures."""

    def after_step(self, trainer):
        trainer.log("mine/step", torch.tensor(float(trainer.step), requires_grad=True))
        if trainer.step % 4 == 2:
            trainer.log("mine/rare", math.nan)
            trainer.log("mine/rare", trainer.step)

    def after_epoch(self, trainer):
        trainer.log("mine/epoch", 10 * trainer.epoch)
        trainer.log_image("mine/picture", torch.full((3, 4, 6), 0.5))


class TakingPictures(ListWriter):
    def __init__(self):
        super().__init__()
        self.pictures = []

    def write_image(self, name, picture, step, epoch):
        self.pictures.append((name, step, epoch, picture.pixels.shape, picture.pixels.max()))


def test_what_hooks_log_comes_with_the_period_and_between_epochs_at_once(tmp_path):
    writer, plain = TakingPictures(), ListWriter()
    make_trainer(tmp_path, hooks=[Logging(), LogHook([writer, plain], every_steps=4)]).train()
    mine = [(step, epoch, {tag: value for tag, value in scalars.items() if tag.startswith("mine/")})
            for step, epoch, scalars in writer.lines]
    assert mine == [
        (4, 0, {"mine/step": 2.5, "mine/rare": 2.0}), (6, 1, {"mine/epoch": 10.0}),
        (8, 1, {"mine/step": 6.5, "mine/rare": 6.0}), (12, 1, {"mine/step": 10.5, "mine/rare": 10.0}),
        (12, 2, {"mine/epoch": 20.0}),
    ]
    assert plain.lines == writer.lines, "a writer without pictures gets the numbers"
    assert writer.pictures == [("mine/picture", 6, 1, (4, 6, 3), 128), ("mine/picture", 12, 2, (4, 6, 3), 128)]


def test_what_hooks_log_is_the_same_in_a_run_that_goes_on_in_the_middle_of_a_period(tmp_path):
    def run(folder, *hooks, resume=False):
        log = LogHook([JsonlWriter(folder / "metrics.jsonl")], every_steps=4)
        trainer = make_trainer(folder, hooks=[Logging(), log, CheckpointHook(), *hooks])
        if resume:
            trainer.load_state_dict(load_checkpoint(folder / "checkpoint.pth"))
        trainer.train()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], {tag: value for tag, value in line.items() if tag.startswith("mine/")}) for line in lines]

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", StopAt(7))
    assert run(tmp_path / "parts", resume=True) == whole


@pytest.mark.parametrize("name, value, message", [
    ("step", 1, "a name of the run's"), ("train/lr", 1.0, "a name of the run's"), ("train/loss", 1.0, "a name of the run's"),
    ("mine", torch.zeros(2), "must be one number"), ("mine", "text", "must be one number"), ("mine", None, "must be one number"),
])
def test_what_cannot_be_logged_is_refused_by_its_name(tmp_path, name, value, message):
    class Wrong(Hook):
        def after_step(self, trainer):
            trainer.log(name, value)

    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, hooks=[LogHook([]), Wrong()]).train()


class LoggingWrongly(Hook):
    def after_epoch(self, trainer):
        trainer.log_image("mine/wrong", torch.zeros(2, 4, 6))
        trainer.log_image("mine/grey", torch.zeros(4, 6))


def test_what_is_no_picture_costs_no_training(tmp_path, caplog):
    writer = TakingPictures()
    make_trainer(tmp_path, hooks=[LoggingWrongly(), LogHook([writer])]).train()
    warnings = [record.message for record in caplog.records if "log_image" in record.message]
    assert len(warnings) == 1 and "trainer.log_image('mine/wrong'): left out from now on: Tensor (2, 4, 6)" in warnings[0]
    assert {picture[0] for picture in writer.pictures} == {"mine/grey"}
