"""The colour of each class: the same in all pictures of a run, also for people who cannot tell red from green."""

from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]

OKABE_ITO: tuple[Color, ...] = (  # Okabe and Ito 2008, "Color universal design", without black
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66),
)  # fmt: skip
NUM_COLORS = 256  # classes after these begin again: more colours could not be told apart
MIN_LIGHTNESS, MAX_LIGHTNESS, MIN_CHROMA = 35.0, 90.0, 25.0  # of L*a*b*: seen on dark, bright and grey pictures
LIGHTNESS_WEIGHT = 0.5  # how much difference in lightness, all that is left in grey, counts beside that in colour
# Machado et al. 2009, doi 10.1109/TVCG.2009.113: linear RGB as protanopes and deuteranopes see it
_VISIONS = np.array([
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
])
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def class_color(label: int) -> Color:
    """Return the colour of a label: the first seven are those of Okabe and Ito, each further one is far from all before it."""
    return OKABE_ITO[label] if 0 <= label < len(OKABE_ITO) else _palette()[label % NUM_COLORS]


def text_color(background: Color) -> Color:
    """Return black or white, whichever is read better on this colour."""
    return (0, 0, 0) if _lab(np.array([background]))[0, 0, 0] > 55 else (255, 255, 255)


def ink(color: Color) -> tuple[float, float, float]:
    """Return a class's colour of 0 to 1, darkened as far as a line on white paper needs it."""
    red, green, blue = (channel / 255 for channel in color)
    factor = min(1.0, 0.55 / (0.3 * red + 0.59 * green + 0.11 * blue + 1e-9))
    return red * factor, green * factor, blue * factor


@lru_cache(maxsize=1)
def _palette() -> tuple[Color, ...]:
    """Choose colours one after the other, each with the largest distance from the chosen, in the vision that sees it least."""
    levels = np.linspace(0, 255, 18).round().astype(int)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = _lab(candidates)
    lightness, chroma = seen[0, :, 0], np.linalg.norm(seen[0, :, 1:], axis=-1)
    kept = (lightness > MIN_LIGHTNESS) & (lightness < MAX_LIGHTNESS) & (chroma > MIN_CHROMA)
    candidates, seen = candidates[kept], seen[:, kept]
    chosen = [np.array(color) for color in OKABE_ITO]
    nearest = np.min([_distances(seen, _lab(color[None])) for color in chosen], axis=0)
    while len(chosen) < NUM_COLORS:
        index = int(nearest.argmax())
        chosen.append(candidates[index])
        nearest = np.minimum(nearest, _distances(seen, seen[:, index : index + 1]))
    return tuple((int(red), int(green), int(blue)) for red, green, blue in chosen)


def _distances(seen: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(visions, n, 3), (visions, 1, 3) -> (n,): how far colours are from another."""
    difference = seen - other
    return np.linalg.norm(difference, axis=-1).min(axis=0) + LIGHTNESS_WEIGHT * np.abs(difference[0, :, 0])


def _lab(colors: np.ndarray) -> np.ndarray:
    """sRGB (n, 3) of 0 to 255 -> CIE L*a*b* (D65) for each of the visions, (visions, n, 3)."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(np.einsum("vij,nj->vni", _VISIONS, linear), 0, 1) @ _XYZ.T / _XYZ.sum(axis=1)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], axis=-1)
