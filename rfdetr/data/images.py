"""Image files into RGB pixels, and RGB pixels into what the model takes.

Orientation: cameras store a picture as the sensor sees it and say in EXIF how to turn it. With an annotated size, the picture
is used as stored if it has that size, and turned if only then it has it; the boxes are in the coordinates of that size. Without
one (prediction) it is turned, as every viewer does.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rfdetr.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)  # what Pillow raises for bad files

_MEAN = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
_STD = torch.tensor(IMAGENET_STD).view(3, 1, 1)


def read_image(
    path: Path,
    *,
    annotated_size: tuple[int, int] | None = None,
    min_size: tuple[int, int] | None = None,
    file: Path | BinaryIO | None = None,
) -> Tensor:
    """Decode an image file to RGB, (3, h, w) uint8 (a view of pixel-interleaved memory).

    Args:
        annotated_size: (h, w) that the annotations state; a picture of another size is refused.
        min_size: a JPEG much larger than this (h, w) is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, but never
            smaller than it.
        file: where the bytes come from, if that is not the path (which messages name).

    Raises:
        InputError: the file is missing, does not decode, or has another size.
    """
    try:
        with Image.open(file or path) as image:
            turned = _is_turned(image, annotated_size, path)
            if min_size is not None:
                image.draft(None, min_size if turned else min_size[::-1])  # takes w, h; only JPEG follows it
            return _to_tensor(ImageOps.exif_transpose(image) if turned else image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such image file; put it there, or take it out of the annotations") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: this is not an image that can be read; replace the file, or take it out of the annotations"
                         ) from None
    except UNREADABLE as error:
        raise InputError(f"{path}: the image cannot be decoded ({error}); replace the file, or take it out of the annotations"
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


def _is_turned(image: Image.Image, annotated_size: tuple[int, int] | None, path: Path) -> bool:
    """Tell whether EXIF's orientation has to be applied."""
    stored = image.height, image.width
    if annotated_size is None:
        return image.getexif().get(0x0112, 1) != 1
    if stored == annotated_size:
        return False
    if stored[::-1] == annotated_size and image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # those that swap the sides
        return True
    raise InputError(f"{path}: the image is {stored[1]} x {stored[0]} pixels (w x h), but its annotations are for "
                     f"{annotated_size[1]} x {annotated_size[0]}; export the data set again, or correct width and height")
