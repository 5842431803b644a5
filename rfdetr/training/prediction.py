"""Find objects on the pictures of a folder, into the files of ``tools/predict.py``."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from rfdetr.detector import Detector
from rfdetr.errors import InputError
from rfdetr.files import replacing_file
from rfdetr.prediction import drawn_paths, save_drawing, to_pixels

logger = logging.getLogger(__name__)

RESULTS, PICTURES = "predictions.json", "images"  # in the output folder


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
    detector: Detector, named: Sequence[tuple[str, Path]], output: Path, *, threshold: float, batch_size: int, draw: bool
) -> None:
    """Predict batch by batch, so that any number of pictures fits into memory, and write as they come."""
    ids = dict(zip((name for name, _ in named), image_ids([name for name, _ in named])))
    drawn = dict(zip(ids, drawn_paths(output / PICTURES, list(ids))))
    counts, num_read = Counter(), 0
    with _json_list(output / RESULTS) as write, tqdm(total=len(named), unit="image", disable=None) as bar:
        for start in range(0, len(named), batch_size):
            batch = named[start : start + batch_size]
            pictures = dict(_read_all(batch, detector))
            for name, found in zip(pictures, detector.predict(pictures.values(), threshold, batch_size=batch_size)):
                rows = found.to_coco(ids[name], name)
                counts.update(row["category_name"] for row in rows)
                write(rows)
                if draw:
                    save_drawing(drawn[name], found.draw)
            num_read += len(pictures)
            bar.update(len(batch))
        if num_read == 0:
            raise InputError(f"--input: none of the {len(named)} images could be read")
    if num_read < len(named):
        logger.warning("%d of %d images could not be read and were left out, see above", len(named) - num_read, len(named))
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common(10)) or "nothing"
    logger.info("found on %d images: %s%s; everything is in %s", num_read, found, ", ..." if len(counts) > 10 else "", output)


def _read_all(batch: Sequence[tuple[str, Path]], detector: Detector) -> Iterator[tuple[str, Tensor]]:
    """Read the pictures that can be read."""
    for name, path in batch:
        try:
            yield name, to_pixels(path, **detector.reading)
        except InputError as error:
            logger.warning("left out: %s", error)


@contextmanager
def _json_list(path: Path) -> Iterator[Callable[[Sequence[dict]], None]]:
    """Offer a function that appends rows to a JSON list; the file has its name only when it is whole."""
    separator = "\n"

    def write(rows: Sequence[dict]) -> None:
        nonlocal separator
        for row in rows:
            file.write(separator + json.dumps(row, ensure_ascii=False))
            separator = ",\n"

    with replacing_file(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        # names that are no UTF-8 have half characters, of which that error handler makes what JSON has for them
        file.write("[")
        yield write
        file.write("\n]\n")
