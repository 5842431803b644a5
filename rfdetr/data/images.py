"""Image files into RGB pixels, and RGB pixels into what the model takes.

Orientation: cameras store a picture as the sensor sees it and say in EXIF how to turn it. It is turned, as every viewer does, in
training, evaluation and prediction alike, and boxes are in the coordinates of the turned picture. Only where the annotated size
is that of the stored picture and not of the turned one were its boxes made without turning; then it is left as it is stored.
"""

import importlib.util
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rfdetr.data.annotations import RawSplit
from rfdetr.data.deep_pixels import DeepPixels, deep_pixels, is_deep
from rfdetr.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
# Pillow knows many more, some of which start other programs
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *(["AVIF"] if importlib.util.find_spec("PIL.AvifImagePlugin") else []))
MAX_PIXELS = 178_956_970  # where Pillow too refuses them
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap the sides
ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}
REPLACE = "replace the file, or take it out of the annotations"
FIRST_BYTES = 16  # of what is not a picture, shown in the message


logger = logging.getLogger(__name__)


class ImageError(InputError):
    """A picture that cannot be read or must not be used, which `data.on_bad_image` may skip."""


def read_image(
    path: Path,
    *,
    annotated_size: tuple[int, int] | None = None,
    min_size: tuple[int, int] | None = None,
    file: Path | BinaryIO | None = None,
    exif: str = "apply",
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Decode an image file to RGB, (3, h, w) uint8 (a view of pixel-interleaved memory).

    Args:
        annotated_size: (h, w) that the annotations state; a picture of another size is refused.
        min_size: a JPEG much larger than this (h, w) is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, but never
            smaller than it.
        file: where the bytes come from, if that is not the path (which messages name).
        exif: "apply" the orientation, or "refuse" a picture that has one.
        white_level: what is white in a picture of more than 8 bits a channel (deep_pixels.py); None takes what the file
            declares, or the smallest level that holds its values, with a warning.
        max_pixels: a picture of more is refused before it is decoded.

    Raises:
        ImageError: the file is missing, does not decode, has another size, or an orientation that is refused.
    """
    with open_picture(path, file, max_pixels=max_pixels) as image:
        stored = orientation = 1 if image.format == "PNG" else orientation_of(image)
        deep = deep_pixels(image) if is_deep(image) else None
        if image.format in ("PNG", "TIFF"):
            image.load()  # EXIF data may come last in PNG, and Pillow turns TIFF itself
            orientation = orientation_of(image)
        if exif == "refuse" and (stored, orientation) != (1, 1):
            raise ImageError(f"{path}: its EXIF data says that it has to be turned (orientation {max(stored, orientation)}), "
                             "which data.exif refuses; store it upright and check its boxes, or choose apply")
        turned = _is_turned(image, orientation, annotated_size, path)
        if min_size is not None:
            image.draft(None, min_size if turned and orientation in SIDEWAYS else min_size[::-1])  # w, h; only JPEG follows it
        shown = to_rgb(image) if deep is None else deep.to_image(white_level or _own_white_level(deep, path))
        return _to_tensor(shown.transpose(TURNS[orientation]) if turned else shown)


def read_size(path: Path) -> tuple[int, int]:
    """Return the (h, w) of a picture as viewers show it, from the beginning of its file.

    Raises:
        ImageError: the file is missing, or no image.
    """
    with open_picture(path, max_pixels=None) as image:
        if image.format == "TIFF" and orientation_of(image) != 1:
            image.load()  # Pillow turns these itself, some versions not before
        sideways = orientation_of(image) in SIDEWAYS
        return (image.width, image.height) if sideways else (image.height, image.width)


def locate(raw: RawSplit, index: int) -> tuple[Path, BinaryIO | None]:
    """Return where a picture of a split is, and the open file if that is not a file of its own."""
    name = raw.file_names[index]
    return Path(raw.image_root) / name, None if raw.open_image is None else raw.open_image(name)


@contextmanager
def open_picture(
    path: Path, file: Path | BinaryIO | None = None, *, max_pixels: int | None = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open a picture; whatever Pillow does not like about it, here or inside the `with`, is an ImageError in plain words.

    Args:
        file: where the bytes come from, if that is not the path.
        max_pixels: refuse a picture of more; None leaves the choice to who decodes it.
    """
    source = path if file is None else file
    try:
        if isinstance(source, (str, Path)):
            check_regular(Path(source), path)
        allow_pixels(max_pixels or 0)
        with Image.open(source, formats=FORMATS) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width * image.height} pixels")
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such image file; put it there, or take it out of the annotations") from None
    except Image.DecompressionBombError as error:
        number = re.search(r"\d+|$", str(error))[0] or "too many"  # Pillow's own message has it first too
        raise ImageError(f"{path}: the image has {number} pixels, more than data.max_pixels {max_pixels or MAX_PIXELS}; resize "
                         "it or cut it into tiles, or allow more") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: this is not an image that can be read ({', '.join(FORMATS)}, in forms that Pillow knows); its "
                         f"first bytes are {_first_bytes(source)}; {REPLACE}") from None
    except Exception as error:  # every decoder has errors of its own: struct.error, RuntimeError, MemoryError ...
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: the image cannot be decoded ({reason}); {REPLACE}") from None


def check_regular(file: Path, name: object = None) -> None:
    """Refuse what is no plain file with content: reading from a pipe or a device may wait for ever.

    Raises:
        OSError: there is nothing, or it cannot be reached.
        ImageError: it is something else; `name` is what the message calls it.
    """
    status = os.stat(file)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return
    kind = ("an empty file" if stat.S_ISREG(status.st_mode) else "a folder" if stat.S_ISDIR(status.st_mode)
            else "a pipe, a socket or a device")
    raise ImageError(f"{name or file}: this is {kind}, not an image; {REPLACE}")


def allow_pixels(max_pixels: int) -> None:
    """Raise Pillow's own limit, which holds for the whole process, to ours; it is never lowered."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)


def to_rgb(image: Image.Image, white_level: int | None = None) -> Image.Image:
    """Convert a picture of any mode to 8-bit RGB; transparency is ignored."""
    if is_deep(image):
        deep = deep_pixels(image)
        return deep.to_image(white_level or deep.white_level)
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBa", "La") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def preprocess(image: Image.Image | np.ndarray | Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    """Make the network's input of a picture; evaluation, prediction and export checks all use this.

    Args:
        image: PIL image, or RGB uint8 as array (h, w, 3) or tensor (3, h, w).
        size: (H, W) to resize to, see `fit_size`.
        antialias: False, and resizing in float32 instead of uint8, is only for repeating results of the published `predict`.

    Returns:
        (3, H, W) float32, normalised with ImageNet's mean and standard deviation.
    """
    if antialias:
        return normalize(to_float(to_pixels(image, size)))
    return normalize(F.resize(to_float(to_pixels(image)), list(size), antialias=False))


def to_pixels(image: Image.Image | np.ndarray | Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return a picture as `preprocess` takes it as (3, h, w) uint8, or resized to (H, W)."""
    pixels = _to_tensor(image) if isinstance(image, Image.Image) else torch.as_tensor(image)
    if isinstance(image, np.ndarray) and image.ndim == 3:
        pixels = pixels.permute(2, 0, 1)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise InputError(f"preprocess: expected RGB uint8 pixels, got {pixels.dtype} of shape {tuple(pixels.shape)}")
    return pixels if size is None else resize(pixels, size)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (3, h, w) uint8 to (3, H, W), bilinear with antialiasing."""
    # on uint8 in channels-last memory this is three times as fast as Pillow, and within one grey level of it
    return F.resize(pixels, list(size), antialias=True).contiguous()


def fit_size(height: float, width: float, canvas: tuple[int, int], cell: int | None) -> tuple[int, int]:
    """Return the (h, w) that a picture is resized to for an input of (H, W).

    Args:
        cell: the picture keeps its shape, to a whole number of cells of so many pixels a side ("letterbox"); None: it fills the
            input ("stretch").
    """
    if cell is None:
        return canvas
    scale = min(canvas[0] / height, canvas[1] / width)
    rows, columns = (max(1, round(side * scale / cell)) * cell for side in (height, width))
    return min(rows, canvas[0]), min(columns, canvas[1])


def to_float(pixels: Tensor) -> Tensor:
    """Turn uint8 0..255 into a new float32 tensor 0..1."""
    return pixels.contiguous().float().div_(255)


def to_bytes(pixels: Tensor) -> Tensor:
    """Round 0..1 to uint8 0..255."""
    return (pixels * 255).round_().clamp_(0, 255).byte()


def normalize(pixels: Tensor) -> Tensor:
    """Subtract ImageNet's mean from (..., 3, h, w) in 0..1 and divide by its standard deviation, in place."""
    mean, std = _mean_and_std(pixels.device)
    return pixels.sub_(mean).div_(std)


@lru_cache  # on a GPU the numbers would be waited for, batch by batch
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return tuple(torch.tensor(values).view(3, 1, 1).to(device) for values in (IMAGENET_MEAN, IMAGENET_STD))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


def orientation_of(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 (upright) to 8; what is damaged counts as upright, as viewers have it."""
    try:
        # PNG's own method would decode all of a picture that is not loaded, to see whether EXIF data comes last
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        orientation = exif.get(ORIENTATION, 1)
    except Exception:  # damaged in any way; the pixels may be sound
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def _own_white_level(deep: DeepPixels, path: Path) -> int:
    level = deep.white_level
    if deep.declared is None:
        _warn_of_guess(str(path), deep.describe(), level)
    return level


@lru_cache(maxsize=10_000)  # once for each picture
def _warn_of_guess(path: str, described: str, level: int) -> None:
    logger.warning("%s: more than 8 bits a channel, %s; %d is taken for white, by this picture alone (choose by white_level)",
                   path, described, level, extra={"of_rank": True})


def _first_bytes(source: Path | BinaryIO) -> bytes:
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            return file.read(FIRST_BYTES)
    source.seek(0)
    return source.read(FIRST_BYTES)


def _is_turned(image: Image.Image, orientation: int, annotated_size: tuple[int, int] | None, path: Path) -> bool:
    """Tell whether the orientation has to be applied."""
    stored = image.height, image.width
    upright = stored[::-1] if orientation in SIDEWAYS else stored
    if annotated_size in (None, upright):
        return orientation != 1
    if annotated_size == stored:
        return False
    raise ImageError(f"{path}: the image is {upright[1]} x {upright[0]} pixels (w x h), but its annotations are for "
                     f"{annotated_size[1]} x {annotated_size[0]}; export the data set again, or correct width and height")
