"""Pictures with more than 8 bits a channel: what they hold, and the one rule that makes 8 bits of it.

Such files seldom use all of the range that they could store: a camera of 12 bits writes 0 to 4095 into 16. Black is 0, and white
is one number for a whole data set, its white level (white_level.py); everything above is white too. A scale of its own for each
picture would make the same object bright in one and dark in the next.
"""

import io
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image

WHITE_LEVELS = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
UNIT = 1  # white of floating point pictures from 0 to 1
TOLERANCE = 0.01  # of the white level; rounding and noise of floating point pictures
HEADER = 1 << 16  # bytes; PNG's sBIT lies before the pixels
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE = 258, 262, 281  # TIFF's tags
WHITE_IS_ZERO = 0  # of PHOTOMETRIC; Pillow heeds it up to 8 bits


class DeepPixels(NamedTuple):
    """The pixels of one picture, as numbers."""

    values: np.ndarray  # (h, w), or (h, w, 3) RGB, or (h, w, 4) CMYK
    declared: int | None = None  # the largest value that the file itself says it may hold, if it is less than it could store
    capacity: int | None = None  # the largest value that it could store
    is_inverted: bool = False  # 0 is white

    @property
    def white_level(self) -> int:
        """The smallest level that holds the values, or those that the file declares.

        Raises:
            ValueError: no level does.
        """
        high = float(self.values.max())
        if self.declared is not None and high <= self.declared:
            high = self.declared
        is_float = self.values.dtype.kind == "f"
        for level in (UNIT, *WHITE_LEVELS) if is_float else WHITE_LEVELS:
            if high <= level * (1 + TOLERANCE * is_float):
                return level
        raise ValueError(f"its values go up to {high:g}, and nothing says which of them is white; set data.white_level")

    def to_image(self, white_level: int) -> Image.Image:
        """Make 8 bits of each value.

        Raises:
            ValueError: some are no shade between black and white.
        """
        low = float(self.values.min())
        if low < -TOLERANCE * white_level:
            raise ValueError(f"its values go down to {low:g}, but 0 is black; add to all of them, and save the picture again")
        shades = self.values.astype(np.float32).clip(0, white_level)
        if self.is_inverted:
            shades = white_level - shades
        shades *= 255 / white_level
        mode = "L" if shades.ndim == 2 else "RGB" if shades.shape[2] == 3 else "CMYK"
        return Image.frombytes(mode, shades.shape[1::-1], (shades + 0.5).astype(np.uint8).tobytes()).convert("RGB")

    def describe(self) -> str:
        """Name the range that is used."""
        return f"values {self.values.min():g} to {self.values.max():g}" + (f" of {self.capacity}" if self.capacity else "")


def is_deep(image: Image.Image) -> bool:
    """Tell whether a picture that was opened, but not yet loaded, has more than 8 bits a channel."""
    return image.mode[0] in "IF" or _is_deep_colour(image)


def deep_pixels(image: Image.Image) -> DeepPixels:
    """Load a picture for which `is_deep` holds.

    Raises:
        ValueError: some of its pixels are not numbers.
    """
    declared = _declared(image)  # needs the file, which loading closes
    if _is_deep_colour(image):
        bands = 4 if image.mode == "CMYK" else 3  # without transparency
        low = _low_bytes(image)
        image.tile = [_with_raw_mode(tile, _raw_mode(tile, image)) for tile in image.tile]
        return DeepPixels((np.asarray(image).astype(np.uint16) << 8 | low)[..., :bands], declared, 65535)
    values = np.asarray(image)
    is_16_bit = image.mode.startswith("I;16") or image.format == "PNG"
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are not numbers (NaN or infinite); write a number there, such as 0")
    is_inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return DeepPixels(values, declared, 65535 if is_16_bit else None, is_inverted)


def _is_deep_colour(image: Image.Image) -> bool:
    """Tell whether Pillow would keep the upper half of 16 bits alone."""
    modes = {_raw_mode(tile, image) for tile in getattr(image, "tile", ())}
    return any(mode[:-1] in ("RGB;16", "RGBA;16", "RGBX;16", "LA;16", "CMYK;16", "R;16") for mode in modes)


def _raw_mode(tile: tuple, image: Image.Image) -> str:
    """Return how Pillow would decode a part of the file, such as ``RGB;16B``: bands, bits and order of the bytes."""
    arguments = tile[3]
    mode = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    if image.format == "TIFF" and mode in tuple("RGBA") and np.max(image.tag_v2.get(BITS_PER_SAMPLE, 8)) == 16:
        return f"{mode};16" + ("L" if image.tag_v2.prefix == b"II" else "B")  # one band alone, which Pillow takes for 8 bits
    return mode


def _with_raw_mode(tile: tuple, mode: str) -> tuple:
    arguments = (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def _low_bytes(image: Image.Image) -> np.ndarray:
    """Decode the lower half of 16-bit colours: what Pillow takes for the upper one in the other order of bytes."""
    place = image.fp.tell()
    image.fp.seek(0)
    content = io.BytesIO(image.fp.read())
    image.fp.seek(place)
    with Image.open(content, formats=[image.format]) as twin:
        modes = [_raw_mode(tile, twin) for tile in twin.tile]
        if modes[0].startswith("LA"):
            return np.uint8(0)  # Pillow knows it in one order only
        twin.tile = [_with_raw_mode(tile, _swapped(mode)) for tile, mode in zip(twin.tile, modes)]
        return np.asarray(twin)


def _swapped(mode: str) -> str:
    is_little = mode[-1] == "L" or (mode[-1] == "N" and sys.byteorder == "little")
    return mode[:-1] + ("B" if is_little else "L")


def _declared(image: Image.Image) -> int | None:
    """Return the largest value that the file says it may hold, None where it says no more than how wide its values are."""
    if image.format == "TIFF":
        largest, bits = (image.tag_v2.get(tag) for tag in (MAX_SAMPLE_VALUE, BITS_PER_SAMPLE))
        if largest is not None:
            return int(np.max(largest)) or None
        bits = int(np.max(bits or 16))
    elif image.format == "PNG" and image.fp:
        place = image.fp.tell()
        image.fp.seek(0)
        header = image.fp.read(HEADER).partition(b"IDAT")[0]
        image.fp.seek(place)
        length, _, content = header.rpartition(b"sBIT")
        bits = max(content[: length[-1]]) if length[-4:-1] == bytes(3) and content else 16
    else:
        return None
    return 2**bits - 1 if 8 < bits < 16 else None
