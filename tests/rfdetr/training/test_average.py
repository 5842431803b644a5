"""The mean of kept checkpoints: evaluated at the end of a run, and its result only where it is better."""

from dataclasses import replace

import pytest
import torch

from engine import load_checkpoint
from hooks import COCOEvalHook
from rfdetr.training import DetectorConfig, EvalConfig, train

measure = COCOEvalHook.measure


@pytest.mark.parametrize(("score", "variant", "monitor"), [
    (2.0, "pico", None), (-2.0, "pico", None), (float("nan"), "pico", None), (2.0, "pico_seg", None), (-2.0, "pico", "loss"),
    (1e3, "pico", "loss"),
])  # fmt: skip
def test_it_is_used_where_it_is_better(small, tmp_path, monkeypatch, score, variant, monitor):
    def rigged(hook, trainer, models, sets=()):
        found = measure(hook, trainer, models, dict(sets))
        return {name: score if name.startswith("val/average_") else value for name, value in found.items()}

    monkeypatch.setattr(COCOEvalHook, "measure", rigged)
    config = small(model=DetectorConfig(variant=variant, resolution=64, num_queries=10, group_detr=2),
                   eval=EvalConfig(monitor=monitor, loss=monitor is not None))
    results = train(replace(config, train=replace(config.train, epochs=3, keep_top=2)))
    files = [load_checkpoint(tmp_path / "run" / name) for name in results["average"]["files"]]
    average = load_checkpoint(tmp_path / "run" / "checkpoint_best_average.pth")
    assert len(files) == 2
    for name, value in average["model"].items():
        one, other = (file["model"][name].double() for file in files)
        assert torch.equal(value, ((one + other) / 2).to(value.dtype)), name
    is_better = score == (-2.0 if monitor else 2.0)
    assert results["average"]["used"] is is_better
    total = load_checkpoint(tmp_path / "run" / "checkpoint_best_total.pth")
    assert all(torch.equal(total["model"][name], value) for name, value in average["model"].items()) is is_better
    assert ("val/average_mAP_50" in results["best"]["metrics"]) is is_better


def test_nothing_to_take_the_mean_of(small, tmp_path, caplog):
    class Losing(COCOEvalHook):
        def after_train(self, trainer):
            for path in trainer.output_dir.glob("checkpoint_best_step_*.pth"):
                path.unlink()

    config = small()
    results = train(replace(config, train=replace(config.train, epochs=2, keep_top=2)), hooks=[Losing])
    assert results["average"] is None and results["status"] == "done" and "no average of checkpoints: 0" in caplog.text
