"""Write files and folders as a whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rfdetr.errors import InputError


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it when all went well; otherwise nothing is left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def appearing_folder(folder: Path, partial: Path) -> Iterator[None]:
    """Make the folder `partial` to write into, and rename it to `folder` when all went well; otherwise nothing is left of it.

    Raises:
        OSError: `partial` is there already, or `folder` is not an empty folder by the end.
    """
    partial.mkdir(parents=True)
    try:
        yield
        partial.replace(folder)  # takes the place of an empty folder
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` to write into, and rename it when all went well; otherwise nothing is left.

    Raises:
        InputError: `output` holds something, or is being written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output}: exists and is not an empty folder; choose another, or delete it")
    partial = output.with_name(f"{output.name}.partial")
    if partial.exists():
        raise InputError(f"{partial}: exists, so {output} is being made, or that was stopped; if it was stopped, delete it")
    with appearing_folder(output, partial):
        yield partial


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file for people to read."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
