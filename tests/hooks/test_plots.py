"""PlotsHook: which pictures appear when, and that they neither disturb nor stop a training."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hooks.plots import PlotsHook
from rfdetr.data.samplers import SampleKey, TrainBatchSampler
from rfdetr.plots import RunPictures

NAMES = ["cat", "dog"]
RECALL = np.linspace(0, 1, 101)


class Samples:
    """Grey pictures with one object; remembers what it was asked for, and draws from all generators."""

    def __init__(self, num_images):
        self.num_images, self.asked = num_images, []

    def __len__(self):
        return self.num_images

    def __getitem__(self, key):
        self.asked.append(key)
        random.random(), torch.rand(1)
        target = {"boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]), "labels": torch.tensor([1]), "orig_size": torch.tensor([48, 64])}
        return torch.zeros(3, 32, 32), target


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = []  # whether it was training

    def forward(self, samples):
        self.calls.append(self.training)
        torch.rand(1)
        return {"pred": samples}


def postprocess(outputs, sizes):
    return [
        {"scores": torch.tensor([0.9]), "labels": torch.tensor([0]), "boxes": torch.tensor([[10.0, 10, w - 10, h - 10]])}
        for h, w in sizes.tolist()
    ]


class Metrics:
    thresholds = []

    def pr_curves(self):
        return {name: (RECALL, 1 - RECALL) for name in NAMES}

    def confusion(self, score_threshold):
        self.thresholds.append(score_threshold)
        return np.eye(3, dtype=np.int64)


@pytest.fixture
def trainer(tmp_path):
    regular, ema = Model(), Model().eval()
    sampler = TrainBatchSampler(40, 4, seed=7)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 0, "train/loss": 2.0}) + "\n")
    return SimpleNamespace(
        train_loader=SimpleNamespace(dataset=Samples(40), batch_sampler=sampler),
        eval_models={"regular": regular, "ema": ema},
        metrics={},
        device=torch.device("cpu"),
        output_dir=tmp_path,
        epoch=2,
    )


def make_hook(**changes):
    settings = {"coco_eval": SimpleNamespace(last_metrics={"regular": Metrics(), "ema": Metrics()})}
    return PlotsHook(RunPictures(NAMES), Samples(30), postprocess, **{**settings, **changes})


def pictures(trainer):
    return sorted(path.name for path in trainer.output_dir.glob("*.png"))


def test_pictures_of_a_run(trainer):
    hook = make_hook(predictions_every=2)
    hook.before_train(trainer)
    assert pictures(trainer) == ["train_batch.png"]
    hook.after_eval(trainer, {})
    assert pictures(trainer) == ["train_batch.png"]
    hook.after_eval(trainer, {})
    assert pictures(trainer) == ["train_batch.png", "val_predictions.png"]
    hook.after_train(trainer)
    assert pictures(trainer) == ["confusion_matrix.png", "curves.png", "pr_curve.png", "train_batch.png", "val_predictions.png"]
    for name in pictures(trainer):
        with Image.open(trainer.output_dir / name) as picture:
            picture.load()


def test_training_samples_are_the_next_ones_and_the_loader_stays(trainer):
    sampler, dataset = trainer.train_loader.batch_sampler, trainer.train_loader.dataset
    make_hook(num_samples=6).before_train(trainer)
    assert (sampler.epoch, sampler.start_batch) == (0, 0)
    sampler.set_epoch(2)
    batches = list(sampler)
    assert dataset.asked == [*batches[0], *batches[1][:2]]
    assert all(isinstance(key, SampleKey) and key.epoch == 2 for key in dataset.asked)


def test_random_generators_and_modes_stay(trainer):
    trainer.eval_models["regular"].train()
    hook = make_hook(num_images=2, predictions_every=2)
    torch.manual_seed(5), random.seed(5)
    expected = torch.get_rng_state(), random.getstate()
    hook.before_train(trainer)
    for better in ("val/mAP_50_95", "val/ema_mAP_50_95"):
        trainer.metrics = {better: 0.5}
        hook.after_eval(trainer, trainer.metrics)
        hook.after_eval(trainer, trainer.metrics)
    assert torch.equal(torch.get_rng_state(), expected[0]) and random.getstate() == expected[1]
    assert [model.training for model in trainer.eval_models.values()] == [True, False]
    assert all(model.calls and not any(model.calls) for model in trainer.eval_models.values()), "asked in evaluation mode"


@pytest.mark.parametrize(
    "metrics, name",
    [
        ({"val/mAP_50_95": 0.5, "val/ema_mAP_50_95": 0.4, "val/F1_threshold": 0.3}, "regular"),
        ({"val/mAP_50_95": 0.4, "val/ema_mAP_50_95": 0.5, "val/ema_F1_threshold": 0.3}, "ema"),
        ({"val/ema_mAP_50_95": 0.0, "val/ema_F1_threshold": 0.3}, "ema"),
    ],
)
def test_better_model_is_shown_at_its_best_threshold(trainer, metrics, name):
    trainer.metrics = metrics
    hook = make_hook(num_images=3)
    last = Metrics()
    last.thresholds = []
    hook.coco_eval.last_metrics = {name: last}
    hook.after_train(trainer)
    assert {key: len(model.calls) for key, model in trainer.eval_models.items()} == {"regular": 0, "ema": 0} | {name: 3}
    assert hook.val_dataset.asked == [5, 15, 25], "spread over the split"
    assert last.thresholds == [0.3]


def test_failure_is_said_once_and_does_no_harm(trainer, caplog):
    hook = make_hook(predictions_every=1, coco_eval=None)
    hook.postprocess = None
    for _ in range(3):
        hook.after_eval(trainer, {})
    hook.after_train(trainer)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith("val_predictions.png could not be drawn (TypeError")
    assert pictures(trainer) == ["curves.png"], "the others are drawn"


def test_stopped_before_the_first_evaluation(trainer, caplog):
    (trainer.output_dir / "metrics.jsonl").unlink()
    hook = make_hook(coco_eval=SimpleNamespace(last_metrics={}))
    hook.after_train(trainer)
    assert pictures(trainer) == ["val_predictions.png"] and not caplog.records


def test_other_ranks_draw_nothing(trainer, monkeypatch):
    monkeypatch.setattr("hooks.plots.is_main_process", lambda: False)
    hook = make_hook()
    hook.before_train(trainer)
    hook.after_train(trainer)
    assert pictures(trainer) == [] and hook.val_dataset.asked == []
