"""Checkpoints that are whole and hold nonsense: one message, or a run that can go on."""

import copy
import os
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
import small_runs as small

from engine import load_checkpoint
from engine.checkpoint import CheckpointError
from rfdetr.errors import InputError
from rfdetr.training import build_trainer, train
from rfdetr.training.resume import check_agreement, check_same_run, load_state, other_settings, read_state, results_of_finished

ODD = (None, True, -1, 0, 10**18, 2**70, 1e308, float("nan"), float("inf"), "", "x", "\x1b[31m", "9" * 3000, [], {}, [1],
       {"a": 1}, [[[]]], [None], (), torch.zeros(3), torch.zeros(0), torch.tensor(float("nan")), torch.ones(2, dtype=torch.int64))
COUNT = pytest.param(int(os.environ.get("RFDETR_STATES", "10000")), marks=[pytest.mark.slow, pytest.mark.timeout(7200)])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return small.make_data(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(small.config(data, folder, **{"train.epochs": 1}))
    return folder


def spoiled(state: dict, generator: random.Random) -> dict:
    """Replace or remove one to three things, at any depth."""
    state = copy.copy(state)
    for _ in range(generator.choice((1, 1, 2, 3))):
        holder = state
        for _ in range(generator.choice((0, 0, 1, 2, 3, 4, 5))):
            inner = [key for key in _keys(holder) if _keys(holder[key])]
            if not inner:
                break
            key = generator.choice(inner)
            holder[key] = copy.copy(holder[key]) if isinstance(holder[key], (dict, list)) else list(holder[key])
            holder = holder[key]
        if key_or_none := _keys(holder):
            key = generator.choice(key_or_none)
            if generator.random() < 0.2:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(generator.choice(ODD))
    return state


def _keys(value) -> list:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize("count", [60, COUNT])
def test_states_of_nonsense_are_refused_or_gone_on_from(data, finished, monkeypatch, caplog, count):
    generator, path = random.Random(count), finished / "checkpoint.pth"
    good = load_checkpoint(path)
    monkeypatch.setattr("rfdetr.training.resume.find_checkpoint", lambda *arguments, **options: (path, spoiled(good, generator)))
    trainer = build_trainer(small.config(data, finished, **{"train.epochs": 3}), resumed=True)
    metadata = trainer.hooks[0].metadata
    for number in range(count):
        try:
            found = read_state(finished, "auto")
            check_agreement(found, metadata["args"])
            check_same_run(found[1], metadata)
            different = other_settings(found[1], metadata["args"])
            load_state(trainer, found[1])
            results_of_finished(trainer, different)
        except (InputError, CheckpointError) as error:
            assert len(str(error)) < 3000, number
        assert all(len(message) < 3000 for message in caplog.messages), number
        caplog.clear()
