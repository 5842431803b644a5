"""FSDP2 in two Gloo processes: the weights of one process, and checkpoints that go both ways."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from toy import ToyModel, make_trainer, weights

from engine import load_checkpoint
from engine.distributed import leave_process_group, sync_batch_norms
from engine.sharding import can_shard_on_cpu, divided, shard, whole

SCRIPT = """
import copy, sys, torch
sys.path.insert(0, {folder!r})
from engine import Trainer, save_checkpoint, load_checkpoint
from engine.distributed import process_group, rank, world_size, is_main_process
from engine.sharding import shard
from hooks import EMAHook
from toy import StopAt, ToyCriterion, ToyLoader, ToyModel, ToySampler

def sharded_trainer(hooks=(), accum=2):
    torch.manual_seed(0)
    model = ToyModel()
    twin = copy.deepcopy(model)
    shard(model, [model.first], torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 10))
    loader = ToyLoader(ToySampler(24, 4 // accum, rank(), world_size()))
    return Trainer(model, ToyCriterion(), optimizer, loader, max_epochs=2, device="cpu", precision="fp32", lr_scheduler=scheduler,
                   output_dir={out!r}, grad_accum_steps=accum, loss_normalize="window", clip_grad_norm=0.5, eval_model=twin,
                   hooks=hooks)

with process_group(torch.device("cpu")):
    trainer = sharded_trainer([StopAt(4)])
    local = sum(p.to_local().numel() for p in trainer.unwrapped_model.parameters())
    trainer.train()
    state = trainer.state_dict()
    if is_main_process():
        save_checkpoint(state, {out!r} + "/half.pth")
    resumed = sharded_trainer()
    resumed.load_state_dict(state)
    resumed.train()
    final = {{"local": local, "whole": torch.cat([p.flatten() for p in resumed.eval_models["regular"].parameters()]).detach(),
             "grad_norm": resumed.grad_norm}}
    averaged = sharded_trainer([EMAHook()])
    try:
        averaged.train()
    except ValueError as error:
        final["refused"] = str(error)
    if is_main_process():
        torch.save(final, {out!r} + "/final.pth")
"""


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory) -> Path:
    if not can_shard_on_cpu():
        pytest.skip("FSDP2 on a CPU fails inside this PyTorch")
    folder = tmp_path_factory.mktemp("sharded")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent), out=str(folder)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder


def test_sharded_processes_end_at_the_weights_of_one(sharded_run, tmp_path):
    one = make_trainer(tmp_path, batch_size=8, loss_normalize="window", clip_grad_norm=0.5)
    one.train()
    final = torch.load(sharded_run / "final.pth")
    torch.testing.assert_close(final["whole"], weights(one), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(final["grad_norm"], one.grad_norm, rtol=1e-9, atol=0)
    assert final["local"] < weights(one).numel()  # this rank held a part only


def test_a_checkpoint_of_sharded_processes_goes_on_in_one(sharded_run, tmp_path):
    state = load_checkpoint(sharded_run / "half.pth")
    one = make_trainer(tmp_path, batch_size=8, loss_normalize="window", clip_grad_norm=0.5)
    one.load_state_dict(state)
    assert one.step == 4
    one.train()
    whole = make_trainer(tmp_path, batch_size=8, loss_normalize="window", clip_grad_norm=0.5)
    whole.train()
    torch.testing.assert_close(weights(one), weights(whole), rtol=1e-9, atol=1e-12)


def test_ema_refuses_a_sharded_model(sharded_run):
    assert "sharded (FSDP)" in torch.load(sharded_run / "final.pth")["refused"]


def test_a_pytorch_that_cannot_is_named(monkeypatch):
    monkeypatch.setattr("engine.sharding.is_distributed", lambda: True)
    monkeypatch.setattr("engine.sharding.can_shard_on_cpu", lambda: False)
    with pytest.raises(ValueError, match="sharding on a CPU fails inside PyTorch .* take a newer one, or ddp"):
        shard(ToyModel(), [], torch.device("cpu"))


def test_whole_tensors_are_divided_in_any_pytorch(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting_point", rank=0, world_size=1)
    try:
        value = torch.randn(5, 3)
        part = distribute_tensor(torch.zeros(5, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
        found = divided(value, part)
        assert found.placements == (Shard(0),)
        torch.testing.assert_close(whole({"a": [found]}), {"a": [value]}, rtol=0, atol=0)
        assert divided(value[:2], part).shape == (2, 3) and divided(7, part) == 7, "what does not fit stays as it is"
    finally:
        leave_process_group()


def test_one_process_cannot_shard():
    with pytest.raises(ValueError, match="several processes"):
        shard(ToyModel(), [], torch.device("cpu"))


def test_a_whole_model_takes_no_twin(tmp_path):
    with pytest.raises(ValueError, match="eval_model"):
        make_trainer(tmp_path, eval_model=ToyModel())


def test_sync_batch_norms_converts_them_all_and_refuses_a_model_without():
    model = sync_batch_norms(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)))
    assert isinstance(model[1], torch.nn.SyncBatchNorm)
    with pytest.raises(ValueError, match="no batch norm"):
        sync_batch_norms(ToyModel())
