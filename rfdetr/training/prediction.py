"""Find objects on pictures or the frames of a video, into the files of ``tools/predict.py``."""

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rfdetr.detector import Detector
from rfdetr.errors import InputError
from rfdetr.prediction import to_pixels
from rfdetr.training.prediction_files import PICTURES, Shot, open_files
from rfdetr.video import Video

logger = logging.getLogger(__name__)


def image_ids(names: Sequence[str]) -> list[int]:
    """Return the numbers that the names are, as in COCO's files, or 1, 2, … where they are no numbers of their own."""
    stems = [Path(name).stem for name in names]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return numbers if len(set(numbers)) == len(names) else list(range(1, len(names) + 1))


def check_output(folder: Path, paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to write over anything that was not meant."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"--output: {folder} is not empty; choose another folder, or write into it by --overwrite")
    drawn = Path(os.path.realpath(folder / PICTURES))
    if any(drawn in Path(os.path.realpath(path)).parents for path in paths):
        raise InputError(f"--output: the pictures in {folder / PICTURES} are among the --input; choose a folder elsewhere")


def predict_into(
    detector: Detector, source: Video | Sequence[tuple[str, Path]], output: Path, *, batch_size: int, draw: bool,
    save: Sequence[str], **options: Any,
) -> bool:
    """Predict batch by batch, so that any number of pictures fits into memory, and write as they come.

    Args:
        draw: also pictures, or a video, of what was found.
        save: more files to write: "crops", "yolo", "csv".
        options: of `Detector.predict`.

    Returns:
        whether it came to the end: an interruption (Ctrl-C, SIGTERM) ends it after the current batch, with whole files.
    """
    is_video = isinstance(source, Video)
    shots = _frames(source) if is_video else _pictures(source, detector)
    batch_size = 1 if is_video and source.is_live else batch_size  # a batch would be waited for
    counts, num_read, unit = Counter(), 0, "frame" if is_video else "image"
    total, started = source.length if is_video else len(source), time.perf_counter()
    with ExitStack() as stack:
        write = stack.enter_context(open_files(output, detector, source, draw=draw, save=save))
        bar = stack.enter_context(tqdm(total=total, unit=unit, disable=None))
        is_stopped = stack.enter_context(stopping())
        while not is_stopped() and (batch := list(islice(shots, batch_size))):
            read = [shot for shot in batch if shot.pixels is not None]
            for shot, found in zip(read, detector.predict([shot.pixels for shot in read], batch_size=batch_size, **options)):
                counts.update(found.names.tolist())
                write(shot, found)
            num_read += len(read)
            bar.update(len(batch))
        if num_read == 0 and not is_stopped():
            raise InputError(f"--input: none of the {total} images could be read")
        was_stopped = is_stopped()
    if not is_video and not was_stopped and num_read < total:
        logger.warning("%d of %d images could not be read and were left out, see above", total - num_read, total)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common(10)) or (
        "nothing (is --threshold too high? a run's report.html and results.json have the one of its best F1)")
    logger.info("found on %d %ss: %s%s; %.1f %ss a second; everything is in %s", num_read, unit, found,
                ", ..." if len(counts) > 10 else "", num_read / (time.perf_counter() - started), unit, output)
    return not was_stopped


def _pictures(named: Sequence[tuple[str, Path]], detector: Detector) -> Iterator[Shot]:
    """Read pictures; one that cannot be read has no pixels."""
    ids = image_ids([name for name, _ in named])
    for (name, path), image_id in zip(named, ids):
        try:
            pixels = to_pixels(path, **detector.reading)
        except InputError as error:
            logger.warning("left out: %s", error)
            pixels = None
        yield Shot(name, image_id, pixels)


def _frames(video: Video) -> Iterator[Shot]:
    for frame in video:
        yield Shot(f"{frame.number:06d}", frame.number, frame.pixels, frame.time)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM only be asked for; a second one ends everything as usual."""
    asked = threading.Event()
    before = {}

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before.update({number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
