"""Detections on one batch of pictures, from images of any kind; and where drawn pictures are saved."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rfdetr.data.deep_pixels import DeepPixels
from rfdetr.data.images import (
    MAX_PIXELS,
    TURNS,
    fit_size,
    orientation_of,
    preprocess,
    read_image,
    to_rgb,
)
from rfdetr.errors import InputError
from rfdetr.nested_tensor import pad_images

Picture = str | os.PathLike | Image.Image | np.ndarray | Tensor

SAVED_AS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF",
            ".tiff": "TIFF"}  # extensions that drawn pictures keep
QUALITY = 90  # of JPEG and WebP
FLOAT_SLACK = 1e-3  # that resizing and the like may leave 0 to 1 by

logger = logging.getLogger(__name__)

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def predict(
    model: nn.Module, postprocess: Callable, images: Sequence[Picture], *, size: tuple[int, int], threshold: float = 0.5,
    precision: str = "fp32", antialias: bool = True, white_level: int | None = None, max_pixels: int = MAX_PIXELS,
    letterbox: int | None = None,
) -> list[dict[str, Tensor]]:
    """Detect objects on one batch of pictures; where the model is, the work is done.

    Args:
        images: see `to_pixels`; of any sizes.
        size: (H, W) of the model's input, as in `ModelConfig.input_size`.
        threshold: only detections that score higher are returned.
        precision: "fp32", "bf16" or "fp16", of the forward pass.
        antialias: see `preprocess`.
        white_level, max_pixels: see `read_image`; the white level is that which the model was trained with.
        letterbox: pictures keep their shape, as in `fit_size`; None: they fill the input.

    Returns:
        What `PostProcess` returns for each picture, on the CPU: scores (k,), labels (k,), boxes (k, 4) xyxy in pixels of the
        picture, and for segmentation models masks (k, 1, h, w) bool; best first.
    """
    check_precision(precision)
    device = next(model.parameters()).device
    pictures = [to_pixels(image, white_level=white_level, max_pixels=max_pixels) for image in images]
    if not pictures:
        return []
    shown = [fit_size(*picture.shape[1:], size, letterbox) for picture in pictures]
    samples = pad_images([preprocess(picture, fitted, antialias=antialias) for picture, fitted in zip(pictures, shown)],
                         min_size=size).to(device)
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.autocast(device.type, dtype=_AUTOCAST[precision], enabled=precision != "fp32"):
            outputs = model(samples)
    finally:
        if was_training:  # otherwise nothing is written, so that threads may share the model
            model.train()
    results = []
    for index, picture in enumerate(pictures):  # one at a time: masks are as large as the pictures
        one = {name: value[index : index + 1] for name, value in outputs.items() if isinstance(value, Tensor)}
        result = postprocess(one, torch.tensor([picture.shape[1:]], device=device), threshold)[0]
        results.append({name: value.cpu() for name, value in result.items()})
    return results


def check_precision(precision: str) -> None:
    if precision not in _AUTOCAST:
        raise InputError(f"predict: precision {precision!r} is not one of {', '.join(_AUTOCAST)}")


def to_pixels(
    image: Picture, *, white_level: int | None = None, max_pixels: int = MAX_PIXELS, exif: str = "apply"
) -> Tensor:
    """Return a picture as RGB (3, h, w) uint8: turned as its EXIF data says, grey as three equal channels, without transparency.

    Args:
        image: a path; a PIL image; an array (h, w) or (h, w, c), or a tensor (h, w) or (c, h, w), with 1, 3 (RGB) or 4 (RGBA)
            channels: uint8, uint16 (white as in `read_image`) or floats from 0 to 1.
        white_level, max_pixels, exif: see `read_image`.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image), white_level=white_level, max_pixels=max_pixels, exif=exif)
    try:
        if isinstance(image, Image.Image):
            values = _upright(image, white_level, exif)
        elif isinstance(image, (np.ndarray, Tensor)):
            values = _eight_bits(_channels_last(image), white_level)
        else:
            raise ValueError("it must be a path, a PIL image, an array or a tensor")
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
        raise InputError(f"this {type(image).__name__} cannot be used as a picture: {error}") from error
    return torch.from_numpy(np.array(values)).permute(2, 0, 1)  # of channels-last memory, as files are read


def _upright(image: Image.Image, white_level: int | None, exif: str) -> Image.Image:
    shown = to_rgb(image, white_level)
    image.load()  # Pillow turns TIFF then, and knows PNG's EXIF data
    turn = TURNS.get(orientation_of(image))
    if turn is not None and exif == "refuse":
        raise ValueError("its EXIF data says that it has to be turned, which data.exif refused in training; store it upright")
    return shown if turn is None else shown.transpose(turn)


def _channels_last(image: np.ndarray | Tensor) -> np.ndarray:
    """Return RGB (h, w, 3) of any dtype."""
    values, shape = image, tuple(image.shape)
    if isinstance(values, Tensor):
        values = (values.float() if values.is_floating_point() else values).detach().cpu().numpy()
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[-1] not in (1, 3, 4) or not values.size:
        raise ValueError(f"its shape is {shape}; arrays are (h, w, channels), tensors (channels, h, w), with 1, 3 or 4 channels")
    return np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values[..., :3]


def _eight_bits(values: np.ndarray, white_level: int | None) -> np.ndarray | Image.Image:
    if values.dtype == np.uint16:
        deep = DeepPixels(values, capacity=65535)
        return deep.to_image(white_level or deep.white_level)
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= -FLOAT_SLACK and high <= 1 + FLOAT_SLACK):  # NaN is neither
            raise ValueError(f"its values go from {low:g} to {high:g}; floats must be 0 to 1, and not normalised")
        return (values.astype(np.float32).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ValueError(f"its values are {values.dtype}; they must be uint8, uint16, or floats from 0 to 1")
    return values


def drawn_paths(folder: Path, names: Sequence[str]) -> list[Path]:
    """Choose a file of its own below `folder` for the drawing of each picture, under the picture's name where that can be kept.

    A name whose extension is none of `SAVED_AS` gets .png behind it, and a number before that where another has the name.
    """
    kept = [_inside(name) for name in names]
    taken = {path for path in kept if path.suffix.lower() in SAVED_AS}
    paths, seen = [], set()
    for path in kept:
        chosen, number = path if path in taken else path.with_name(f"{path.name}.png"), 1
        while chosen in seen or (chosen in taken and chosen != path):
            number += 1
            chosen = path.with_name(f"{path.name}-{number}.png")
        seen.add(chosen)
        paths.append(folder / chosen)
    return paths


def save_drawing(path: Path, draw: Callable[[], Image.Image]) -> bool:
    """Write a drawn picture; what cannot be drawn or saved is logged and left out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw().save(path, format=SAVED_AS[path.suffix.lower()], quality=QUALITY)
    except Exception as error:  # encoders have errors and limits of their own; the results are worth more than one drawing
        logger.warning("%s: the picture cannot be drawn (%s: %s); its results are kept", path, type(error).__name__, error)
        return False
    return True


def _inside(name: str) -> Path:
    """Return a name as a path that stays in its folder."""
    path = PurePath(name)
    return Path(*[part for part in path.parts if part not in (path.anchor, "..")] or ["picture"])
