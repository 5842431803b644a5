"""Verdicts about updates: fp16's search for a loss scale is not a bad update, and a hook's NaN is skipped with a scaler too."""

import json

import pytest
import torch
from torch.amp import GradScaler

from engine.bad_steps import BadStepCounter
from engine.precision import BAD, FINE, OVERFLOW, guarded_step, judge

CPU = torch.device("cpu")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("scale", "loss", "poison", "verdict"), [
    (65536.0, 1.0, 0.0, FINE), (65536.0, 1.0, float("inf"), OVERFLOW), (65536.0, float("nan"), float("nan"), BAD),
    (1.0, 1.0, float("inf"), BAD),
])
def test_with_a_scaler(scale, loss, poison, verdict, fused):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = torch.optim.AdamW([weight], fused=fused), GradScaler("cpu", init_scale=scale)
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(optimizer)
    weight.grad[0] += poison  # as a hook does, after the scaler has looked
    found = judge(weight.grad.norm(), torch.tensor(loss), scaler)
    guarded_step(optimizer, scaler, found)
    assert found == verdict
    assert (weight == 1).all() == (verdict != FINE)
    assert scaler.get_scale() == (scale if verdict == FINE else scale / 2)


def test_without_a_scaler_every_update_that_is_not_finite_is_bad():
    assert judge(torch.tensor(float("inf")), torch.tensor(1.0), GradScaler("cpu", enabled=False)) == BAD


def test_overflows_are_counted_but_not_blamed_on_images(tmp_path, caplog):
    counter = BadStepCounter(CPU, max_in_a_row=2, file=tmp_path / "bad_steps.jsonl")
    for step in range(1, 10):
        counter.add(torch.tensor(float(OVERFLOW)), torch.tensor(1.0), step, [7])
    assert counter.total == 9 and not caplog.records and not (tmp_path / "bad_steps.jsonl").exists()
    counter.add(torch.tensor(float(BAD)), torch.tensor(1.0), 10, [8])
    with pytest.raises(FloatingPointError, match=r"2 updates in a row .* step 11 with image ids \[9\]"):
        counter.add(torch.tensor(float(BAD)), torch.tensor(1.0), 11, [9])
    lines = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, "image_ids": [8], "in_a_row": 1}, {"step": 11, "image_ids": [9], "in_a_row": 2}]
