"""PlotsHook: which pictures appear when, and that they neither disturb nor stop a training."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hooks.plots import PlotsHook
from rfdetr.data.samplers import SampleKey, TrainBatchSampler
from rfdetr.evaluation import DetectionMetrics
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
        index = key.index if isinstance(key, SampleKey) else key
        target = {"boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]), "labels": torch.tensor([1]), "orig_size": torch.tensor([48, 64]),
                  "image_id": torch.tensor([100 + index])}
        return torch.zeros(3, 32, 32), target


class Outcomes:
    """Metrics of two models' evaluations, as `DetectionMetrics` has them."""

    def __init__(self, num_images=30):
        self.thresholds = []
        self.metrics = DetectionMetrics(NAMES)
        for index in range(num_images):
            found = {"boxes": torch.tensor([[19.2, 14.4, 44.8, 33.6]] * (index % 3)),
                     "labels": torch.tensor([1, 0][: index % 3], dtype=torch.int64),
                     "scores": torch.tensor([0.9, 0.8][: index % 3])}
            target = {"boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]), "labels": torch.tensor([1]),
                      "image_id": torch.tensor([100 + index]), "orig_size": torch.tensor([48, 64])}
            self.metrics.update([found], [target])

    def pr_curves(self):
        return {name: (RECALL, 1 - RECALL) for name in NAMES}

    def outcomes(self, score_threshold):
        self.thresholds.append(score_threshold)
        return self.metrics.outcomes(score_threshold)

    def confusion(self, score_threshold):
        return np.eye(3, dtype=np.int64)


@pytest.fixture
def trainer(tmp_path):
    sampler = TrainBatchSampler(40, 4, seed=7)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 0, "train/loss": 2.0}) + "\n")
    trainer = SimpleNamespace(
        train_loader=SimpleNamespace(dataset=Samples(40), batch_sampler=sampler), eval_models={"regular": None, "ema": None},
        metrics={}, device=torch.device("cpu"), output_dir=tmp_path, epoch=2, epoch_step=0, steps_per_epoch=10, images=[],
    )
    trainer.log_image = lambda name, path: trainer.images.append((name, path.name))
    return trainer


def make_hook(**changes):
    settings = {"coco_eval": SimpleNamespace(last_metrics={"regular": Outcomes(), "ema": Outcomes()})}
    return PlotsHook(RunPictures(NAMES), Samples(30), **{**settings, **changes})


def pictures(trainer):
    return sorted(path.name for path in trainer.output_dir.glob("*.png"))


def test_pictures_of_a_run(trainer):
    hook = make_hook()
    hook.before_train(trainer)
    assert pictures(trainer) == ["train_batch.png"] and trainer.images == [("train_batch", "train_batch.png")]
    every = ["confusion_matrix.png", "curves.png", "pr_curve.png", "train_batch.png", "val_predictions.png"]
    for evaluation in range(1, 6):
        for name in pictures(trainer)[:]:
            (trainer.output_dir / name).unlink()
        trainer.images.clear()
        hook.after_eval(trainer, {})
        is_milestone = evaluation in (1, 2, 4)
        assert pictures(trainer) == ([name for name in every if name != "train_batch.png"] if is_milestone else every[-1:])
        assert len(trainer.images) == (4 if is_milestone else 0), "also in TensorBoard and the like, of few evaluations"
    hook.after_train(trainer)
    assert len(trainer.images) == 4 and len(pictures(trainer)) == 4
    for name in pictures(trainer):
        with Image.open(trainer.output_dir / name) as picture:
            picture.load()


def test_the_images_with_the_most_errors_are_first(trainer):
    hook = make_hook()
    shown = {}
    hook.pictures.predictions = lambda *arguments, **settings: shown.update(settings)
    hook.after_eval(trainer, {})
    assert shown == {"score_threshold": 0.5, "model": "ema model, epoch 2"}
    hook = make_hook()
    hook.after_eval(trainer, {})
    asked = hook.val_dataset.asked
    assert len(asked) == 9 and [index % 3 for index in asked] == [0] * 6 + [2, 1, 1], "missed; one too many; right"


def test_training_samples_are_the_next_ones_and_the_loader_stays(trainer):
    sampler, dataset = trainer.train_loader.batch_sampler, trainer.train_loader.dataset
    make_hook(num_samples=6).before_train(trainer)
    assert (sampler.epoch, sampler.start_batch) == (0, 0)
    sampler.set_epoch(2)
    batches = list(sampler)
    assert dataset.asked == [*batches[0], *batches[1][:2]]
    assert all(isinstance(key, SampleKey) and key.epoch == 2 for key in dataset.asked)


def test_random_generators_stay(trainer):
    hook = make_hook()
    torch.manual_seed(5), random.seed(5)
    expected = torch.get_rng_state(), random.getstate()
    hook.before_train(trainer)
    hook.after_eval(trainer, trainer.metrics)
    assert torch.equal(torch.get_rng_state(), expected[0]) and random.getstate() == expected[1]


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
    hook = make_hook()
    hook.after_eval(trainer, metrics)
    thresholds = {model: last.thresholds for model, last in hook.coco_eval.last_metrics.items()}
    assert thresholds == {"regular": [], "ema": []} | {name: [0.3]}


def test_failure_is_said_once_and_does_no_harm(trainer, caplog):
    hook = make_hook()
    hook.val_dataset = [None] * 30
    for _ in range(3):
        hook.after_eval(trainer, {})
    hook.after_train(trainer)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith("val_predictions.png could not be drawn (TypeError")
    assert pictures(trainer) == ["confusion_matrix.png", "curves.png", "pr_curve.png"], "the others are drawn"


def test_stopped_before_the_first_evaluation(trainer, caplog):
    (trainer.output_dir / "metrics.jsonl").unlink()
    hook = make_hook(coco_eval=SimpleNamespace(last_metrics={}))
    hook.after_train(trainer)
    assert pictures(trainer) == [] and not caplog.records


def test_other_ranks_draw_nothing(trainer, monkeypatch):
    monkeypatch.setattr("hooks.plots.is_main_process", lambda: False)
    hook = make_hook()
    hook.before_train(trainer)
    hook.after_train(trainer)
    assert pictures(trainer) == [] and hook.val_dataset.asked == []
