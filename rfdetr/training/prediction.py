"""Find objects on pictures with a checkpoint; from Python, and into the files of ``tools/predict.py``."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from engine.device import resolve_device, use_device
from engine.precision import resolve_precision
from rfdetr.build import build_model, build_postprocess
from rfdetr.data import LabelMap, read_image
from rfdetr.data.file_names import pictures_below
from rfdetr.data.images import IMAGE_SUFFIXES, MAX_PIXELS
from rfdetr.errors import InputError
from rfdetr.files import replacing_file
from rfdetr.prediction import Picture, coco_results, drawn_paths, save_drawing
from rfdetr.prediction import predict as predict_batch
from rfdetr.training.command_line import bad_input, shown_log
from rfdetr.values import whole_number
from rfdetr.weights import checkpoint_classes, load_weights, model_config_from_checkpoint, read_checkpoint

logger = logging.getLogger(__name__)

RESULTS, PICTURES = "predictions.json", "images"  # in the output folder


class Predictor:
    """A checkpoint that is ready to find objects.

    Args:
        checkpoint: a path, a published name, or what `read_checkpoint` returned.
        use_ema: the averaged weights, where a file holds both.
        max_pixels: pictures of more are refused; None takes what the checkpoint's run had.
    """

    def __init__(
        self, checkpoint: str | os.PathLike | dict[str, Any], *, use_ema: bool = False, device: str | torch.device = "auto",
        precision: str = "fp32", max_pixels: int | None = None,
    ) -> None:
        with bad_input(""):
            self.device = resolve_device(device)
            self.precision = resolve_precision(precision, self.device)
        use_device(self.device)
        content = checkpoint if isinstance(checkpoint, dict) else read_checkpoint(checkpoint)
        architecture = model_config_from_checkpoint(content)
        self.model = build_model(architecture)
        load_weights(self.model, content, ema=use_ema)
        self.model.to(self.device).eval()
        self.label_map: LabelMap = checkpoint_classes(content)
        self.input_size = architecture.input_size
        self.postprocess = build_postprocess(architecture)
        data = content["args"].get("data")
        settings = data if isinstance(data, dict) else {}
        self.letterbox = architecture.cell_size if settings.get("resize") == "letterbox" else None
        self.reading = {"white_level": _count(settings.get("white_level")),
                        "max_pixels": max_pixels or _count(settings.get("max_pixels")) or MAX_PIXELS}  # of `read_image`

    def __call__(self, images: Sequence[Picture], *, threshold: float = 0.5) -> list[dict[str, Tensor]]:
        """Detect on one batch of pictures; see `rfdetr.prediction.predict`."""
        return predict_batch(self.model, self.postprocess, images, size=self.input_size, threshold=threshold,
                             precision=self.precision, letterbox=self.letterbox, **self.reading)


def predict(
    checkpoint: str | os.PathLike | dict[str, Any],
    images: str | os.PathLike | Picture | Sequence[Picture],
    *,
    threshold: float = 0.5,
    batch_size: int = 4,
    use_ema: bool = False,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    max_pixels: int | None = None,
) -> list[dict[str, Any]]:
    """Find objects on pictures.

    Args:
        checkpoint: ours or a published one: a path, a published name, or what `read_checkpoint` returned.
        images: a picture, a folder of pictures, or a list of pictures: paths, PIL images, RGB uint8 arrays (h, w, 3) or tensors
            (3, h, w).
        threshold: keep what scores higher than this, 0 to 1.
        max_pixels: see `Predictor`.

    Returns:
        a dict a picture, best first: `scores` (k,), `labels` (k,), `boxes` (k, 4) xyxy in pixels, `names` (list of k) and, of
        segmentation models, `masks` (k, 1, h, w) bool; of files also `file_name`.
    """
    check_numbers(threshold, batch_size, max_pixels)
    pictures, names = _listed(images)
    predictor = Predictor(checkpoint, use_ema=use_ema, device=device, precision=precision, max_pixels=max_pixels)
    results = []
    with shown_log():
        for start in range(0, len(pictures), batch_size):
            for result in predictor(pictures[start : start + batch_size], threshold=threshold):
                found = _with_names(result, predictor.label_map)
                results.append(found if names is None else {**found, "file_name": names[len(results)]})
    return results


def _of_known_classes(result: dict[str, Tensor], label_map: LabelMap) -> dict[str, Tensor]:
    """Leave out the detections whose label stands for no category."""
    is_known = [label_map.category_of(label) is not None for label in result["labels"].tolist()]
    return {name: value[is_known] for name, value in result.items()}


def _with_names(result: dict[str, Tensor], label_map: LabelMap) -> dict[str, Any]:
    known, class_names = _of_known_classes(result, label_map), label_map.names
    return {**known, "names": [class_names[label] for label in known["labels"].tolist()]}


def check_numbers(threshold: float, batch_size: int, max_pixels: int | None) -> None:
    """Refuse what cannot be."""
    for name, value in (("batch_size", batch_size), ("max_pixels", max_pixels)):
        if value is not None and value < 1:
            raise InputError(f"--{name}: {value} is not possible; it must be 1 or more")
    if not 0 <= threshold <= 1:
        raise InputError(f"--threshold: {threshold} is not possible; scores are between 0 and 1")


def _count(value: Any) -> int | None:
    """Return a setting of a checkpoint, which may hold anything, if it is a number from 1 on."""
    number = whole_number(value)
    return number if number is not None and number > 0 else None


def _listed(images: Any) -> tuple[list[Picture], list[str] | None]:
    """Return a list of pictures, and their names where they are files."""
    if isinstance(images, (str, os.PathLike)):
        named = find_pictures(Path(images))
        return [path for _, path in named], [name for name, _ in named]
    pictures = list(images) if isinstance(images, (list, tuple)) else [images]
    are_files = all(isinstance(picture, (str, os.PathLike)) for picture in pictures)
    return ([Path(picture) for picture in pictures], [str(picture) for picture in pictures]) if are_files else (pictures, None)


def find_pictures(source: Path) -> list[tuple[str, Path]]:
    """Return names relative to `source` and paths, folders within folders included, frame 2 before frame 10."""
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        raise InputError(f"--input: {source}: there is no such file or folder")
    paths = [Path(entry) for entry in pictures_below(str(source))]
    if not paths:
        raise InputError(f"--input: {source}: no images in it ({', '.join(IMAGE_SUFFIXES)}); write out the frames of a video "
                         "first: ffmpeg -i video.mp4 frames/%06d.jpg")
    named = [(path.relative_to(source).as_posix(), path) for path in paths]
    return sorted(named, key=lambda pair: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", pair[0])])


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
    predictor: Predictor, named: Sequence[tuple[str, Path]], output: Path, *, threshold: float, batch_size: int, draw: bool
) -> None:
    """Predict batch by batch, so that any number of pictures fits into memory, and write as they come."""
    ids = dict(zip((name for name, _ in named), image_ids([name for name, _ in named])))
    drawn = dict(zip(ids, drawn_paths(output / PICTURES, list(ids))))
    counts, num_read = Counter(), 0
    with _json_list(output / RESULTS) as write, tqdm(total=len(named), unit="image", disable=None) as bar:
        for start in range(0, len(named), batch_size):
            batch = named[start : start + batch_size]
            pictures = dict(_read_all(batch, predictor.reading))
            results = predictor(list(pictures.values()), threshold=threshold)
            for (name, picture), result in zip(pictures.items(), results):
                rows = coco_results(result, predictor.label_map, image_id=ids[name], file_name=name)
                counts.update(row["category_name"] for row in rows)
                write(rows)
                if draw:
                    save_drawing(drawn[name], picture, result, predictor.label_map)
            num_read += len(pictures)
            bar.update(len(batch))
        if num_read == 0:
            raise InputError(f"--input: none of the {len(named)} images could be read")
    if num_read < len(named):
        logger.warning("%d of %d images could not be read and were left out, see above", len(named) - num_read, len(named))
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common(10)) or "nothing"
    logger.info("found on %d images: %s%s; everything is in %s", num_read, found, ", ..." if len(counts) > 10 else "", output)


def _read_all(batch: Sequence[tuple[str, Path]], reading: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Read the pictures that can be read."""
    for name, path in batch:
        try:
            yield name, read_image(path, **reading)
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
