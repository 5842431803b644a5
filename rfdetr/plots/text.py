"""Names in pictures: short enough for their place, and nothing but text."""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

MAX_NAME = 24  # characters of a name in a chart


def shorten(text: str, fits: Callable[[str], bool]) -> str:
    """Return the text on one line, with its middle left out as far as it has to be to fit."""
    text = " ".join(text.split())
    if fits(text):
        return text
    low, high = 0, len(text) - 1  # characters that can be kept, that cannot
    while high - low > 1:
        kept = (low + high) // 2
        low, high = (kept, high) if fits(_cut(text, kept)) else (low, kept)
    return _cut(text, low)


def chart_text(name: str, length: int = MAX_NAME) -> str:
    """Return a name as matplotlib takes it: what it holds between dollars is no formula, and a legend shows it whatever it is."""
    plain = shorten(name, lambda text: len(text) <= length).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain  # lines whose names begin with _ have no place in a legend


@lru_cache(maxsize=32)
def picture_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of pictures: matplotlib's, which has more than Latin letters, where that is installed; else Pillow's."""
    if (found := find_spec("matplotlib")) is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.exists():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def _cut(text: str, kept: int) -> str:
    """Leave out the middle of a text so that so many characters are kept."""
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}" if kept else ""
