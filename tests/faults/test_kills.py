"""SIGKILL at any moment: the run goes on by ``--resume auto``, and ends with the files of a run that was left in peace."""

import itertools
import os
import random
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import small_runs as small

from engine import checkpoint, files
from hooks import BestCheckpointHook, COCOEvalHook, LogHook

MOMENTS = {  # what is replaced, and at which of its calls the process dies: before it (0) or after it (1)
    "first save, half written": (checkpoint, "_write", 1, 1),
    "a save, before the disk has it": (files, "_sync_file", 4, 0),
    "a save, before versions are shifted": (checkpoint, "_shift_versions", 3, 0),
    "a save, between shift and rename": (checkpoint, "_shift_versions", 3, 1),
    "a save, after the rename": (files, "_sync_folder", 5, 0),
    "a best file, half written": (checkpoint, "_write", 4, 1),
    "the table of metrics, before its rename": (files, "_sync_file", 8, 1),
    "before an evaluation": (COCOEvalHook, "evaluate_and_publish", 1, 0),
    "before its metrics are written": (LogHook, "after_eval", 1, 0),
    "between its metrics and the best file": (LogHook, "after_eval", 1, 1),
    "after the best file of the second": (BestCheckpointHook, "after_eval", 2, 1),
    "after the last evaluation": (COCOEvalHook, "evaluate_and_publish", 2, 1),
    "before the best of all is chosen": (BestCheckpointHook, "after_train", 1, 0),
    "after the best of all is chosen": (BestCheckpointHook, "after_train", 1, 1),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return small.make_data(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert small.run_in_child(small.config(data, folder)) == 0
    return folder


def die_at(owner, name: str, call: int, after: int) -> None:
    """Replace a function by one that ends the process at its n-th call."""
    original, calls = getattr(owner, name), itertools.count(1)

    def deadly(*arguments, **keywords):
        this_call = next(calls)  # the saving thread and the main one may be in here at once
        if this_call == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **keywords)
        if this_call == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


QUICK = ("first save, half written", "a save, between shift and rename", "between its metrics and the best file",
         "before the best of all is chosen")


@pytest.mark.parametrize("moment", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS])
def test_killed_at_a_chosen_moment(data, straight, tmp_path, moment):
    run = small.config(data, tmp_path / "run")
    assert small.run_in_child(run, partial(die_at, *MOMENTS[moment])) == -signal.SIGKILL
    assert small.run_in_child(run, resume="auto") == 0
    assert small.same_results(straight, tmp_path / "run") == []


def die_after(seconds: float) -> None:
    def wait() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(data, straight, tmp_path, workers):
    """RFDETR_KILLS says how many times, for each number of workers."""
    for number in range(int(os.environ.get("RFDETR_KILLS", "12"))):
        generator = random.Random(number)
        folder = tmp_path / str(number)
        run = small.config(data, folder, **{"data.num_workers": workers})
        for _ in range(20):
            if small.run_in_child(run, partial(die_after, generator.uniform(0.3, 8)), resume="auto") == 0:
                break
        found = [where for where in small.same_results(straight, folder) if "num_workers" not in where]
        assert found == [], number
        shutil.rmtree(folder)  # 200 of them fill a disk
