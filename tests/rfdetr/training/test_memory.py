"""Batches that fit into memory: what is tried before a run leaves no trace in it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from engine import load_checkpoint
from hooks import Hook
from rfdetr.errors import InputError
from rfdetr.training import DetectorConfig, build_trainer, memory, train


def settings(config, batch_size="auto", effective=4, **options):
    return replace(config, data=replace(config.data, batch_size=batch_size),
                   train=replace(config.train, effective_batch=effective, precision="fp32", **options))


@pytest.fixture
def enough_for(small, monkeypatch):
    """`enough_for(size)` gives the machine as much memory as steps of so many images need; returns the bytes that are free."""
    steps, measure = [], memory.WorstStep.memory
    with monkeypatch.context() as patched:
        patched.setattr(memory.WorstStep, "memory", lambda step, size: steps.append(step) or measure(step, size))
        build_trainer(settings(small(), 1, None, preflight=True))

    def give(size: float) -> float:
        needed = 1.001 * measure(steps[0], size)[0] / memory.USABLE_SHARE
        monkeypatch.setattr(memory, "free_memory", lambda: needed)
        return needed

    return give


@pytest.mark.parametrize("size", [4, 2, 1])
def test_the_run_is_that_with_the_number_given(small, tmp_path, enough_for, caplog, size):
    enough_for({4: 9, 2: 3, 1: 1}[size])
    with caplog.at_level("INFO"):
        train(settings(small("auto")))
    assert f"data.batch_size {size}: a step of {size} images of 64 x 64 with up to 1 objects takes 0.0" in caplog.text
    written = yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())
    assert (written["data"]["batch_size"], written["train"]["grad_accum_steps"]) == (size, 4 // size)
    config = small("given")
    train(replace(config, data=replace(config.data, batch_size=size),
                  train=replace(config.train, grad_accum_steps=4 // size, precision="fp32")))
    one, other = (load_checkpoint(tmp_path / name / "checkpoint.pth") for name in ("auto", "given"))
    for part in ("model", "ema_model"):
        assert all(torch.equal(one[part][name], value) for name, value in other[part].items())
    assert all(torch.equal(one["rng"][0][name], other["rng"][0][name]) for name in ("cpu",))


def test_a_resumed_run_keeps_its_number(small, tmp_path, enough_for):
    enough_for(2)
    train(settings(small(), max_hours=1e-9))
    enough_for(4)
    assert train(settings(small()), resume="auto")["status"] == "done"
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["batch_size"] == 2


def test_the_tightest_process_decides(small, enough_for, monkeypatch):
    tight, _ = enough_for(2), enough_for(4)
    monkeypatch.setattr(memory, "gather_objects", lambda tried: [tried, (tried[0], tight)])
    assert build_trainer(settings(small())).train_loader.batch_sampler.batch_size == 2


@pytest.mark.parametrize("variant", ["pico", "pico_seg"])
def test_the_worst_step_has_the_largest_scale_and_the_most_crowded_images(small, monkeypatch, variant):
    batches = []
    make = memory.WorstStep._batch
    monkeypatch.setattr(memory.WorstStep, "_batch", lambda step, size: batches.append(make(step, size)) or batches[-1])
    monkeypatch.setattr("rfdetr.data.dataset.DetectionDataset.object_counts", np.array([3, 0, 7, 5]))
    config = small(model=DetectorConfig(variant=variant, resolution=64, num_queries=10, group_detr=2))
    pictures = 4 if variant == "pico_seg" else 1  # of a mosaic
    config = replace(config, data=replace(config.data, multi_scale=True, mosaic=float(pictures > 1)),
                     train=replace(config.train, preflight=True))
    trainer = build_trainer(config)
    samples, targets = batches[-1]
    assert tuple(samples.shape[-2:]) == max(trainer.train_loader.batch_sampler.sizes) and samples.shape[-1] > 64
    assert [len(target["labels"]) for target in targets] == [7 * pictures, 5 * pictures]
    assert ("masks" in targets[0]) is (variant == "pico_seg")


def test_preflight_refuses_what_does_not_fit_and_changes_nothing(small, tmp_path, enough_for):
    enough_for(1)
    config = settings(small(), 2, None, preflight=True)
    with pytest.raises(InputError, match=r"^data\.batch_size: a step of 2 images of 64 x 64 .* takes 0\.\d+ GB of the 0\."):
        train(config)
    assert not list((tmp_path / "run").glob("*.*"))
    enough_for(2)
    tried = build_trainer(config)
    state = torch.get_rng_state()
    plain = build_trainer(small("plain"))
    assert torch.equal(state, torch.get_rng_state()) and not tried.optimizer.state
    assert all(torch.equal(*pair) for pair in zip(tried.unwrapped_model.parameters(), plain.unwrapped_model.parameters()))


def test_on_a_gpu_what_it_reserves_counts_and_running_out_of_memory_is_no_error(small, monkeypatch):
    def run(step, size: int) -> None:
        peaks.append(4e9 * size)
        if size > 2:
            raise torch.OutOfMemoryError

    peaks: list[float] = []
    said = {"empty_cache": None, "reset_peak_memory_stats": None, "mem_get_info": (9e9, 80e9), "memory_reserved": 0}
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peaks[-1])
    monkeypatch.setattr(memory.WorstStep, "_run", run)
    step = memory.WorstStep.__new__(memory.WorstStep)
    step.device = torch.device("cuda", 0)
    assert [step.memory(size) for size in (4, 2, 1)] == [(float("inf"), 9e9), (8e9, 9e9), (4e9, 9e9)]


def test_where_the_system_does_not_say_what_is_free(small, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    with pytest.raises(InputError, match=r"^data\.batch_size: auto: this system does not say"):
        build_trainer(settings(small()))
    build_trainer(settings(small(), 2, None, preflight=True))


class Greedy(Hook):
    def __init__(self, point: str, error: str) -> None:
        self.point, self.error = point, error

    def after_batch(self, *_) -> None:
        self._ask("after_batch")

    def after_eval_batch(self, *_) -> None:
        self._ask("after_eval_batch")

    def _ask(self, point: str) -> None:
        if point == self.point:
            raise torch.OutOfMemoryError(self.error) if "GPU" in self.error else RuntimeError(self.error)


@pytest.mark.parametrize(("point", "error", "message"), [
    ("after_batch", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has",
     r"^out of memory on cpu after step 0, in training with batches of 2 images: make data\.batch_size smaller .* 2\.00 GiB"),
    ("after_batch", "DefaultCPUAllocator: can't allocate memory: you tried", r"batches of 2 images: .* can't allocate memory"),
    ("after_eval_batch", "MPS backend out of memory", r"after step 5, in evaluation .* make data\.eval_batch_size smaller\."),
])  # fmt: skip
def test_running_out_of_memory_names_the_setting(small, point, error, message):
    with pytest.raises(InputError, match=message):
        train(small(), hooks=[Greedy(point, error)])


def test_other_errors_stay_what_they_are(small):
    with pytest.raises(RuntimeError, match="^something else$"):
        train(small(), hooks=[Greedy("after_batch", "something else")])
