"""Damaged checkpoints: the version before is used and said so, or there is one message; and a good one is never given up."""

import os
import random
import signal
import sys
import zipfile
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
import small_runs as small

from engine import CheckpointError, checkpoint, load_checkpoint, save_checkpoint
from rfdetr.errors import InputError
from rfdetr.training.resume import read_state

NEWEST, BEFORE = "checkpoint.pth", "checkpoint.prev1.pth"


def state(step: int) -> dict:
    return {"optimizer": {}, "epoch": 1, "step": step, "epoch_step": 0, "model": {"w": torch.full((500,), float(step))}}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two versions, of steps 1 and 2."""
    for step in (1, 2):
        save_checkpoint(state(step), tmp_path / NEWEST, keep=1)
    return tmp_path


def with_bytes(change):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data))
    return damage


def flipped(*places: float):
    def flip(data: bytearray) -> bytearray:
        for place in places:
            data[int(place * (len(data) - 1))] ^= 0xFF
        return data
    return with_bytes(flip)


def replaced(make):
    def damage(path: Path) -> None:
        path.unlink()
        make(path)
    return damage


def packed(path: Path) -> None:
    """Write an archive of 200 MB in 200 kB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))


DAMAGES = {
    "header": flipped(0.0), "header of a record": flipped(0.001, 0.002, 0.003), "middle": flipped(0.5),
    "end": with_bytes(lambda data: data[:-22] + bytes(22)),
    "directory": with_bytes(lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x03")),
    "names": with_bytes(lambda data: data.replace(b"archive/data", b"archive/\xff\xfe\xfd\xfc")),
    "way of packing": with_bytes(lambda data: data[: (place := data.find(b"PK\x01\x02") + 10)] + b"\x0e" + data[place + 1 :]),
    "one byte short": with_bytes(lambda data: data[:-1]), "half": with_bytes(lambda data: data[: len(data) // 2]),
    "empty": with_bytes(lambda data: b""), "zeros": with_bytes(lambda data: bytes(len(data))),
    "text": with_bytes(lambda data: b"a checkpoint"), "packed": replaced(packed),
    "code": replaced(lambda path: torch.save({"optimizer": os.system}, path)),
    "a list": replaced(lambda path: torch.save([1], path)), "a folder": replaced(Path.mkdir),
    "a pipe": replaced(os.mkfifo), "a link to nothing": replaced(lambda path: path.symlink_to("nowhere")),
    "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_version_before_is_used_and_said_so(folder, caplog, damage):
    DAMAGES[damage](folder / NEWEST)
    path, found = read_state(folder, "auto")
    assert (path.name, found["step"]) == (BEFORE, 1)
    assert f"using {folder / BEFORE} instead" in caplog.text
    assert all(len(message) < 1000 for message in caplog.messages)
    with pytest.raises(CheckpointError, match=NEWEST):
        read_state(folder, str(folder / NEWEST))
    DAMAGES[damage](folder / BEFORE)
    with pytest.raises(CheckpointError, match=f"{NEWEST}(.|\n)*{BEFORE}"):
        read_state(folder, "auto")


FLIPS = pytest.param(int(os.environ.get("RFDETR_FLIPS", "3000")), marks=[pytest.mark.slow, pytest.mark.timeout(3600)])


@pytest.mark.parametrize("flips", [200, FLIPS])
def test_flipped_bits_are_never_read_as_something_else(folder, flips):
    good = (folder / NEWEST).read_bytes()
    for number in range(flips):
        data, generator = bytearray(good), random.Random(number)
        for _ in range(generator.choice((1, 1, 1, 4, 32))):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        (folder / NEWEST).write_bytes(data)
        _, found = read_state(folder, "auto")
        assert small.differences(found, state(found["step"])) == [], number


def test_a_damaged_newest_file_takes_no_good_ones_place(folder, caplog):
    """Resumed from the version before, and killed in the next save, at any point of it."""
    for name in ("_write", "_shift_versions"):
        DAMAGES["middle"](folder / NEWEST)
        checkpoint._sound.clear()  # as in a process that did not write it

        def die_in_the_next_save(name=name):
            original = getattr(checkpoint, name)
            setattr(checkpoint, name, lambda *arguments: (original(*arguments), os.kill(os.getpid(), signal.SIGKILL)))
            save_checkpoint(state(3), folder / NEWEST, keep=1)

        assert small.in_child(die_in_the_next_save) == -signal.SIGKILL
        assert read_state(folder, "auto")[1]["step"] == 1
        save_checkpoint(state(2), folder / NEWEST, keep=1)
        assert [load_checkpoint(folder / file)["step"] for file in (NEWEST, BEFORE)] == [2, 1]
    assert "is damaged and not kept" in caplog.text


def test_weights_without_a_checkpoint_are_not_gone_on_from(folder):
    (folder / NEWEST).rename(folder / "checkpoint_best_total.pth")
    (folder / BEFORE).unlink()
    with pytest.raises(InputError, match=f"holds files of a run, but no {NEWEST} to go on from"):
        read_state(folder, "auto")


def test_only_what_dead_processes_left_is_swept(tmp_path):
    dead = small.multiprocessing.get_context("fork").Process(target=int)
    dead.start(), dead.join()
    leftovers = [tmp_path / f".{NEWEST}.{number}.tmp" for number in (os.getppid(), dead.pid)]
    for path in leftovers:
        path.write_bytes(b"half")
    save_checkpoint(state(1), tmp_path / NEWEST)
    assert [path.exists() for path in leftovers] == [True, False]
