"""Where scalars go: JSON lines, CSV, TensorBoard. A writer is anything with `write` and `close`."""

import csv
import errno
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from engine.files import replacing

Lines = Sequence[tuple[dict[str, float], int, int]]


class Writer(Protocol):
    """Take scalars under their tag names (``train/loss``, ``val/mAP_50_95``) at a step of an epoch.

    ``rewind(step, lines)`` comes once, before the first write: what an earlier run wrote after `step` did not happen, since this
    one goes on from there (0: a fresh run). `lines`, the arguments of `write`, are all that was written at `step` itself; None
    leaves it as it is. One that takes pictures has ``write_image(name, picture, step, epoch)`` too, of a `Picture`.
    """

    def rewind(self, step: int, lines: Lines | None = None) -> None: ...

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None: ...

    def close(self) -> None: ...


class Picture(NamedTuple):
    """A picture (H, W, 3) uint8, and the file that it is in where it is in one."""

    pixels: np.ndarray
    path: Path | None = None


def as_picture(image: Any) -> Picture:
    """Take a picture in any of the forms of `Trainer.log_image`.

    Raises:
        ValueError: it is none of them.
    """
    path = Path(image) if isinstance(image, (str, os.PathLike)) else None
    given = f"{type(image).__name__} {tuple(getattr(image, 'shape', ()))} {getattr(image, 'dtype', '')}".rstrip()
    if path is not None:
        with Image.open(path) as file:
            image = file.convert("RGB")
    elif isinstance(image, Image.Image):
        image = image.convert("RGB")
    elif isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float().clamp(0, 1) * 255).round().byte() if image.is_floating_point() else image
        image = image[None] if image.ndim == 2 else image
        image = image.movedim(0, -1).expand(*image.shape[1:], 3) if image.ndim == 3 and len(image) in (1, 3) else image
    pixels = np.asarray(image)
    pixels = np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"{given} is no picture; give (3, H, W) or (H, W), uint8 or float 0 to 1, as a tensor, (H, W, 3) or "
                         "(H, W) uint8 as an array, PIL's, or the path of a file")
    return Picture(pixels, path)


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


class PictureWriter:
    """Pictures that hooks have logged and that are in no file yet, as ``<name>-<step>.png`` in `folder`."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None:
        pass

    def write_image(self, name: str, picture: Picture, step: int, epoch: int) -> None:
        if picture.path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            plain = re.sub(r"[^\w.-]", "_", name)
            Image.fromarray(picture.pixels).save(self.folder / f"{plain}-{step}.png", compress_level=1)

    def close(self) -> None:
        pass


class TensorBoardWriter:
    """TensorBoard event files in `folder`.

    Args:
        settings: what the run was made with, shown as its hyper-parameters, beside the metrics of its last evaluation.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every run wants it

        self.make_writer = partial(SummaryWriter, str(folder))
        self.writer: Any = None
        self.settings = settings  # until they are written

    def rewind(self, step: int, lines: Lines | None = None) -> None:
        self.writer = self.make_writer(purge_step=step + 1 if lines is None else step)
        for line in lines or ():
            self.write(*line)

    def write(self, scalars: dict[str, float], step: int, epoch: int) -> None:
        with self._at_work() as writer:
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, step)
            writer.add_scalar("epoch", epoch, step)
            followed = [tag for tag in scalars if re.fullmatch(r"val/(ema_)?(segm_)?(mAP_50_95|mAP_50|F1|loss)", tag)]
            if followed and self.settings is not None:
                self._write_settings(self.settings, followed)

    def write_image(self, name: str, picture: Picture, step: int, epoch: int) -> None:
        with self._at_work() as writer:
            writer.add_image(name, picture.pixels, step, dataformats="HWC")

    def close(self) -> None:
        if self.writer:
            self.writer.close()

    @contextmanager
    def _at_work(self) -> Iterator[Any]:
        self.writer = self.writer or self.make_writer()
        try:
            yield self.writer
        except OSError:
            self.writer = None  # its thread has ended; the next line gets a file of its own
            raise

    def _write_settings(self, settings: Mapping[str, Any], tags: Sequence[str]) -> None:
        """Write the settings once; the metrics beside them are the scalars of these tags, the last value of each.

        Not by `add_hparams`, which would make a run of its own in a folder of its own.
        """
        from torch.utils.tensorboard.summary import hparams

        values = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in flat(settings)}
        for summary in hparams(values, dict.fromkeys(tags, 0.0)):
            self.writer.file_writer.add_summary(summary)
        self.settings = None


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested settings under their keys with dots between them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
