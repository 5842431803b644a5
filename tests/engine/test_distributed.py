"""Two Gloo processes: the same weights as one process, state gathered, non-finite gradients agreed on."""

import datetime
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import distributed as dist
from toy import make_trainer, weights

from engine.distributed import all_reduce_sum, any_rank, leave_process_group, process_group

SCRIPT = """
import sys, torch
sys.path.insert(0, {folder!r})
from engine import Hook
from engine.distributed import process_group, rank, world_size, gather_objects, is_main_process, all_reduce_sum
from toy import make_trainer, weights, StopAt

class PoisonRankOne(Hook):
    def before_step(self, trainer, batches):
        if trainer.step == 3 and rank() == 1:
            batches[0][0].fill_(float("nan"))

class SyncedBatches(Hook):
    def __init__(self):
        self.found = []  # after each batch: are the gradients the same on both ranks?

    def after_batch(self, trainer, batch, outputs):
        first, second = gather_objects([p.grad for p in trainer.model.parameters()])
        self.found.append(all(torch.equal(a, b) for a, b in zip(first, second)))

with process_group(torch.device("cpu")):
    results = {{}}
    for accum in (1, 2):
        trainer = make_trainer({out!r}, batch_size=4 // accum, grad_accum_steps=accum, rank=rank(), world_size=world_size(),
                               loss_normalize="window", clip_grad_norm=0.5)
        trainer.train()
        results[accum] = weights(trainer)
    assert len(trainer.state_dict()["rng"]) == 2
    synced = SyncedBatches()
    trainer = make_trainer({out!r}, batch_size=2, grad_accum_steps=3, rank=rank(), world_size=2, max_epochs=1, hooks=[synced])
    trainer.train()
    results["synced"] = synced.found
    poisoned = make_trainer({out!r}, rank=rank(), world_size=world_size(), hooks=[PoisonRankOne()])
    poisoned.train()
    results["skipped"] = gather_objects(poisoned.bad_steps)
    results["gathered"] = gather_objects({{"rank": rank()}} if rank() else None)
    own = torch.tensor([1.0, float(rank())])
    results["sum"] = all_reduce_sum(own)
    assert own.tolist() == [1.0, rank()]
    if is_main_process():
        torch.save(results, {out!r} + "/results.pth")
"""


def test_two_processes_end_at_the_weights_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent), out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one = make_trainer(tmp_path, batch_size=8, loss_normalize="window", clip_grad_norm=0.5)
    one.train()
    results = torch.load(tmp_path / "results.pth")
    for accum in (1, 2):
        torch.testing.assert_close(results[accum], weights(one), rtol=1e-9, atol=1e-12)
    assert results["synced"] == [False, False, True] * 2  # only the last batch of a step pays for it
    assert results["skipped"] == [1, 1]
    assert results["gathered"] == [None, {"rank": 1}]
    assert results["sum"].tolist() == [2.0, 1.0]


LEAVING = """
import os, sys, torch
from engine.distributed import gather_objects, process_group, rank
for port in sys.argv[2:]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", RANK=sys.argv[1])
    with process_group(torch.device("cpu")):
        assert gather_objects(rank()) == [0, 1]
"""


def test_processes_leave_each_other_without_a_deadlock():
    with ExitStack() as taken:
        servers = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(15)]
        ports = [str(server.getsockname()[1]) for server in servers]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [subprocess.Popen([sys.executable, "-c", LEAVING, str(rank), *ports], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


def test_alone_a_sum_is_the_value_itself():
    assert all_reduce_sum(torch.tensor(3.0)).item() == 3


def test_hosts_are_waited_for_as_long_as_devices(tmp_path, monkeypatch):
    """Beside NCCL there is a group for the hosts: with its own limit, 30 minutes, a longer `timeout_minutes` would be in vain."""
    limits = []
    make = dist.new_group
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting_point", rank=0, world_size=1)
    monkeypatch.setattr(dist, "get_backend", lambda *_: "nccl")
    monkeypatch.setattr(dist, "new_group", lambda **options: (limits.append(options["timeout"]), make(**options))[1])
    try:
        with process_group(torch.device("cpu"), timeout_minutes=90):
            assert any_rank(True) and not any_rank(False)
    finally:
        monkeypatch.undo()
        leave_process_group()
    assert limits == [datetime.timedelta(minutes=90, seconds=30)]
