"""Loggers that are chosen by the configuration: a table over a resumed run, and a package that is not installed."""

import csv
import sys

import pytest

from rfdetr.errors import InputError
from rfdetr.training import assemble
from rfdetr.training.command_line import ExitCode
from rfdetr.training.commands import fit

QUIETLY = ("--log.plots", "false", "--log.tensorboard", "false", "--train.epochs", "1")


def test_the_table_goes_on_where_the_run_goes_on(config_file, tmp_path):
    argv = ["--cfg", config_file, "--train.output_dir", str(tmp_path / "run"), "--log.csv", "true", *QUIETLY]
    assert fit([*argv, "--train.save_every_steps", "2", "--train.max_hours", "1e-9"]) == ExitCode.INTERRUPTED
    assert fit([*argv, "--resume", "auto"]) == ExitCode.DONE
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert all(float(row["train/loss"]) > 0 for row in rows)
    assert [bool(row["val/mAP_50_95"]) for row in rows] == [False, False, True]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_reported_before_any_work(config_file, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(assemble, "open_run_data", lambda *arguments: pytest.fail("the data were read"))
    argv = ["--cfg", config_file, "--train.output_dir", str(tmp_path / "run"), f"--log.{package}", "mine"]
    with pytest.raises(InputError, match=rf'^log\.{package}: .* not installed .* pip install -e "\.\[{package}\]"'):
        fit(argv)
    assert not list((tmp_path / "run").glob("*"))
