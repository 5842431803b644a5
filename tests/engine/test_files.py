"""Replacing a file: all of it or nothing."""

import os
from functools import partial

import pytest

from engine.files import replacing


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent and str(os.getpid()) in temporary.name
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_old_file_is_there_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as temporary:
        temporary.write_text("ne")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_old_file_can_be_put_aside_once_the_new_one_is_written(tmp_path):
    path, aside = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("old")
    with replacing(path, before_rename=partial(os.replace, path, aside)) as temporary:
        temporary.write_text("new")
        assert not aside.exists()
    assert (path.read_text(), aside.read_text()) == ("new", "old")


def test_only_leftovers_of_this_file_are_swept(tmp_path):
    for name in (".a.txt.99999999.tmp", ".b.txt.99999999.tmp", "a.txt"):
        (tmp_path / name).write_text("half")
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.txt.99999999.tmp", "a.txt"]
