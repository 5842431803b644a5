"""Files that are replaced as a whole or not at all, whatever ends the process in between."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike, *, before_rename: Callable[[], None] | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`; the file that the block writes there takes the place of `path` when it ends.

    The new file is on the disk before it is renamed. After an error the old one is still there, and the temporary one is not;
    what a process left that was killed meanwhile goes the next time. The folder is made where it is missing.

    Args:
        before_rename: called once the new file is safe, while the old one is still in its place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # of this process: two may write to one folder
    try:
        yield temporary
        _sync_file(temporary)
        if before_rename:
            before_rename()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sweep_leftovers(path: Path) -> None:
    """Remove what killed processes have left of `path`, but not what others are writing."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        owner = leftover.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if not owner.isdecimal() or int(owner) == os.getpid() or not _is_alive(int(owner)):
            leftover.unlink(missing_ok=True)


def _is_alive(process_id: int) -> bool:
    if os.name != "posix":  # to ask would end it there
        return False
    try:
        os.kill(process_id, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; not every system can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
