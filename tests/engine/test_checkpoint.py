"""Checkpoint files: atomic, checked, with a fallback."""

import pickle

import pytest
import torch

import engine.checkpoint
from engine import CheckpointError, load_checkpoint, save_checkpoint


def state(value: int) -> dict:
    return {"model": {"w": torch.full((1000,), float(value))}, "step": value, "args": {"lr": 1e-4, "names": ["a", None]}}


def test_round_trip_and_weights_only(tmp_path):
    save_checkpoint(state(3), tmp_path / "deep" / "c.pth")
    loaded = load_checkpoint(tmp_path / "deep" / "c.pth")
    assert loaded["step"] == 3 and loaded["args"] == state(3)["args"]
    assert torch.equal(loaded["model"]["w"], state(3)["model"]["w"])
    torch.load(tmp_path / "deep" / "c.pth", weights_only=True)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["c.pth"]


def test_earlier_versions_are_kept_and_a_damaged_newest_is_replaced_by_the_one_before(tmp_path, caplog):
    path = tmp_path / "checkpoint.pth"
    for value in range(4):
        save_checkpoint(state(value), path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.prev1.pth", "checkpoint.prev2.pth", "checkpoint.pth"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    assert load_checkpoint(path, fallback=True)["step"] == 2
    assert "damaged" in caplog.text and "checkpoint.prev1.pth" in caplog.text
    path.write_bytes(data[:100])
    assert load_checkpoint(path, fallback=True)["step"] == 2


def test_a_crash_while_saving_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "c.pth"
    save_checkpoint(state(1), path)

    def half(value, file):
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(engine.checkpoint.torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(state(2), path)
    assert load_checkpoint(path)["step"] == 1 and len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_a_killed_process_are_swept(tmp_path):
    (tmp_path / ".c.pth.99999999.tmp").write_bytes(b"half")
    save_checkpoint(state(1), tmp_path / "c.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


def test_a_file_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    save_checkpoint(state(1), tmp_path / "c.pth")
    read = engine.checkpoint.torch.load

    def slowly(*arguments, **options):
        (tmp_path / "c.pth").rename(tmp_path / "c.prev1.pth")  # by a run between two renames
        return read(*arguments, **options)

    monkeypatch.setattr(engine.checkpoint.torch, "load", slowly)
    assert load_checkpoint(tmp_path / "c.pth")["step"] == 1


class Evil:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def test_code_in_a_file_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="raw.pth"):
        load_checkpoint(tmp_path / "raw.pth")
    assert "ran" not in capsys.readouterr().out


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.pth: no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere.pth", fallback=True)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match="empty.pth: not a complete"):
        load_checkpoint(tmp_path / "empty.pth")
