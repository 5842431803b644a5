"""A folder has one run at a time, and the processes of a run have to agree."""

import os
import re
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import small_runs as small

from engine import Hook
from rfdetr.errors import InputError
from rfdetr.training import build_trainer, train
from rfdetr.training.ownership import owned


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return small.make_data(tmp_path_factory.mktemp("data") / "set")


class TrySecond(Hook):
    """In the middle of a run, start others in its folder, in this process and in one of their own."""

    def __init__(self, data: str) -> None:
        self.data, self.messages, self.codes = data, [], []

    def after_step(self, trainer):
        if trainer.step != 6:
            return
        for arguments in ({}, {"resume": "auto"}, {"overwrite": True}):
            run = small.config(self.data, trainer.output_dir)
            with pytest.raises(InputError) as refused:
                train(run, **arguments)
            self.messages.append(str(refused.value))
            self.codes.append(small.run_in_child(run, **arguments))


def test_a_second_run_is_refused_and_the_first_is_not_touched(data, tmp_path):
    second = TrySecond(data)
    train(small.config(data, tmp_path / "run"), [second])
    owner = f"in use by another run .process {os.getpid()} on "
    assert [bool(re.search(owner, message)) for message in second.messages] == [True] * 3
    assert second.codes == [1, 1, 1]
    train(small.config(data, tmp_path / "straight"))
    found = small.same_results(tmp_path / "straight", tmp_path / "run")
    assert [where for where in found if "TrySecond" not in where and where != "checkpoint.pth/hooks"] == []


def test_a_trainer_of_ones_own_owns_its_folder_too(data, tmp_path):
    trainer = build_trainer(small.config(data, tmp_path / "run"))
    with owned(tmp_path) as _, pytest.raises(InputError, match="in use by another run"):
        (tmp_path / "run").symlink_to(tmp_path)
        trainer.train()


def test_whoever_comes_first_runs(data, tmp_path):
    """Two that start together: one of them runs to its end, the other is refused."""
    codes: list[int] = []
    run = small.config(data, tmp_path / "run")
    starters = [threading.Thread(target=lambda: codes.append(small.run_in_child(run))) for _ in range(2)]
    [starter.start() for starter in starters]
    [starter.join() for starter in starters]
    assert sorted(codes) == [0, 1]
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_lock_of_a_killed_run_is_none(tmp_path):
    def lock_and_die() -> None:
        with owned(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert small.in_child(lock_and_die) == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    with owned(tmp_path), pytest.raises(InputError, match="in use"), owned(tmp_path):
        pass
    with owned(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_loader_process_that_lives_on_does_not_hold_it(tmp_path):
    """It is forked while the folder is owned, and its run is killed."""
    ready = tmp_path / "worker"

    def lock_fork_and_die() -> None:
        with owned(tmp_path):
            worker = os.fork()
            if worker == 0:
                time.sleep(30)
                os._exit(0)
            ready.write_text(str(worker))
            os.kill(os.getpid(), signal.SIGKILL)

    run = os.fork()  # a Process would wait for the worker, too
    if run == 0:
        lock_fork_and_die()
    assert os.WTERMSIG(os.waitpid(run, 0)[1]) == signal.SIGKILL
    worker = int(ready.read_text())
    try:
        with owned(tmp_path):
            os.kill(worker, 0)  # it is still there
    finally:
        os.kill(worker, signal.SIGKILL)


def test_an_exception_gives_the_folder_back(data, tmp_path):
    class Fails(Hook):
        def after_step(self, trainer):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        train(small.config(data, tmp_path / "run"), [Fails()])
    with owned(tmp_path / "run"):
        pass


# --- several processes ---


def refused(rank: int, meeting: str, run, **arguments) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": meeting}
    try:
        train(run, **arguments)
    except InputError as error:
        folder = Path(run.train.output_dir)
        folder.mkdir(parents=True, exist_ok=(folder / "checkpoint.pth").exists())  # nothing has stayed
        (folder / f"said{rank}").write_text(str(error))


def two_processes(runs, port: int, **arguments) -> list[str]:
    """Run one process of two each, and return what they were refused with."""
    threads = [threading.Thread(target=small.in_child, args=(partial(refused, rank, str(port), run, **arguments),))
               for rank, run in enumerate(runs)]
    started = time.monotonic()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert time.monotonic() - started < 60, "nobody waits for a time limit"
    return [Path(run.train.output_dir, f"said{rank}").read_text() for rank, run in enumerate(runs)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "WORLD_SIZE"])
def test_processes_that_do_not_know_of_each_other_are_refused(data, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with pytest.raises(InputError, match="^4 processes were started .* without torchrun.* srun --ntasks-per-node=1 torchrun"):
        train(small.config(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_node_without_the_checkpoint_stops_all_of_them(data, tmp_path):
    first = small.config(data, tmp_path / "first", **{"train.epochs": 1})
    train(first)
    second = small.config(data, tmp_path / "second", **{"train.epochs": 1})
    for message in two_processes([first, second], free_port(), resume="auto"):
        assert "process 0 goes on from epoch 1, step 5" in message and "process 1 from nothing" in message


def test_processes_with_other_settings_are_refused(data, tmp_path):
    runs = [small.config(data, tmp_path / str(rank), **{"optim.lr": 10.0**-rank}) for rank in range(2)]
    for message in two_processes(runs, free_port()):
        assert "optim.lr: 1.0 for process 0, 0.1 for process 1" in message
