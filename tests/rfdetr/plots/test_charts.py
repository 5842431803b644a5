"""Plots of a run: they are made without pyplot, from files as runs leave them, and skipped without matplotlib."""

import json
import logging
import sys

import numpy as np
import pytest
from PIL import Image

from rfdetr.plots.charts import _epoch_ends, _most_confused, _panels, plot_confusion, plot_curves, plot_pr_curves, read_scalars

RECALL = np.linspace(0, 1, 101)


@pytest.fixture
def metrics_file(tmp_path):
    rows = [
        {"step": 10, "epoch": 0, "train/loss": 9.0, "train/loss_ce": 1.0, "train/lr": 1e-4},
        {"step": 20, "epoch": 1, "train/loss": None, "train/loss_ce": 0.8, "train/lr": 5e-5},
        {"step": 20, "epoch": 1, "val/mAP_50_95": 0.2, "val/ema_mAP_50_95": 0.3, "val/ema_mAP_50": 0.5, "val/ema_F1": 0.4,
         "val/loss": 8.0, "val/ema_loss": 7.5, "night/mAP_50_95": 0.1,
         "val/ema_AP/cat": 0.2, "val/ema_AP/dog": 0.4, "note": "text"},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 30, "trai')
    return path


def _size(path):
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("L")).std() > 5, "there is something on it"
        return picture.size


def test_scalars_are_read_without_gaps_and_broken_lines(metrics_file):
    scalars = read_scalars(metrics_file)
    assert scalars["train/loss"] == ([10], [9.0])
    assert scalars["train/lr"] == ([10, 20], [1e-4, 5e-5])
    assert "note" not in scalars and "step" not in scalars


def test_validation_losses_and_further_sets_are_beside_those_of_training(metrics_file):
    lines = {panel.title: panel.tags for panel in _panels(read_scalars(metrics_file))}
    assert lines["loss"] == {"training": "train/loss", "val, regular": "val/loss", "val, ema": "val/ema_loss"}
    assert lines["mAP 50:95"]["night"] == "night/mAP_50_95" and "night" not in lines["mAP 50"]


def test_curves(metrics_file, tmp_path):
    assert plot_curves(metrics_file, tmp_path / "curves.png", steps_per_epoch=10)
    wide = _size(tmp_path / "curves.png")
    metrics_file.write_text('{"step": 1, "epoch": 0, "train/loss": 2.5}\n')
    assert plot_curves(metrics_file, tmp_path / "curves.png", steps_per_epoch=10)
    assert _size(tmp_path / "curves.png") < wide, "only what there is gets a panel"


def test_curves_without_values(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text("")
    assert not plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", steps_per_epoch=10)
    assert "holds no values" in caplog.text and not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("num_classes", [1, 20, 300])
def test_pr_curves(tmp_path, num_classes):
    curves = {f"class {label}": (RECALL, np.clip(1.2 - RECALL, 0, 1)) for label in range(num_classes)}
    assert plot_pr_curves(curves, list(curves), tmp_path / "pr_curve.png", model="ema")
    _size(tmp_path / "pr_curve.png")


def test_pr_curves_of_nothing(tmp_path, caplog):
    assert not plot_pr_curves({}, [], tmp_path / "pr_curve.png", model="ema")
    assert "no class has objects" in caplog.text


@pytest.mark.parametrize("num_classes", [1, 20, 300])
def test_confusion(tmp_path, num_classes):
    counts = np.eye(num_classes + 1, dtype=np.int64) * 5
    counts[-1] = 0  # no false alarm: a row without anything
    names = [f"class {label}" for label in range(num_classes)]
    assert plot_confusion(counts, names, tmp_path / "confusion_matrix.png", score_threshold=0.4, model="ema")
    _size(tmp_path / "confusion_matrix.png")


def test_pyplot_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now fails
    assert plot_pr_curves({"cat": (RECALL, 1 - RECALL)}, ["cat"], tmp_path / "pr_curve.png", model="ema")


def test_without_matplotlib_a_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING):
        assert not plot_pr_curves({"cat": (RECALL, 1 - RECALL)}, ["cat"], tmp_path / "pr_curve.png", model="ema")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'pr_curve.png'} is not drawn: matplotlib is not installed (pip install matplotlib)"
    ]


def test_many_classes_are_taken_together_but_for_those_with_most_errors():
    counts = np.eye(301, dtype=np.int64) * 5
    counts[40, 41], counts[299, 300], counts[300, 7] = 9, 8, 7
    shown, names = _most_confused(counts, [f"class {label}" for label in range(300)])
    assert shown.shape == (26, 26) and shown.sum() == counts.sum() and names[-1] == "276 others"
    assert {"class 40", "class 41", "class 299", "class 7"} <= set(names)
    rows = [*names, "background"], [*names, "missed"]
    assert shown[rows[0].index("class 40"), rows[1].index("class 41")] == 9 and shown[rows[0].index("class 299"), -1] == 8
    assert shown[-1, rows[1].index("class 7")] == 7


def test_steps_are_shown_as_epochs_also_where_their_number_an_epoch_has_changed(tmp_path):
    rows = [{"step": 10, "epoch": 1, "val/mAP_50_95": 0.1}, {"step": 30, "epoch": 2, "val/mAP_50_95": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ends = _epoch_ends(tmp_path / "metrics.jsonl", 20)
    assert np.interp([0, 5, 10, 20, 30, 40, 70], *ends).tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 4])


@pytest.mark.parametrize("name", ["price in $ or $", "$x^2", "_hidden", "\n\ttabs", "x" * 200, "犬", r"\frac{", "{}", "^_%&#"])
def test_any_name_of_a_class_is_plain_text(tmp_path, name, recwarn):
    curves = {name: (RECALL, 1 - RECALL), "other": (RECALL, 1 - RECALL)}
    assert plot_pr_curves(curves, list(curves), tmp_path / "pr_curve.png", model="ema")
    assert plot_confusion(np.eye(3, dtype=np.int64), list(curves), tmp_path / "a.png", score_threshold=0.4, model="ema")
    assert not [str(warning.message) for warning in recwarn]
    with Image.open(tmp_path / "pr_curve.png") as picture:
        assert picture.width < 1200
