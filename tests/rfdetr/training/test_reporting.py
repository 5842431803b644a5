"""A run leaves a report and what it is made of; making it again gives the same page, and a failure costs nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rfdetr.report.detections import load_evaluation
from rfdetr.report.read import DETECTIONS, FACTS, REPORT
from rfdetr.training import LogConfig, TrainConfig, build_trainer, commands, reporting, train

LOG = LogConfig(tensorboard=False, plots=False, progress=False, every_steps=1, report=True)


def page(path: Path) -> str:
    """Return a page without the minute in which it was made, and without where it is."""
    return re.sub(r"Made [\d :-]+", "", path.read_text(encoding="utf-8"))


def test_a_run_leaves_a_report_that_can_be_made_again(small, tmp_path, capsys):
    results = train(small(log=LOG))
    folder = tmp_path / "run"
    evaluation, facts = load_evaluation(folder / DETECTIONS), json.loads((folder / FACTS).read_text())
    assert [image.image_id for image in evaluation.images] == [0, 1, 2, 3] and len(evaluation.pictures) == 4
    prefix = {"regular": "val/", "ema": "val/ema_"}[evaluation.about["model"]]
    assert evaluation.about["metrics"]["F1"] == results["best"]["metrics"][f"{prefix}F1"] and evaluation.about["epoch"] == 1
    assert evaluation.pictures[0].size == (64, 64) and evaluation.pictures[0].name.endswith(".png")
    assert facts["versions"]["torch"] == torch.__version__ and facts["sessions"][0]["seconds"] > 0
    assert facts["data"]["splits"]["train"]["images"] == 4
    first = page(folder / REPORT)
    (folder / REPORT).unlink()
    assert commands.report([str(folder)]) == 0 and "written:" in capsys.readouterr().out
    assert page(folder / REPORT) == first and ">done<" in first


def test_it_follows_the_plots_unless_told_otherwise(small, tmp_path):
    for name, log in {"off": replace(LOG, report=None), "plots": replace(LOG, report=None, plots=True)}.items():
        hooks = build_trainer(small(name, log=log)).hooks
        assert any(isinstance(hook, reporting.ReportHook) for hook in hooks) == (name == "plots")


@pytest.mark.parametrize("what", ["write_report", "save_evaluation"])
def test_a_failure_is_one_warning(small, monkeypatch, caplog, what):
    def fail(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr(reporting, what, fail)
    assert train(small(log=LOG))["status"] == "done"
    assert [record.message for record in caplog.records if "report.html" in record.message] == [
        "there will be no report.html (OSError: no room); training goes on without it"]


def test_a_resumed_run_adds_to_what_is_there(small, tmp_path):
    config = small(log=LOG, train=TrainConfig(epochs=2, device="cpu", output_dir=str(tmp_path / "run")))
    trainer = build_trainer(config)
    interrupting = next(hook for hook in trainer.hooks if hook.name == "InterruptHook")
    interrupting.after_epoch = lambda trainer: trainer.interrupt("stopped")
    trainer.train()
    assert (tmp_path / "run" / DETECTIONS).exists() and not (tmp_path / "run" / REPORT).exists()
    moved = replace(config, train=replace(config.train, output_dir=str(tmp_path / "moved")))
    assert train(moved, resume=str(tmp_path / "run" / "checkpoint.pth"))["status"] == "done"
    facts = json.loads((tmp_path / "moved" / FACTS).read_text())
    assert [session["first_step"] for session in facts["sessions"]] == [0, 5]
    assert "in 2 parts" in (tmp_path / "moved" / REPORT).read_text()


class Own(torch.utils.data.Dataset):
    """One's own data: float images, with identities that are not their places."""

    class_names = ("box",)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple:
        target = {"boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]), "labels": torch.tensor([0]), "image_id": torch.tensor(3 - index)}
        return torch.zeros(3, 64, 64), target


def test_data_of_ones_own_and_an_average_of_checkpoints(small, tmp_path, monkeypatch):
    """Pictures whose identity is not their place are left out rather than shown for others."""
    made = reporting.FinishHook.after_train.__globals__["try_average"]
    monkeypatch.setitem(reporting.FinishHook.after_train.__globals__, "try_average",
                        lambda *parts: {**made(*parts), "used": True})
    train_config = TrainConfig(epochs=2, device="cpu", output_dir=str(tmp_path / "run"), keep_top=2)
    train(small(log=LOG, train=train_config), train_set=Own(), val_set=Own())
    evaluation = load_evaluation(tmp_path / "run" / DETECTIONS)
    assert evaluation.about["model"] == "average" and "mAP_50_95" in evaluation.about["metrics"] and not evaluation.pictures
    text = (tmp_path / "run" / REPORT).read_text()
    assert "mean of the best checkpoints" in text and "Nothing is known of the data" in text


@pytest.mark.parametrize(("words", "message"), [
    (["nothing"], "nothing: is no folder"), ([], "runs"), (["."], "holds no run"), ([".", "--port", "70000"], "--port 70000"),
    ([".", "--serve", "--output", "x"], "--serve writes no file"),
])
def test_bad_words(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        commands.report(words)
