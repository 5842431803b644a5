"""Several processes of which one fails: all end within the time limit, say why, and keep what can be kept."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import load_checkpoint

SCRIPT = Path(__file__).with_name("faulty_run.py")
ROOT = Path(__file__).parents[2]
SECONDS = 150  # that a whole run may take on a busy machine


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


class Ranks:
    """Two processes as on two machines: nobody ends one when the other fails."""

    def __init__(self, folder: Path, fault: str, timeout: float = 30) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.outputs = [folder / f"rank{rank}.txt" for rank in range(2)]
        self.processes = []
        for rank, output in enumerate(self.outputs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                     "MASTER_PORT": str(port)}
            self.processes.append(subprocess.Popen(
                [sys.executable, str(SCRIPT), str(folder / "run"), fault, str(timeout)], env=environment(**place),
                stdin=subprocess.DEVNULL, stdout=open(output, "w"), stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)))  # not so where tests run under nohup

    def wait(self, which: tuple[int, ...] = (0, 1)) -> list[int]:
        return [self.processes[rank].wait(timeout=SECONDS) for rank in which]

    def texts(self) -> list[str]:
        return [output.read_text() for output in self.outputs]


@pytest.fixture
def ranks(tmp_path):
    (tmp_path / "run").mkdir()
    started = []

    def start(fault: str, **options: float) -> Ranks:
        started.append(Ranks(tmp_path, fault, **options))
        return started[-1]

    yield start
    for process in (process for one in started for process in one.processes if process.poll() is None):
        process.kill()


def wait_for(path: Path) -> None:
    limit = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < limit, f"no {path.name}"
        time.sleep(0.05)


def saved_step(folder: Path) -> int:
    return load_checkpoint(folder / "run" / "checkpoint.pth")["step"]


def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(ranks, tmp_path):
    run = ranks("NaN")
    assert run.wait() == [0, 0]
    for rank, text in enumerate(run.texts()):
        assert f"rank {rank} at step 12, skipped 1, equal weights: True" in text
    (line,) = (tmp_path / "run" / "bad_steps.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3 and len(json.loads(line)["image_ids"]) == 8


@pytest.mark.slow
def test_a_bad_image_of_one_rank_costs_nothing(ranks, tmp_path):
    run = ranks("bad image")
    assert run.wait() == [6, 2]
    assert saved_step(tmp_path) == 2
    first, second = run.texts()
    assert "error: 7.png: cannot be read" in second
    assert "error: rank 1, step 2: loading failed, InputError: 7.png: cannot be read" in first


def test_an_exception_in_a_hook_of_one_rank_ends_all(ranks):
    run = ranks("exception")
    assert run.wait() == [6, 1]
    first, second = run.texts()
    assert "KeyError: 'in a hook'" in second
    assert "rank 1 failed: KeyError: 'in a hook' (step 2, before_step of Fault)" in first.splitlines()[-1]


@pytest.mark.slow
def test_a_killed_rank_ends_the_others(ranks):
    run = ranks("killed")
    assert run.wait() == [6, -signal.SIGKILL]
    assert "lost contact to another process, which was ended or cannot be reached (step 2, " in run.texts()[0]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stopped", "hangs"])
def test_where_nothing_moves_every_rank_that_can_says_where_it_is(ranks, tmp_path, fault):
    run = ranks(fault, timeout=4)
    assert run.wait((0,) if fault == "stopped" else (0, 1)) == ([6] if fault == "stopped" else [6, 6])
    first, second = run.texts()
    assert "nothing has moved for 0.0666667 minutes" in first
    assert "rank 0: step 2, backward for" in first and "in _forward_backward" in first
    if fault == "hangs":
        assert "rank 1: step 2, before_step of Fault for" in second and "time.sleep(1000)" in second
    beat = json.loads((tmp_path / "run" / "heartbeat" / "rank0.json").read_text())
    assert (beat["rank"], beat["step"], beat["phase"]) == (0, 2, "backward") and beat["seconds_in_phase"] > 2


def test_a_signal_at_long_steps_to_one_rank_stops_all_after_that_step(ranks, tmp_path):
    run = ranks("long steps")
    wait_for(tmp_path / "run" / "in_step2_of_rank0")
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.wait() == [3, 3]
    assert saved_step(tmp_path) == 2
    assert "rank 0 at step 2" in run.texts()[0] and "stopping after step 2: rank 1: received SIGTERM" in run.texts()[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_while_a_rank_waits_for_data_stops_all(ranks, tmp_path, name):
    run = ranks("waiting")
    wait_for(tmp_path / "run" / "waiting")
    run.processes[1].send_signal(getattr(signal, name))
    assert run.wait() == [3, 3]
    assert saved_step(tmp_path) == 2


@pytest.mark.slow
def test_ranks_end_in_good_order_when_torchrun_is_killed(tmp_path):
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT),
               str(tmp_path / "run"), "long steps", "30"]
    launcher = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "run" / "in_step1_of_rank0")
    wait_for(tmp_path / "run" / "heartbeat" / "rank1.json")
    launcher.kill()
    launcher.wait()
    wait_for(tmp_path / "run" / "checkpoint.pth")
    pids = [json.loads(path.read_text())["pid"] for path in (tmp_path / "run" / "heartbeat").glob("*.json")]
    limit = time.monotonic() + SECONDS
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert saved_step(tmp_path) < 12


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
