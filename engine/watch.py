"""What this process is doing, and a thread that watches it.

The thread writes a heartbeat file, and ends a process of several in which nothing moves any more or whose peer has failed: the
thread that trains may wait in a collective that the other rank never enters. Ranks tell each other through a `Board`, which needs
no collective.
"""

import datetime
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from torch import distributed as dist

EXIT_CODE = 6  # of a process that ends for another one's sake, or because nothing moved
POLL_SECONDS = 1.0
GRACE_SECONDS = 20.0  # to finish what this rank does, and to notice by itself that another one has failed
LOST_CONTACT = "lost contact to another process, which was ended or cannot be reached"
STORE_TIMEOUT = datetime.timedelta(seconds=30)

logger = logging.getLogger(__name__)


class PeerError(RuntimeError):
    """Another rank failed or does not answer; the message says which, in what, and why."""


class NonFiniteError(FloatingPointError):
    """Too many updates in a row were not finite: all ranks know it at the same step."""


class Activity:
    """What the thread that makes this is doing, for other threads to read."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.step, self.phase, self.since = 0, "starting", time.monotonic()

    def text(self) -> str:
        return f"step {self.step}, {self.phase} for {time.monotonic() - self.since:.0f} s"

    def stack(self) -> str:
        frame = sys._current_frames().get(self.thread)
        return "".join(traceback.format_stack(frame)) if frame else ""


class Board:
    """Notes that every process of a job can write and read at any time, kept in the store where they meet.

    A lasting note is still there when torchrun has started the processes again.
    """

    _boards = count()  # the same number on all ranks

    def __init__(self) -> None:
        self._store: Any = dist.HashStore()  # of this process, if it is alone
        self._prefix = f"attempt{restart_count()}/{next(self._boards)}/"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # a connection of its own: that of the process group may be busy waiting
            self._store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                                        timeout=STORE_TIMEOUT, wait_for_workers=False)

    def put(self, name: str, value: str, *, lasting: bool = False) -> str:
        """Write a note unless there is one of that name; return the one that is there then."""
        return self._store.compare_set(self._key(name, lasting), "", value).decode()

    def get(self, name: str, *, lasting: bool = False) -> str | None:
        key = self._key(name, lasting)
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _key(self, name: str, lasting: bool) -> str:
        return f"board/{'' if lasting else self._prefix}{name}"


class Watch(threading.Thread):
    """The watching thread of one process.

    Args:
        limit_seconds: with several ranks, the process ends where nothing has moved for so long; alone, it only says so.
    """

    def __init__(self, board: Board, rank: int, world_size: int, limit_seconds: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.board, self.rank, self.world_size, self.limit_seconds = board, rank, world_size, limit_seconds
        self._heartbeat: Path | None = None
        self._parent = os.getppid() if dist.is_torchelastic_launched() else None
        self._closed = threading.Event()
        self._store_is_gone = self._is_ending = False
        self._reported: float | None = None  # when nothing moved, the `since` that was reported

    def begin(self, folder: Path) -> None:
        """Write heartbeats into the folder of a run from now on; the run counts as begun for a later restart."""
        self.board.put(f"begun {folder.resolve()}", "yes", lasting=True)
        self._heartbeat = folder / "heartbeat" / f"rank{self.rank}.json"
        self._write_heartbeat()

    def was_begun(self, folder: Path) -> bool:
        return self.board.get(f"begun {folder.resolve()}", lasting=True) is not None

    def announce(self, error: BaseException) -> dict[str, Any]:
        """Tell the other ranks why this one fails; return what the first rank to fail has told.

        From now on this rank ends by itself, when it has closed its files.
        """
        self._is_ending = not isinstance(error, NonFiniteError)  # after which a run may go on from its last checkpoint
        if isinstance(error, (PeerError, NonFiniteError)):  # no news
            return {"rank": self.rank}
        what = LOST_CONTACT if is_lost_contact(error) else describe(error)
        return self._tell({"rank": self.rank, "what": f"{what} (step {_activity.step}, {_activity.phase})"})

    def close(self) -> None:
        self._closed.set()
        self.join()
        _activity.phase = "ended"
        self._write_heartbeat()

    def run(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            self._write_heartbeat()
            self._end_with_parent()
            try:
                self._end_with_others()
            except (RuntimeError, OSError):  # the store went with its process; collectives, or the parent, will tell more
                self._store_is_gone = True
            self._look_for_movement()

    def _tell(self, failure: dict[str, Any]) -> dict[str, Any]:
        try:
            return json.loads(self.board.put("failure", json.dumps(failure)))
        except (RuntimeError, OSError):
            return failure

    def _end_with_parent(self) -> None:
        """Stop in good order when torchrun is gone, which would otherwise leave this process to itself."""
        if self._parent is not None and os.getppid() != self._parent:
            self._parent = None
            os.kill(os.getpid(), signal.SIGTERM)

    def _end_with_others(self) -> None:
        if self.world_size == 1 or self._store_is_gone or self._is_ending or (note := self.board.get("failure")) is None:
            return
        failure = json.loads(note)
        is_over = self._closed.wait(0 if failure.get("stuck") else GRACE_SECONDS)
        if failure["rank"] != self.rank and not is_over and not self._is_ending:
            self._end(f"rank {failure['rank']} failed, so this one ends: {failure['what']}", with_stack="stuck" in failure)

    def _look_for_movement(self) -> None:
        since = _activity.since
        if time.monotonic() - since < self.limit_seconds or since == self._reported:
            return
        self._reported = since
        what = f"nothing has moved for {self.limit_seconds / 60:g} minutes (train.timeout_minutes)"
        if self.world_size == 1:
            logger.error("%s: %s\n%s", what, _activity.text(), _activity.stack())
            return
        self._tell({"rank": self.rank, "what": f"{what}: {_activity.text()}", "stuck": True})
        self._end(what, with_stack=True)

    def _end(self, why: str, *, with_stack: bool) -> None:
        """End the whole process; the thread that trains cannot be reached."""
        stack = f"\n{_activity.stack()}" if with_stack else ""
        logger.critical("%s\nrank %d: %s%s", why, self.rank, _activity.text(), stack)
        time.sleep(3 * POLL_SECONDS)  # for all ranks to speak before a launcher ends them
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(EXIT_CODE)

    def _write_heartbeat(self) -> None:
        if self._heartbeat is None:
            return
        content = {"time": time.time(), "rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(),
                   "step": _activity.step, "phase": _activity.phase, "seconds_in_phase": time.monotonic() - _activity.since}
        temporary = self._heartbeat.with_suffix(".tmp")
        try:
            self._heartbeat.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
            temporary.replace(self._heartbeat)
        except OSError:
            pass  # a full disk is the business of those whose files matter


_activity = Activity()
_watch: Watch | None = None


def doing(phase: str, step: int | None = None) -> None:
    """Note what the thread that trains does now, as a sign that something moves; cheap enough for every batch.

    Other threads call it without effect.
    """
    if threading.get_ident() != _activity.thread:
        return
    _activity.phase, _activity.since = phase, time.monotonic()
    if step is not None:
        _activity.step = step


@contextmanager
def watching(rank: int, world_size: int, limit_seconds: float = 1800) -> Iterator[Watch]:
    """Watch this process for as long as this lasts; within another `watching`, that one goes on."""
    global _activity, _watch
    if _watch is not None:
        yield _watch
        return
    _activity = Activity()
    _watch = Watch(Board(), rank, world_size, limit_seconds)
    _watch.start()
    try:
        yield _watch
    finally:
        _watch.close()
        _watch = None


def watch() -> Watch | None:
    """Return the watch of this process, None outside of `watching`."""
    return _watch


def restart_count() -> int:
    """Return how often torchrun has started the processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_lost_contact(error: BaseException) -> bool:
    """Tell whether an error is of the connection to other ranks; Gloo has no class of its own for it."""
    return isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and "gloo" in str(error)


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
