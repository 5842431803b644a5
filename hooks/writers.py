"""Where scalars go: console, JSON lines, CSV, TensorBoard. A writer is anything with `write` and `close`."""

import csv
import errno
import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from engine.files import replacing

logger = logging.getLogger(__name__)


Lines = Sequence[tuple[dict[str, float], int, int]]


class Writer(Protocol):
    """Take scalars under their tag names (``train/loss``, ``val/mAP_50_95``) at a step of an epoch.

    ``rewind(step, lines)`` comes once, before the first write: what an earlier run wrote after `step` did not happen, since this
    one goes on from there (0: a fresh run). `lines`, the arguments of `write`, are all that was written at `step` itself; None
    leaves it as it is.
    """

    def rewind(self, step: int, lines: Lines | None = None) -> None: ...

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None: ...

    def close(self) -> None: ...


_LESS = re.compile(r"(ema_)?(segm_)?(mAP_(75|small|medium|large)|mAR\w*|precision|recall|F1_threshold)")


class ConsoleWriter:
    """One readable log line a call; per-class values and per-layer losses are left to the files."""

    def rewind(self, step: int, lines: Lines | None = None) -> None:
        pass

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None:
        shown = {tag: value for tag, value in scalars.items() if not self._is_detail(tag)}
        text = "  ".join(f"{tag.removeprefix('train/')} {value:.4g}" for tag, value in shown.items())
        logger.info("epoch %d  step %d  %s", epoch, step, text)

    def close(self) -> None:
        pass

    @staticmethod
    def _is_detail(tag: str) -> bool:
        """Tell a value of one class (val/AP/cat) or layer (val/loss_ce_0, val/loss_ce_enc), or a lesser one of a further set."""
        last = tag.rsplit("_", 1)[-1]
        is_of_training = tag.startswith(("train/", "val/loss_", "val/ema_loss_"))
        is_of_set = not tag.startswith(("train/", "val/", "test/")) and _LESS.fullmatch(tag.partition("/")[2])
        return bool(tag.count("/") > 1 or is_of_set or (is_of_training and (last.isdigit() or last == "enc")))


class JsonlWriter:
    """One JSON object a line: ``step``, ``epoch`` and the scalars. A resumed run appends to the file that is there."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.file: BinaryIO | None = None  # opened by the first write: a run that does not get there leaves nothing behind

    def rewind(self, step: int, lines: Lines | None = None) -> None:
        if self.path.exists():
            self.close()
            found = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = _without_later(found, _step_of, step, lines)
            with replacing(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8", newline="")
        for line in lines or ():
            self.write(*line)

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None:
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "ab", buffering=0)
        # JSON has no NaN: a missing value is null there
        values = {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}
        line = (json.dumps({"step": step, "epoch": epoch, **values}) + "\n").encode()
        end = self.file.seek(0, os.SEEK_END)
        try:
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, "no room for a whole line")
        except OSError:
            self.file.truncate(end)
            raise

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


class CsvWriter:
    """A table with a row a step and a column a tag, for spreadsheets and pandas.

    Tags that appear later, as those of the first evaluation do, become further columns: the file is then written again. So it is
    where training losses and an evaluation belong to one step. What was not written is empty, NaN is ``nan``.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.columns: list[str] | None = None  # of the file; not looked at yet
        self.last_step = ""  # as it stands in the last row

    def rewind(self, step: int, lines: Lines | None = None) -> None:
        if self.path.exists():
            self._replace(_without_later(self._read(), lambda row: int(row["step"]), step, lines))
        for line in lines or ():
            self.write(*line)

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None:
        try:
            self._add(scalars, step, epoch)
        except OSError:
            self.columns = None  # of a row that may stand there by half
            raise

    def _add(self, scalars: dict[str, float], step: int, epoch: int) -> None:
        row = {"step": str(step), "epoch": str(epoch), **{tag: repr(float(value)) for tag, value in scalars.items()}}
        if self.columns is None:
            self._replace(self._read())
        if row["step"] != self.last_step and set(row) <= set(self.columns or ()):
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns or ()).writerow(row)
            self.last_step = row["step"]
        else:
            rows = self._read()
            same = rows.pop() if row["step"] == self.last_step else {}
            self._replace([*rows, {**same, **row}])

    def close(self) -> None:
        pass

    def _read(self) -> list[dict[str, str]]:
        """Return the rows; a last line that a killed process left half-written is not one."""
        if not self.path.exists():
            return []
        with open(self.path, encoding="utf-8", newline="") as file:
            whole, end, _ = file.read().rpartition("\n")
        return list(csv.DictReader(io.StringIO(whole + end, newline="")))

    def _replace(self, rows: list[dict[str, str]]) -> None:
        self.columns = list(dict.fromkeys(["step", "epoch", *(tag for row in rows for tag in row)]))
        self.last_step = rows[-1]["step"] if rows else ""
        with replacing(self.path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, self.columns)
            writer.writeheader()
            writer.writerows(rows)


class TensorBoardWriter:
    """TensorBoard event files in `folder`."""

    def __init__(self, folder: str | os.PathLike) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every run wants it

        self.make_writer = partial(SummaryWriter, str(folder))
        self.writer: Any = None

    def rewind(self, step: int, lines: Lines | None = None) -> None:
        self.writer = self.make_writer(purge_step=step + 1 if lines is None else step)
        for line in lines or ():
            self.write(*line)

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None:
        self.writer = self.writer or self.make_writer()
        try:
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, step)
            self.writer.add_scalar("epoch", epoch, step)
        except OSError:
            self.writer = None  # its thread has ended; the next line gets a file of its own
            raise

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _without_later(rows: list, step_of: Callable[[Any], float], step: int, lines: Lines | None) -> list:
    """Drop what `Writer.rewind` says, from the end: steps further up may have been counted otherwise, with other batches."""
    last = step if lines is None else step - 1
    while rows and (step == 0 or step_of(rows[-1]) > last):
        rows.pop()
    return rows


def _step_of(line: str) -> float:
    """Return the step of a line; one that a killed process left half-written counts as late."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
