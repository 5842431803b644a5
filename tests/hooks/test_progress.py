"""What a run shows: a bar where somebody watches, one table in the log, and a line now and then where there is no bar."""

import logging
import time

import pytest
import torch
from toy import StopAt, make_trainer

from hooks import BestCheckpointHook, Hook, ProgressHook
from hooks.progress import _is_watched


class Evaluating(Hook):
    """Publishes what it is given, epoch by epoch; None: no evaluation."""

    models, sets = ("regular",), {"night": None}

    def __init__(self, *published):
        self.published = list(published)

    def evaluate_and_publish(self, trainer):
        if (metrics := self.published[trainer.epoch - 1]) is not None:
            trainer.publish_metrics(metrics)

    def after_epoch(self, trainer):
        self.evaluate_and_publish(trainer)


class Slow(Hook):
    def after_step(self, trainer):
        time.sleep(0.12)  # a bar is drawn every 0.1 s


def table(tmp_path, caplog, *published, hooks=(), **arguments):
    """The lines of a run's table, divided at the spaces."""
    with caplog.at_level(logging.INFO, logger="hooks.progress"):
        make_trainer(tmp_path, hooks=[BestCheckpointHook(), ProgressHook(), *hooks, Evaluating(*published)], **arguments).train()
    return [line.split() for line in caplog.messages if "best weights" not in line]


def test_bar_with_its_values(tmp_path, capsys):
    make_trainer(tmp_path, hooks=[Slow(), ProgressHook(every_steps=1, enabled=True)]).train()
    shown = capsys.readouterr().err
    assert "epoch 1/2" in shown and "epoch 2/2" in shown and "6/6" in shown
    assert all(name in shown for name in ("loss ", "lr ", "img/s ", "wait ", "left "))
    assert not shown.split("\r")[-1].strip(), "the table's row takes its place"


def test_quiet_where_there_is_no_terminal(tmp_path, capsys):
    make_trainer(tmp_path, hooks=[ProgressHook()]).train()
    assert capsys.readouterr().err == ""


def test_a_row_an_epoch_with_its_number_and_what_is_best(tmp_path, caplog):
    found = {"val/mAP_50_95": 0.25, "val/mAP_50": 0.5, "val/F1": -1.0, "night/mAP_50_95": 0.125, "val/AP/cat": 1.0}
    lines = table(tmp_path, caplog, found, {**found, "val/mAP_50_95": 0.125})
    assert lines[0] == ["epoch", "loss", "mAP", "mAP_50", "F1", "night", "mAP", "images/s", "left"]
    first, second = lines[1:]
    assert (first[0], first[2:6]) == ("1/2", ["0.2500*", "0.5000", "-", "0.1250"]), "-1 says that there is nothing to measure"
    assert (second[0], second[2:6]) == ("2/2", ["0.1250", "0.5000", "-", "0.1250"])
    assert float(first[1]) > 0 and float(first[6]) > 0 and second[7] == "00:00"


def test_an_epoch_without_an_evaluation_has_its_row_too(tmp_path, caplog):
    lines = table(tmp_path, caplog, None, {"val/mAP_50_95": 0.125})
    assert [line[:3:2] for line in lines] == [["epoch", "mAP"], ["1/2", "-"], ["2/2", "0.1250*"]]


def test_losses_that_are_not_finite_do_not_hide_the_others(tmp_path, caplog):
    class Broken(Hook):
        def after_step(self, trainer):
            if trainer.step == 2:
                trainer.losses = {**trainer.losses, "loss": torch.tensor(float("nan"))}

    lines = table(tmp_path, caplog, None, None, hooks=[])
    caplog.clear()
    broken = table(tmp_path / "other", caplog, None, None, hooks=[Broken()])
    assert all(float(line[1]) > 0 for line in (*lines[1:], *broken[1:]))


def test_the_table_fits_the_terminal(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("hooks.progress.sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")  # no bar
    for columns, titles in ((200, "epoch loss mAP mAP_50 F1 night mAP images/s left"), (70, "epoch loss mAP night mAP left")):
        caplog.clear()
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = table(tmp_path / str(columns), caplog, None, None)
        assert " ".join(lines[0]) == titles
        assert all(len(message) <= columns - 15 for message in caplog.messages if "best" not in message)


def test_a_log_file_gets_a_line_within_long_epochs(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("hooks.progress.SECONDS_OF_SILENCE", 0)
    with caplog.at_level(logging.INFO, logger="hooks.progress"):
        make_trainer(tmp_path, hooks=[ProgressHook(), StopAt(2)]).train()
    assert caplog.messages[0].startswith("epoch 1/2, step 1/6: loss ") and "left" in caplog.messages[0]


@pytest.mark.parametrize("is_terminal, environment, expected", [
    (True, {}, True), (False, {}, False), (True, {"TERM": "dumb"}, False), (True, {"CI": "true"}, False),
    (True, {"CI": "false"}, True), (True, {"CI": "1"}, False),
])
def test_a_bar_only_where_somebody_watches(monkeypatch, is_terminal, environment, expected):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("hooks.progress.sys.stderr.isatty", lambda: is_terminal, raising=False)
    assert _is_watched() == expected
