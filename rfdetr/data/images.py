"""Image files into RGB pixels, and RGB pixels into what the model takes.

Orientation: cameras store a picture as the sensor sees it and say in EXIF how to turn it. It is turned, as every viewer does, in
training, evaluation and prediction alike, and boxes are in the coordinates of the turned picture. Only where the annotated size
is that of the stored picture and not of the turned one were its boxes made without turning; then it is left as it is stored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rfdetr.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)  # what Pillow raises for bad files
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap the sides

_MEAN = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
_STD = torch.tensor(IMAGENET_STD).view(3, 1, 1)


class ImageError(InputError):
    """A picture that cannot be read or must not be used, which `data.on_bad_image` may skip."""


def read_image(
    path: Path,
    *,
    annotated_size: tuple[int, int] | None = None,
    min_size: tuple[int, int] | None = None,
    file: Path | BinaryIO | None = None,
    exif: str = "apply",
) -> Tensor:
    """Decode an image file to RGB, (3, h, w) uint8 (a view of pixel-interleaved memory).

    Args:
        annotated_size: (h, w) that the annotations state; a picture of another size is refused.
        min_size: a JPEG much larger than this (h, w) is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, but never
            smaller than it.
        file: where the bytes come from, if that is not the path (which messages name).
        exif: "apply" the orientation, or "refuse" a picture that has one.

    Raises:
        ImageError: the file is missing, does not decode, has another size, or an orientation that is refused.
    """
    with _opened(path, file) as image:
        orientation = _orientation(image)
        if exif == "refuse" and orientation != 1:
            raise ImageError(f"{path}: its EXIF data says that it has to be turned (orientation {orientation}), which data.exif "
                             "refuses; store it upright and check its boxes, or choose apply")
        if image.format == "TIFF":
            image.load()  # Pillow turns these itself
            orientation = _orientation(image)
        turned = _is_turned(image, orientation, annotated_size, path)
        if min_size is not None:
            image.draft(None, min_size if turned and orientation in SIDEWAYS else min_size[::-1])  # w, h; only JPEG follows it
        return _to_tensor(ImageOps.exif_transpose(image) if turned else image)


def read_size(path: Path) -> tuple[int, int]:
    """Return the (h, w) of a picture as viewers show it, from the beginning of its file.

    Raises:
        ImageError: the file is missing, or no image.
    """
    with _opened(path) as image:
        if image.format == "TIFF" and _orientation(image) != 1:
            image.load()  # Pillow turns these itself, some versions not before
        sideways = _orientation(image, decode=False) in SIDEWAYS
        return (image.width, image.height) if sideways else (image.height, image.width)


@contextmanager
def _opened(path: Path, file: Path | BinaryIO | None = None) -> Iterator[Image.Image]:
    """Open a picture and say in plain words what is wrong with it."""
    try:
        with Image.open(file or path) as image:
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such image file; put it there, or take it out of the annotations") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: this is not an image that can be read; replace the file, or take it out of the annotations"
                         ) from None
    except UNREADABLE as error:
        raise ImageError(f"{path}: the image cannot be decoded ({error}); replace the file, or take it out of the annotations"
                         ) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to 8-bit RGB; transparency is ignored, 16-bit grey is scaled down."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow itself would cut values at 255
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating point numbers without a known range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def preprocess(image: Image.Image | np.ndarray | Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    """Make the network's input of a picture; evaluation, prediction and export checks all use this.

    Args:
        image: PIL image, or RGB uint8 as array (h, w, 3) or tensor (3, h, w).
        size: (H, W) of the input; the picture's shape is not kept.
        antialias: False, and resizing in float32 instead of uint8, is only for repeating results of the published `predict`.

    Returns:
        (3, H, W) float32, normalised with ImageNet's mean and standard deviation.
    """
    pixels = _to_tensor(image) if isinstance(image, Image.Image) else torch.as_tensor(image)
    if isinstance(image, np.ndarray) and image.ndim == 3:
        pixels = pixels.permute(2, 0, 1)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise InputError(f"preprocess: expected RGB uint8 pixels, got {pixels.dtype} of shape {tuple(pixels.shape)}")
    if antialias:
        return normalize(to_float(resize(pixels, size)))
    return normalize(F.resize(to_float(pixels), list(size), antialias=False))


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (3, h, w) uint8 to (3, H, W), bilinear with antialiasing."""
    # on uint8 in channels-last memory this is three times as fast as Pillow, and within one grey level of it
    return F.resize(pixels, list(size), antialias=True).contiguous()


def to_float(pixels: Tensor) -> Tensor:
    """Turn uint8 0..255 into a new float32 tensor 0..1."""
    return pixels.contiguous().float().div_(255)


def normalize(pixels: Tensor) -> Tensor:
    """Subtract ImageNet's mean from (3, h, w) in 0..1 and divide by its standard deviation, in place."""
    return pixels.sub_(_MEAN).div_(_STD)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


def _orientation(image: Image.Image, *, decode: bool = True) -> int:
    """Return EXIF's orientation, 1 (upright) to 8."""
    if not decode and image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode all of it to see whether EXIF data comes last
    orientation = image.getexif().get(0x0112, 1)
    return orientation if orientation in range(1, 9) else 1


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
