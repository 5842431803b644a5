"""`evaluate`: modes and generators are left alone, images reach the metric once; writers; devices."""

import json

import pytest
import torch
from toy import ToyModel

from engine import evaluate
from engine.device import resolve_device, to_device, use_device
from engine.distributed import process_group
from hooks.writers import JsonlWriter, TensorBoardWriter


class Collect:
    def __init__(self) -> None:
        self.seen = []

    def reset(self) -> None:
        self.seen = []

    def update(self, results, targets) -> None:
        self.seen += [(float(r["p"]), int(t["orig_size"][0])) for r, t in zip(results, targets)]

    def compute(self):
        return {"n": float(len(self.seen))}


def batches(count: int):
    for index in range(count):
        torch.rand(1)
        yield torch.ones(2, 4), [{"orig_size": torch.tensor([10 * index + i, 1])} for i in range(2)]


def postprocess(outputs, sizes):
    return [{"p": p} for p in outputs["pred_x"]]


class Predict(ToyModel):
    def forward(self, samples, targets=None):
        assert not torch.is_grad_enabled()
        values = super().forward(samples)["pred"]
        return {"pred_x": values, **({"pred_masks": values} if self.with_masks else {}), "aux_outputs": []}


@pytest.mark.parametrize("with_masks", [False, True])
def test_evaluate(with_masks):
    model = Predict(dropout=0.5, dtype=torch.float32)
    model.with_masks = with_masks
    metric = Collect()
    state = torch.get_rng_state()
    assert evaluate({"x": model}, batches(3), postprocess, {"x": metric}, device="cpu") == {"x": {"n": 6.0}}
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert [size for _, size in metric.seen] == [0, 1, 10, 11, 20, 21]
    assert len({p for p, _ in metric.seen}) == 1  # no dropout
    assert evaluate({"x": model}, [], postprocess, {"x": metric}, device="cpu") == {"x": {"n": 0.0}}


def test_several_models_see_the_same_batches():
    models = {name: Predict(dropout=0.5, dtype=torch.float32) for name in ("regular", "ema")}
    for model in models.values():
        model.with_masks = False
    models["ema"].eval()
    metrics, loads, heard = {name: Collect() for name in models}, [], []

    def loader():
        for batch in batches(3):
            loads.append(batch)
            yield batch

    evaluate(models, loader(), postprocess, metrics, device="cpu", after_batch=lambda name, *_: heard.append(name))
    assert len(loads) == 3 and heard == ["regular", "ema"] * 3
    assert [size for _, size in metrics["regular"].seen] == [size for _, size in metrics["ema"].seen] == [0, 1, 10, 11, 20, 21]
    assert metrics["regular"].seen != metrics["ema"].seen and models["regular"].training and not models["ema"].training


@pytest.mark.parametrize("with_masks", [False, True])
def test_after_batch_gets_the_images_that_the_metric_got(with_masks):
    class Layers(Predict):
        def forward(self, samples, targets=None):
            outputs = super().forward(samples)
            return {**outputs, "aux_outputs": [{"pred_x": outputs["pred_x"] + 1}], "temperature": torch.tensor(0.5)}

    def note(name, batch, outputs, results):
        samples, targets = batch
        sizes = [int(target["orig_size"][0]) for target in targets]
        assert len(samples) == len(results) == len(outputs["pred_x"]) == len(outputs["aux_outputs"][0]["pred_x"]) == len(sizes)
        assert [result["p"] for result in results] == list(outputs["pred_x"]) and outputs["temperature"] == 0.5
        seen.append(sizes)

    seen: list[list[int]] = []
    model = Layers(dtype=torch.float32)
    model.with_masks = with_masks
    evaluate({"x": model}, batches(2), postprocess, {"x": Collect()}, device="cpu", after_batch=note)
    assert seen == ([[0], [1], [10], [11]] if with_masks else [[0, 1], [10, 11]])


def test_to_device_moves_nested_values():
    moved = to_device([(torch.ones(1), [{"a": torch.ones(2), "b": "text"}])], torch.device("meta"))
    assert moved[0][0].is_meta and moved[0][1][0]["a"].is_meta and moved[0][1][0]["b"] == "text"


def test_only_copies_to_a_gpu_are_not_waited_for():
    class Samples:
        def to(self, device, non_blocking):
            return device.type, non_blocking

    assert to_device([Samples()], torch.device("cpu")) == [("cpu", False)]
    assert to_device([Samples()], torch.device("cuda", 0)) == [("cuda", True)]


def test_choosing_a_device_does_not_make_it_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "2")
    device = resolve_device("auto")
    assert device == torch.device("cuda", 2) and resolve_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == []
    with process_group(torch.device("cuda")):
        assert chosen == [device]
    use_device(torch.device("cpu"))
    assert chosen == [device]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match="sees 0 CUDA device"):
        resolve_device("cuda")


def test_json_lines_are_appended(tmp_path):
    for step in (1, 2):
        writer = JsonlWriter(tmp_path / "run" / "metrics.jsonl")
        writer.write({"train/loss": float(step), "val/x": float("nan")}, step, 0)
        writer.close()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": s, "epoch": 0, "train/loss": float(s), "val/x": None} for s in (1, 2)]


def test_what_was_written_after_the_step_of_a_resume_is_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "epoch": 0}) + "\n" for step in (10, 20, 30)) + '{"step": 4')
    writer = JsonlWriter(path)
    writer.rewind(20)
    writer.write({}, 25, 0)
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 25]
    fresh = JsonlWriter(path)
    fresh.rewind(0)
    fresh.close()
    assert path.read_text() == ""


def test_tensorboard_events_can_be_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoardWriter(tmp_path)
    writer.write({"train/loss": 0.5}, 7, 1)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(7, 0.5)]
