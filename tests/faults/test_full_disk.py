"""A full or read-only disk: one warning a save, training goes on, the last good file stays, and the next save tries again."""

import errno
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
import small_runs as small

from engine import Hook, background, checkpoint, files, load_checkpoint
from engine.background import BackgroundSaver, to_host
from engine.watch import doing, watching
from hooks import writers
from rfdetr.errors import InputError
from rfdetr.training import build_trainer, train
from rfdetr.training.actions import STATUS_CODES
from rfdetr.training.command_line import ExitCode

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return small.make_data(tmp_path_factory.mktemp("data") / "set")


class Disk:
    """Every write of the engine and of the writers goes through here; those of the chosen numbers find no room."""

    def __init__(self, monkeypatch, full_at) -> None:
        self.count, self.failed, self.full_at = 0, [], full_at
        for owner, name in ((checkpoint, "_write"), (files, "_sync_file"),
                            (writers.JsonlWriter, "write"), (writers.CsvWriter, "_add")):
            monkeypatch.setattr(owner, name, self._guarded(name, getattr(owner, name)))

    def _guarded(self, name, original):
        def write(*arguments):
            self.count += 1
            if self.full_at(self.count):
                self.failed.append(name)
                raise OSError(*FULL.args)
            return original(*arguments)
        return write


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(small.config(data, folder))
    return folder


@pytest.mark.parametrize("numbers", [{3}, {9, 10}, pytest.param({4}, marks=pytest.mark.slow),
                                     *(pytest.param({n, n + 1}, marks=pytest.mark.slow) for n in range(5, 40, 5))], ids=str)
def test_what_found_no_room_once_is_there_in_the_end(data, straight, tmp_path, monkeypatch, caplog, numbers):
    disk = Disk(monkeypatch, numbers.__contains__)
    results = train(small.config(data, tmp_path / "run"))
    assert disk.failed and results["status"] == "done"
    assert small.same_results(straight, tmp_path / "run") == []
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING and "No space left" in record.message]
    assert 1 <= len(warnings) <= len(disk.failed) and not any(record.exc_info for record in warnings)


def test_a_disk_that_stays_full_costs_the_last_save_only(data, tmp_path, monkeypatch, caplog):
    disk = Disk(monkeypatch, lambda number: (tmp_path / "run" / "checkpoint.pth").exists() and number > 12)
    results = train(small.config(data, tmp_path / "run"))
    assert results["status"] == "save_failed" and STATUS_CODES[results["status"]] == ExitCode.SAVE_FAILED == 5
    assert (results["epochs"], results["steps"]) == (2, 10)
    assert 0 < load_checkpoint(tmp_path / "run" / "checkpoint.pth")["step"] < 10
    disk.full_at = lambda number: False
    assert train(small.config(data, tmp_path / "run"), resume="auto")["status"] == "done"
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pth")["step"] == 10


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_real_disk_that_is_full(data, tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=300m tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("mounting is not allowed here")
    try:
        class Fill(Hook):
            def before_step(self, trainer, batches):
                stopper = disk / "filled"
                if trainer.step == 3:
                    try:
                        with open(stopper, "wb") as file:
                            while True:
                                file.write(bytes(1_000_000))
                    except OSError:
                        pass
                elif trainer.step == 7:
                    stopper.unlink()

        results = train(small.config(data, disk / "run"), [Fill()])
        assert results["status"] == "done" and "No space left on device" in caplog.text
        assert "unexpected pos" not in caplog.text
        assert load_checkpoint(disk / "run" / "checkpoint.pth")["step"] == 10
        assert [line["step"] for line in small.lines(disk / "run")] == [2, 4, 5, 6, 8, 10, 10]
    finally:
        os.system(f"umount {disk}")


def test_no_room_at_the_start_is_one_message(data, tmp_path, monkeypatch):
    monkeypatch.setattr("rfdetr.training.run_folder.write_json", lambda *arguments: (_ for _ in ()).throw(OSError(*FULL.args)))
    with pytest.raises(InputError, match="cannot be written .No space left on device"):
        train(small.config(data, tmp_path / "run"))


# --- saving beside training ---


def test_the_copy_is_of_the_step_at_which_it_was_taken(tmp_path):
    weights = torch.zeros(1000)
    saver = BackgroundSaver()
    saver.save({"w": weights, "again": weights, "rest": [1, (2, weights)]}, tmp_path / "c.pth")
    weights += 1
    saver.wait()
    found = load_checkpoint(tmp_path / "c.pth")
    assert found["w"].sum() == 0 and not saver.failed
    assert found["w"].data_ptr() == found["again"].data_ptr() == found["rest"][1][1].data_ptr()


def test_training_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    original = background.save_checkpoint
    monkeypatch.setattr(background, "save_checkpoint", lambda *a, **k: (time.sleep(0.5), original(*a, **k)))
    saver, started = BackgroundSaver(), time.perf_counter()
    saver.save({"w": torch.zeros(10)}, tmp_path / "c.pth")
    assert time.perf_counter() - started < 0.3
    saver.wait()
    assert load_checkpoint(tmp_path / "c.pth")["w"].numel() == 10


def test_the_heartbeat_tells_who_waits_for_the_disk(tmp_path, monkeypatch):
    """The thread that trains, in its second save: not while another thread writes the first."""
    monkeypatch.setattr("engine.watch.POLL_SECONDS", 0.02)
    phases, may_write = [], threading.Event()
    monkeypatch.setattr(background, "save_checkpoint", lambda *a, **k: may_write.wait(20))

    def look() -> None:
        time.sleep(0.2)
        phases.append(json.loads((tmp_path / "heartbeat" / "rank0.json").read_text())["phase"])

    with watching(0, 1) as watch:
        watch.begin(tmp_path)
        saver = BackgroundSaver()
        doing("forward")
        saver.save({}, tmp_path / "c.pth")
        look()
        threading.Timer(0.1, lambda: (look(), may_write.set())).start()
        saver.save({}, tmp_path / "c.pth")
        saver.wait()
    assert phases == ["forward", "saving"]


def test_an_error_that_is_not_the_disks_ends_the_run(tmp_path):
    saver = BackgroundSaver()
    saver.save({"w": lambda: None}, tmp_path / "c.pth")
    with pytest.raises(Exception, match="pickle"):
        saver.wait()


def test_a_copy_keeps_what_a_modules_state_knows(tmp_path):
    state = torch.nn.BatchNorm1d(2).state_dict()
    assert to_host(state)[0]._metadata == state._metadata


# --- an error of the data ---


def test_a_bad_picture_late_in_an_epoch_saves_first(tmp_path, caplog):
    data = small.make_data(tmp_path / "set", 12)
    folder = tmp_path / "run"
    run = small.config(data, folder, **{"train.save_every_steps": 0})
    trainer = build_trainer(run)
    bad = Path(data, "train", "3.png")
    picture = bad.read_bytes()
    hook = next(hook for hook in trainer.hooks if hook.name == "LogHook")
    original = hook.after_step
    hook.after_step = lambda trainer: (original(trainer), bad.write_bytes(b"broken") if trainer.step == 7 else None)
    with pytest.raises(InputError, match=r"3\.png"):
        trainer.train()
    saved = load_checkpoint(folder / "checkpoint.pth")
    assert saved["step"] == trainer.step >= 7 and "whose state is saved" in caplog.text
    bad.write_bytes(picture)
    assert train(run, resume="auto")["status"] == "done"
    assert small.run_in_child(small.config(data, tmp_path / "straight", **{"train.save_every_steps": 0})) == 0
    assert [where for where in small.same_results(tmp_path / "straight", folder)] == []
