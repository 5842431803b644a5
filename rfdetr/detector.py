"""A trained detector in use: `load` a checkpoint, `predict` on pictures."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rfdetr.build import build_postprocess
from rfdetr.data.images import MAX_PIXELS
from rfdetr.data.label_map import LabelMap
from rfdetr.detections import Prediction
from rfdetr.errors import InputError
from rfdetr.export.exported import ExportedModel, has_provider
from rfdetr.prediction import Picture, check_precision, predict, to_pixels
from rfdetr.sources import find_pictures
from rfdetr.tiles import MIN_TILE, join, tile_places
from rfdetr.trained import make_model, read_trained
from rfdetr.values import whole_number
from rfdetr.video import Video, is_video

if TYPE_CHECKING:
    from rfdetr.config import ModelConfig


def load(
    path_or_name: str | os.PathLike | dict[str, Any], device: str | torch.device = "auto", *, precision: str = "fp32",
    use_ema: bool = False, max_pixels: int | None = None,
) -> Detector:
    """Make a detector of a checkpoint, ours, an official one or Lightning's, or of an ONNX file that `rfdetr export` wrote.

    Args:
        path_or_name: a file, a published name such as rf-detr-nano.pth, or what `rfdetr.trained.read_trained` returned.
        device: "auto" takes the accelerator where there is one; else "cpu", "cuda", "cuda:1", "mps". ONNX Runtime, which an ONNX
            file takes, knows "cpu", and "cuda" with its package onnxruntime-gpu.
        precision: "fp32", "bf16" or "fp16", of the forward pass.
        use_ema: the averaged weights, where a file holds both.
        max_pixels: files of more are refused; None takes what the checkpoint's run had.

    Raises:
        InputError: the file, or the device, cannot be used.
    """
    check_numbers(max_pixels=max_pixels)
    usable = _usable(device)  # before a large file is read
    content = path_or_name if isinstance(path_or_name, dict) else read_trained(path_or_name)
    model, architecture, label_map = make_model(content, ema=use_ema)
    if isinstance(model, ExportedModel):
        if precision != "fp32":
            raise InputError(f"precision: {precision!r} cannot be asked of an exported file, which has its own; export it again")
        if device == "auto" and not has_provider(usable.type):
            usable = torch.device("cpu")
    data = content["args"].get("data")
    settings = data if isinstance(data, Mapping) else {}  # a checkpoint may hold anything
    return Detector(
        model.to(usable), architecture, label_map, precision=precision,
        resize="letterbox" if settings.get("resize") == "letterbox" else "stretch",
        white_level=_count(settings.get("white_level")),
        max_pixels=max_pixels or _count(settings.get("max_pixels")) or MAX_PIXELS,
        exif="refuse" if settings.get("exif") == "refuse" else "apply",
    )


class Detector:
    """A model that finds objects on pictures, always in evaluation mode; threads may share it.

    `load` makes one of a file; for a model in memory the arguments say what a file would.

    Args:
        model: on the device where the work is to be done.
        architecture: the model's configuration.
        resize: "stretch" or "letterbox", as in `data.resize`.
        white_level, max_pixels, exif: of `rfdetr.data.read_image`.
    """

    def __init__(
        self, model: nn.Module, architecture: ModelConfig, label_map: LabelMap, *, precision: str = "fp32",
        resize: str = "stretch", white_level: int | None = None, max_pixels: int = MAX_PIXELS, exif: str = "apply",
    ) -> None:
        check_precision(precision)
        self.model = model.eval()
        self.label_map = label_map
        self.architecture = architecture
        self.resize = resize
        self.reading = {"white_level": white_level, "max_pixels": max_pixels, "exif": exif}
        self._found_on = functools.partial(
            predict, self.model, build_postprocess(architecture), size=architecture.input_size, precision=precision,
            letterbox=architecture.cell_size if resize == "letterbox" else None)

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the model's input."""
        return self.architecture.input_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, those that `predict` takes."""
        return list(self.label_map.category_names)

    def predict(
        self, images: Picture | Iterable[Picture], threshold: float = 0.5, classes: str | Sequence[str] | None = None,
        max_detections: int | None = None, tile: int | None = None, batch_size: int = 4,
    ) -> list[Prediction]:
        """Find objects on pictures.

        Args:
            images: a picture, several of them, or what `rfdetr.sources.find_pictures` takes: a folder (and those within it), a
                pattern, a list. A picture is a path, a PIL image, an array (h, w, 3) or a tensor (3, h, w), RGB;
                `rfdetr.prediction.to_pixels` says more. Or a video, as `stream` takes it, whose results all stay in memory.
            threshold: only what scores higher is returned, 0 to 1.
            classes: names of the classes to return; None: all.
            max_detections: the best of each picture, at most so many.
            tile: side in pixels of the overlapping parts that larger pictures are cut into (see `rfdetr.tiles`), for objects
                that would be too small in a picture resized to the input; None: pictures are taken whole.
            batch_size: pictures, or parts, at a time.

        Returns:
            a `Prediction` for each picture, in their order (files of a folder by name, frame 2 before frame 10).

        Raises:
            InputError: something cannot be a picture or an argument; it says what and why.
        """
        return list(self.stream(images, threshold, classes, max_detections, tile, batch_size))

    def stream(
        self, source: Picture | Iterable[Picture] | int, threshold: float = 0.5, classes: str | Sequence[str] | None = None,
        max_detections: int | None = None, tile: int | None = None, batch_size: int = 1,
    ) -> Iterator[Prediction]:
        """Give what `predict` returns one picture after the other, so that any number of them takes no more memory.

        Args:
            source: as `images` of `predict`; the file of a video, the number of a camera, the address of a stream
                ("rtsp://..."), through PyAV; or an endless iterable of pictures. The rest is as there.
        """
        check_numbers(threshold, batch_size=batch_size, max_detections=max_detections, tile=tile)
        return self._stream(_listed(source), threshold, self._labels(classes), max_detections, tile, batch_size)

    def _stream(
        self, named: Iterable[tuple[str | None, Picture]], threshold: float, labels: Tensor, max_detections: int | None,
        tile: int | None, batch_size: int,
    ) -> Iterator[Prediction]:
        self.model.eval()
        remaining = iter(named)
        while batch := list(islice(remaining, batch_size)):
            opened = [to_pixels(image, **self.reading) for _, image in batch]
            for (name, image), found in zip(batch, self._detect(opened, threshold, labels, tile, batch_size)):
                arrays = {key: value[:max_detections].numpy() for key, value in found.items()}
                masks = arrays.pop("masks", None)
                yield Prediction(**arrays, masks=None if masks is None else masks[:, 0], label_map=self.label_map,
                                 file_name=name, pixels=functools.partial(to_pixels, image, **self.reading))

    def warm_up(self, batch_size: int = 1, repeats: int = 10) -> float:
        """Do what is slow the first time, then return the images a second of `predict`, on blank ones of the input's size.

        Args:
            batch_size: pictures at a time; a batch of another size may be slow once more.
            repeats: batches that are timed, after three that are not.
        """
        check_numbers(batch_size=batch_size, repeats=repeats)
        pictures = [np.zeros((*self.input_size, 3), dtype=np.uint8)] * batch_size
        for count in (3, repeats):
            started = time.perf_counter()
            for _ in range(count):
                self.predict(pictures, batch_size=batch_size)
        return batch_size * repeats / (time.perf_counter() - started)

    def _detect(
        self, pictures: Sequence[Tensor], threshold: float, labels: Tensor, tile: int | None, batch_size: int
    ) -> Iterator[dict[str, Tensor]]:
        """Give for each picture what was found of these classes."""
        places = [tile_places(*picture.shape[1:], tile) for picture in pictures]
        parts = [picture[:, rows, columns] for picture, cuts in zip(pictures, places) for rows, columns in cuts]
        results = []
        for start in range(0, len(parts), batch_size):
            for result in self._found_on(parts[start : start + batch_size], threshold=threshold):
                kept = torch.isin(result["labels"], labels)
                results.append({name: value[kept] for name, value in result.items()})
        remaining = iter(results)
        for picture, cuts in zip(pictures, places):
            found = [next(remaining) for _ in cuts]
            yield found[0] if len(cuts) == 1 else join(found, cuts, picture.shape[1:], tile)

    def _labels(self, classes: str | Sequence[str] | None) -> Tensor:
        """Return the labels of classes; those that stand for none are never among them."""
        known = dict(zip(self.class_names, self.label_map.labels.values()))
        wanted = self.class_names if classes is None else [classes] if isinstance(classes, str) else list(classes)
        for name in wanted:
            if not isinstance(name, str) or name not in known:
                near = "".join(f"did you mean {match!r}? " for match in get_close_matches(str(name), known, n=1))
                shown = ", ".join([*list(known)[:20], *(["..."] if len(known) > 20 else [])])
                raise InputError(f"classes: {name!r} is no class of this detector; {near}it knows {len(known)}: {shown}")
        return torch.tensor([known[name] for name in wanted], dtype=torch.int64)


def check_numbers(threshold: float = 0.0, *, option: str = "", **counts: int | None) -> None:
    """Refuse what cannot be; `option` stands before the names in a message."""
    for name, value in counts.items():
        least = MIN_TILE if name == "tile" else 1
        if value is not None and (not isinstance(value, Integral) or value < least):
            raise InputError(f"{option}{name}: {value!r} is not possible; it must be a whole number from {least} on")
    if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise InputError(f"{option}threshold: {threshold!r} is not possible; scores are between 0 and 1")


def _listed(images: Picture | Iterable[Picture] | int) -> Iterable[tuple[str | None, Picture]]:
    """Return pictures with their names, None where they are no files; frames have their number behind the video's."""
    if is_video(images):
        return _frames(Video(images))
    if isinstance(images, (str, os.PathLike)):
        return find_pictures(images)
    is_batch = isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4
    is_one = isinstance(images, (np.ndarray, Tensor)) or not isinstance(images, Iterable)
    pictures = [images] if is_one and not is_batch else images
    return ((str(image) if isinstance(image, (str, os.PathLike)) else None, image) for image in pictures)


def _frames(video: Video) -> Iterator[tuple[str, np.ndarray]]:
    with video:
        for frame in video:
            yield f"{video.name}:{frame.number:06d}", frame.pixels


def _count(value: Any) -> int | None:
    """Return a setting of a checkpoint, which may hold anything, if it is a number from 1 on."""
    number = whole_number(value)
    return number if number is not None and number > 0 else None


def _usable(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:  # the first of a PyTorch without CUDA
        raise InputError(f"device: {device!r} cannot be used ({str(error).splitlines()[0]}); use auto, cpu, cuda, cuda:N or "
                         "mps") from error
