"""Order of training samples: independent of batch size, accumulation and ranks, resumable, and a function of the seed."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rfdetr.data import EvalSampler, TrainBatchSampler
from rfdetr.data.samplers import repeat_factors
from rfdetr.errors import InputError

STEPS_TABLE = json.loads((Path(__file__).parents[2] / "goldens" / "training" / "lr_schedule.json").read_text())["steps_table"]


def windows(num_samples=100, *, batch_size, grad_accum_steps=1, world_size=1, epoch=1, start_batch=0, seed=5, **options):
    """The keys of each optimizer step of an epoch, over all ranks, in order of position."""
    ranks = []
    for rank in range(world_size):
        sampler = TrainBatchSampler(num_samples, batch_size, grad_accum_steps=grad_accum_steps, seed=seed, rank=rank,
                                    world_size=world_size, **options)
        sampler.set_epoch(epoch, start_batch)
        ranks.append(list(sampler))
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    batches = [[key for rank in ranks for key in rank[i]] for i in range(len(ranks[0]))]
    return [sum(batches[i : i + grad_accum_steps], []) for i in range(0, len(batches), grad_accum_steps)]


@pytest.mark.parametrize("num_samples", [100, 21], ids=["permutation", "with replacement"])
def test_window_does_not_depend_on_how_it_is_split(num_samples):
    sizes = [(32, 32), (64, 64), (96, 96)]
    whole = windows(num_samples, batch_size=8, sizes=sizes)
    assert whole == windows(num_samples, batch_size=2, grad_accum_steps=4, sizes=sizes)
    assert whole == windows(num_samples, batch_size=4, world_size=2, sizes=sizes)
    assert whole == windows(num_samples, batch_size=2, grad_accum_steps=2, world_size=2, sizes=sizes)
    assert [key.position for window in whole for key in window] == list(range(8 * len(whole)))


def test_repeat_factors_are_those_of_lvis():
    """Of 8 images all show class 0, one class 1 (in two boxes), and two class 3."""
    images, labels = np.array([*range(8), 2, 2, 2, 5]), np.array([0] * 8 + [1, 1, 3, 3])
    assert repeat_factors(images, labels, 8, 0.5).tolist() == [1, 1, 2, 1, 1, 2**0.5, 1, 1]
    assert repeat_factors(images, labels, 8, 0.1).tolist() == [1] * 8
    assert repeat_factors(images[:0], labels[:0], 3, 0.5).tolist() == [1, 1, 1]


@pytest.mark.parametrize("num_samples", [90, 20], ids=["repeats", "with replacement"])
def test_repeated_images_come_that_often_and_windows_do_not_depend_on_how_they_are_split(num_samples):
    repeats = np.ones(num_samples)
    repeats[:10] = 2.25
    whole = [windows(num_samples, batch_size=8, repeats=repeats, epoch=epoch) for epoch in range(200)]
    assert whole[1] == windows(num_samples, batch_size=2, grad_accum_steps=2, world_size=2, repeats=repeats)
    assert {len(epoch) for epoch in whole} == {max(5, int(repeats.sum()) // 8)}
    counts = Counter(key.index for epoch in whole for window in epoch for key in window)
    rare, other = (np.mean([counts[index] for index in chosen]) for chosen in (range(10), range(10, num_samples)))
    assert rare / other == pytest.approx(2.25, rel=0.05)
    if num_samples == 90:
        assert max(Counter(key.index for key in sum(whole[0], [])).values()) <= 3


def test_epoch_is_a_permutation_without_its_incomplete_last_window():
    keys = sum(windows(103, batch_size=2, grad_accum_steps=2, world_size=2), [])
    indices = [key.index for key in keys]
    assert len(indices) == 96 and len(set(indices)) == 96 and set(indices) <= set(range(103))


def test_epochs_and_seeds_differ_and_repeat():
    first, second = windows(batch_size=8, epoch=0), windows(batch_size=8, epoch=1)
    assert first != second and first == windows(batch_size=8, epoch=0)
    assert [k.index for k in first[0]] != [k.index for k in windows(batch_size=8, epoch=0, seed=6)[0]]


@pytest.mark.parametrize("case", STEPS_TABLE, ids=lambda case: str(case["dataset_len"]))
def test_length_against_golden(case):
    """Decision 10: an incomplete last window is dropped, where rfdetr 1.11.2 fills it up with repeated images."""
    length, batch_size, accum = case["dataset_len"], case["batch_size"], case["grad_accum_steps"]
    sampler = TrainBatchSampler(length, batch_size, grad_accum_steps=accum, seed=0)
    steps = case["num_micro_batches_per_epoch"] // accum
    if case["padded_len"] > length:
        steps -= 1
    assert sampler.steps_per_epoch == steps and len(sampler) == len(list(sampler)) == steps * accum
    indices = [key.index for batch in sampler for key in batch]
    assert case["replacement"] == (length < 5 * batch_size * accum)
    assert case["replacement"] or max(Counter(indices).values()) == 1


def test_resume_inside_an_epoch_goes_on_where_it_was():
    sampler = TrainBatchSampler(100, 4, grad_accum_steps=2, seed=1, sizes=[(32, 32), (64, 64)])
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, start_batch=6)
    assert list(sampler) == whole[6:] and len(sampler) == len(whole)
    sampler.set_epoch(3, start_batch=len(whole))
    assert list(sampler) == []
    with pytest.raises(ValueError, match="start_batch=25"):
        sampler.set_epoch(3, start_batch=25)


def test_resume_with_another_number_of_ranks_sees_the_rest_of_the_epoch():
    whole = windows(200, batch_size=8)
    assert windows(200, batch_size=4, world_size=2, start_batch=3) == whole[3:]


def test_set_epoch_leaves_a_running_iteration_alone():
    sampler = TrainBatchSampler(40, 4, seed=1)
    iterator, expected = iter(sampler), list(sampler)
    first = next(iterator)
    sampler.set_epoch(1)
    assert [first, *iterator] == expected
    assert list(sampler) != expected


def test_scale_is_a_function_of_the_step():
    sizes = [(size, size) for size in range(288, 513, 32)]
    steps = windows(100, batch_size=4, grad_accum_steps=2, epoch=2, sizes=sizes)
    assert all(len({key.size for key in step}) == 1 for step in steps)
    expected = [random.Random(2 * len(steps) + step).choice(sizes) for step in range(len(steps))]
    assert [step[0].size for step in steps] == expected


def test_scale_golden():
    golden = json.loads((Path(__file__).parents[2] / "goldens" / "training" / "multi_scale.json").read_text())
    case = next(case for case in golden if case["step_offset"] == 0)
    sampler = TrainBatchSampler(60, 1, seed=0, sizes=[(size, size) for size in case["scales"]])
    assert [batch[0].size[0] for batch in sampler] == case["chosen"]


def test_every_key_has_its_own_random_stream():
    keys = sum(windows(40, batch_size=4, epoch=0) + windows(40, batch_size=4, epoch=1), [])
    draws = [key.generator().random() for key in keys]
    assert len(set(draws)) == len(draws)
    assert draws == [key.generator().random() for key in keys]
    assert keys[0].generator().random() == keys[0]._replace(index=3, size=(8, 8)).generator().random()


def test_eval_sampler_gives_each_image_once():
    ranks = [list(EvalSampler(10, rank, 4)) for rank in range(4)]
    assert ranks == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    assert [len(EvalSampler(10, rank, 4)) for rank in range(4)] == [3, 3, 2, 2]
    assert list(EvalSampler(2, 3, 4)) == []


def test_bad_arguments():
    with pytest.raises(InputError, match="no images"):
        TrainBatchSampler(0, 4, seed=1)
    for arguments in ({"batch_size": 0}, {"batch_size": 1, "rank": 1}, {"batch_size": 1, "seed": -1}):
        with pytest.raises(ValueError):
            TrainBatchSampler(10, **{"seed": 1, **arguments})
