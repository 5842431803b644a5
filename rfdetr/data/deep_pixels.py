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

    values: np.ndarray  # (h, w) or (h, w, 3)
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
        return Image.fromarray((shades + 0.5).astype(np.uint8)).convert("RGB")

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
        low = _low_bytes(image)
        high = np.asarray(image.convert("RGB"))
        return DeepPixels(high.astype(np.uint16) << 8 | low, declared, 65535)
    values = np.asarray(image)
    is_16_bit = image.mode.startswith("I;16") or image.format == "PNG"
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are not numbers (NaN or infinite); write a number there, such as 0")
    is_inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return DeepPixels(values, declared, 65535 if is_16_bit else None, is_inverted)


def _raw_modes(image: Image.Image) -> list[str]:
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    return [str(values[0] if isinstance(values, tuple) and values else values) for values in arguments]


def _is_deep_colour(image: Image.Image) -> bool:
    """Tell whether Pillow would keep the upper half of 16 bits alone."""
    in_16_bits = (";16B", ";16L", ";16N")
    return image.mode in ("RGB", "RGBA", "RGBX", "LA") and any(mode.endswith(in_16_bits) for mode in _raw_modes(image))


def _low_bytes(image: Image.Image) -> np.ndarray:
    """Decode the lower half of 16-bit colours, (h, w, 3): what Pillow takes for the upper one in the other order of bytes."""
    place = image.fp.tell()
    image.fp.seek(0)
    content = io.BytesIO(image.fp.read())
    image.fp.seek(place)
    with Image.open(content, formats=[image.format]) as twin:
        if _raw_modes(twin)[0].startswith("LA"):
            return np.uint8(0)  # Pillow knows it in one order only
        twin.tile = [(*tile[:3], _swapped(tile[3])) for tile in twin.tile]
        return np.asarray(twin.convert("RGB"))


def _swapped(arguments: str | tuple) -> str | tuple:
    if isinstance(arguments, tuple):
        return (_swapped(arguments[0]), *arguments[1:])
    is_little = arguments[-1] == "L" or (arguments[-1] == "N" and sys.byteorder == "little")
    return arguments[:-1] + ("B" if is_little else "L")


def _declared(image: Image.Image) -> int | None:
    """Return the largest value that the file says it may hold, None where it says no more than how wide its values are."""
    if image.format == "TIFF":
        largest, bits = (image.tag_v2.get(tag) for tag in (MAX_SAMPLE_VALUE, BITS_PER_SAMPLE))
        if largest is not None:
            return int(np.max(largest)) or None
        bits = int(np.max(bits or 16))
    elif image.format == "PNG":
        place = image.fp.tell()
        image.fp.seek(0)
        header = image.fp.read(HEADER).partition(b"IDAT")[0]
        image.fp.seek(place)
        length, _, content = header.rpartition(b"sBIT")
        bits = max(content[: length[-1]]) if length[-4:-1] == bytes(3) and content else 16
    else:
        return None
    return 2**bits - 1 if 8 < bits < 16 else None
