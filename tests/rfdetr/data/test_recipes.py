"""Every recipe: a sample depends on its place in the run alone, and on what the recipe is for."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from rfdetr.data import RECIPES, SampleKey, open_dataset, train_loader

AUGMENTATIONS = {**{name: name for name in RECIPES}, "own": [v2.RandomResizedCrop(90, (0.5, 1.0)), v2.ColorJitter(0.3)]}


@pytest.fixture
def folder(write_roboflow, coco_content):
    return write_roboflow(train=coco_content(10, extension="jpg"))


def open_train(folder, name: str):
    return open_dataset(folder, "train", training=True, image_size=(48, 64), augment=AUGMENTATIONS[name], with_masks=True)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_same_samples_for_any_number_of_workers_and_after_a_resume(folder, name):
    runs = []
    for num_workers in (0, 1, 2):
        loader = train_loader(open_train(folder, name), batch_size=2, seed=5, num_workers=num_workers)
        loader.batch_sampler.set_epoch(3)
        batches = list(loader)
        loader.batch_sampler.set_epoch(3, start_batch=3)
        batches += list(loader)
        runs.append([tensor for samples, targets in batches
                     for tensor in (samples.tensors, targets[0]["boxes"], targets[1]["masks"])])
    assert len(runs[0]) == 3 * 7 and torch.equal(runs[0][9], runs[0][15])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_positions_and_epochs_differ(folder, name):
    dataset = open_train(folder, name)
    samples = {dataset[SampleKey(2, 0, epoch, position)][0].numpy().tobytes() for epoch in range(3) for position in range(3)}
    assert len(samples) == 1 if name == "none" else len(samples) > 1


def test_aerial_shows_all_eight_ways_round():
    views = [RECIPES["aerial"].draw_view(np.random.default_rng(seed), 100, 100) for seed in range(80)]
    assert len({(view.hflip, view.vflip, view.transpose) for view in views}) == 8


def test_industrial_keeps_the_right_way_round_and_conservative_cuts_nothing():
    industrial, conservative = ([RECIPES[name].draw_view(np.random.default_rng(seed), 100, 100) for seed in range(50)]
                                for name in ("industrial", "conservative"))
    assert not any(view.hflip or view.vflip or view.transpose for view in industrial)
    assert all((view.extent == 1).all() for view in conservative)


def test_every_recipe_says_in_the_log_what_it_is_for(folder, caplog):
    caplog.set_level("INFO")
    for name, recipe in RECIPES.items():
        open_train(folder, name)
        assert recipe.purpose and f"recipe {name}, version {recipe.version} ({recipe.purpose})" in caplog.text
