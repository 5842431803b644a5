"""One scene of the embedded data set: textured shapes that overlap, on a cluttered background, drawn with numpy alone.

Nothing here depends on a drawing library, and the only random source is the stream of uniform doubles of PCG64, which
numpy keeps stable; so a seed gives the same pixels on every machine. Coordinates are pixels, colours are in [0, 1].
"""

import cmath
import colorsys
import math
from typing import NamedTuple

import numpy as np

# The difficulty of the data set. Every upper-case name here is written into the marker file of a data set.
DRAWING_VERSION = 1  # raise it when a change of the code changes the pictures
CLASS_NAMES = ("circle", "square", "triangle", "star")
NUM_OBJECTS = (4, 9)  # objects per image, both ends included
OBJECT_SIZE = (0.12, 0.24)  # radius of the circle around an object, as a share of the image's short side
MIN_VISIBLE = 0.6  # an object is not placed where it, or one under it, would show less than this share of itself
EMPTY_SHARE = 0.03  # share of the images that hold background only
ASPECTS = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.75))  # height and width, as shares of image_size
MIN_CONTRAST = 0.45  # smallest RGB distance between an object's colour and what lies under it
HUES = (0.03, 0.60, 0.33, 0.14)  # typical hue of each class: circles are reddish, squares blueish, triangles greenish, ...
HUE_SPREAD = 0.07  # an object's hue is this far from its class's, at most
ODD_COLOR_SHARE = 0.08  # share of the objects that have any colour: the shape alone tells their class
TEXTURE = 0.4  # strength of the pattern on an object, 0 to 1
NUM_LINES = (2, 8)  # background clutter
NUM_BLOBS = (3, 9)
CLUTTER_OPACITY = 0.4
NOISE = 0.05  # amplitude of the noise on every pixel
SHADOW = 0.35

PLACEMENT_TRIES = 12


class Scene(NamedTuple):
    """A picture and its objects, from the lowest to the topmost."""

    image: np.ndarray  # (H, W, 3) uint8
    labels: list[int]  # indices into CLASS_NAMES
    masks: list[np.ndarray]  # (H, W) bool, where the object is seen
    full_areas: list[int]  # in pixels, with what is hidden and what lies outside the picture


class _Dice:
    """Random draws built on uniform doubles only, the one stream that numpy does not change between versions."""

    def __init__(self, *entropy: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(self._generator.random())

    def integer(self, bounds: tuple[int, int]) -> int:
        """Draw an integer; both ends are possible."""
        return min(int(self.uniform(bounds[0], bounds[1] + 1)), bounds[1])

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def array(self, *shape: int) -> np.ndarray:
        """Uniform numbers in [-1, 1)."""
        numbers = self._generator.random(shape)
        numbers *= 2
        numbers -= 1
        return numbers

    def color(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return np.array([self.uniform(low, high) for _ in range(3)])


def draw_scene(image_size: int, *entropy: int) -> Scene:
    """Draw the scene that belongs to ``entropy`` (non-negative integers: seed, split, number of the image)."""
    dice = _Dice(*entropy)
    aspect = ASPECTS[dice.integer((0, len(ASPECTS) - 1))]
    height, width = (round(image_size * share) for share in aspect)
    canvas = _draw_background(dice, height, width)
    num_objects = 0 if dice.chance(EMPTY_SHARE) else dice.integer(NUM_OBJECTS)
    owner = np.full((height, width), -1)  # which object is seen at a pixel
    labels: list[int] = []
    full_areas: list[int] = []
    for _ in range(num_objects * PLACEMENT_TRIES):
        if len(labels) == num_objects:
            break
        label = dice.integer((0, len(CLASS_NAMES) - 1))
        full_area = _place_object(dice, canvas, owner, label, full_areas)
        if full_area:
            labels.append(label)
            full_areas.append(full_area)
    noise = dice.uniform(0.3, 1.0) * NOISE
    canvas += noise * dice.array(height, width, 3)
    canvas *= 255
    image = np.rint(canvas, out=canvas).clip(0, 255, out=canvas).astype(np.uint8)
    return Scene(image, labels, [owner == index for index in range(len(labels))], full_areas)


def _place_object(dice: _Dice, canvas: np.ndarray, owner: np.ndarray, label: int, full_areas: list[int]) -> int:
    """Paint one more object if it leaves enough of everything visible; return its full area, or 0 if it does not."""
    height, width = owner.shape
    radius = dice.uniform(*OBJECT_SIZE) * min(height, width)
    center = (dice.uniform(0, width), dice.uniform(0, height))
    angle = dice.uniform(0, 2 * math.pi)
    reach = math.ceil(radius) + 6  # room for the shadow
    left, top = int(center[0]) - reach, int(center[1]) - reach
    xs = np.arange(left, left + 2 * reach) + 0.5 - center[0]
    ys = (np.arange(top, top + 2 * reach) + 0.5 - center[1])[:, None]
    along = (xs * math.cos(angle) + ys * math.sin(angle)) / radius
    across = (ys * math.cos(angle) - xs * math.sin(angle)) / radius
    distance = signed_distance(CLASS_NAMES[label], along, across) * radius  # pixels, negative inside

    inside = distance < 0
    full_area = int(inside.sum())
    rows = slice(max(-top, 0), min(height - top, 2 * reach))
    columns = slice(max(-left, 0), min(width - left, 2 * reach))
    window = slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)
    inside = inside[rows, columns]
    if inside.sum() < MIN_VISIBLE * full_area or _hides_too_much(owner, owner[window][inside], full_areas):
        return 0

    patch = canvas[window]
    _paint_shadow(dice, patch, distance, rows, columns)
    here = (rows, columns)
    under = patch.mean(axis=(0, 1))
    paint = _texture(dice, along[here], across[here], distance[here], radius, _object_color(dice, label, under))
    alpha = np.clip(0.5 - distance[here], 0.0, 1.0)[..., None]
    patch += alpha * (paint - patch)
    owner[window][inside] = len(full_areas)
    return full_area


def _hides_too_much(owner: np.ndarray, covered: np.ndarray, full_areas: list[int]) -> bool:
    """Tell whether an object seen at the ``covered`` pixels would be left with too little to see."""
    for index in np.unique(covered[covered >= 0]):
        left = int((owner == index).sum()) - int((covered == index).sum())
        if left < MIN_VISIBLE * full_areas[index]:
            return True
    return False


def signed_distance(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance from the outline of a shape of radius 1 around the origin, negative inside; exact near the sides."""
    x, y = np.broadcast_arrays(x, y)
    if name == "circle":
        return 0.85 * (np.hypot(x, y) / 0.85 - 1)
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.72
    if name == "triangle":
        return _star_distance(x, y, points=3, inner=0.5)
    if name == "star":
        return _star_distance(x, y, points=5, inner=0.42)
    raise ValueError(f"unknown shape {name!r}, expected one of {', '.join(CLASS_NAMES)}")


def _star_distance(x: np.ndarray, y: np.ndarray, points: int, inner: float) -> np.ndarray:
    """Distance from a star with tips at radius 1 and notches at radius ``inner``; inner = cos(pi / points): a polygon."""
    sector = math.pi / points
    angle = np.mod(np.arctan2(y, x) + sector, 2 * sector) - sector  # fold all tips onto the one at angle 0
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle), radius * np.abs(np.sin(angle))
    notch = (inner * math.cos(sector), inner * math.sin(sector))
    length = math.hypot(1 - notch[0], notch[1])
    return ((along - 1) * notch[1] + across * (1 - notch[0])) / length


def _object_color(dice: _Dice, label: int, under: np.ndarray) -> np.ndarray:
    """Draw a colour for an object of a class that differs from ``under``; of twenty tries the last one stands."""
    for _ in range(20):
        if dice.chance(ODD_COLOR_SHARE):
            color = dice.color()
        else:
            hue = (HUES[label] + dice.uniform(-HUE_SPREAD, HUE_SPREAD)) % 1.0
            color = np.array(colorsys.hsv_to_rgb(hue, dice.uniform(0.5, 1.0), dice.uniform(0.35, 1.0)))
        if np.sqrt(((color - under) ** 2).sum()) >= MIN_CONTRAST:
            break
    return color


def _texture(
    dice: _Dice, x: np.ndarray, y: np.ndarray, distance: np.ndarray, radius: float, color: np.ndarray
) -> np.ndarray:
    """Colour (h, w, 3) of an object: a pattern in its own frame, light from one side, sometimes a dark rim."""
    second = np.clip(color + TEXTURE * dice.array(3), 0.0, 1.0)
    waves = dice.uniform(6.0, 14.0)
    kind = dice.integer((0, 4))
    if kind == 0:
        pattern = np.zeros_like(x)
    elif kind == 1:
        pattern = 0.5 + 0.5 * np.sin(waves * x)
    elif kind == 2:
        pattern = (np.sin(waves * x) * np.sin(waves * y) > 0).astype(float)
    elif kind == 3:
        pattern = (np.cos(waves * x) + np.cos(waves * y) > 0.9).astype(float)
    else:
        pattern = np.clip(0.5 + 0.5 * x, 0.0, 1.0)
    paint = color + pattern[..., None] * (second - color)
    light = 1 + dice.uniform(0.0, 0.25) * (x + y)
    if dice.chance(0.4):
        light = light * np.where(distance > -max(1.5, 0.08 * radius), dice.uniform(0.4, 0.7), 1.0)
    return np.clip(paint * light[..., None], 0.0, 1.0)


def _paint_shadow(dice: _Dice, patch: np.ndarray, distance: np.ndarray, rows: slice, columns: slice) -> None:
    """Darken what lies below and beside an object, so that objects seem to lie on one another."""
    dx, dy = dice.integer((0, 4)), dice.integer((1, 4))
    moved = np.roll(distance, (dy, dx), axis=(0, 1))  # the rim of the window is far outside the object
    shade = SHADOW * np.clip(0.5 - moved / 4, 0.0, 1.0)
    patch *= 1 - shade[rows, columns, None]


def _draw_background(dice: _Dice, height: int, width: int) -> np.ndarray:
    """A cloudy gradient (H, W, 3) with lines and soft blobs on it."""
    cells = 24
    clouds = dice.color(0.15, 0.85) + 0.06 * dice.array(cells, cells, 3)
    for coarse, strength in ((2, 0.35), (5, 0.15)):
        clouds += strength * _enlarge(dice.array(coarse, coarse, 3), cells, cells)
    clouds += 0.5 * (clouds.mean(axis=2, keepdims=True) - clouds)  # paler than the objects
    canvas = _enlarge(clouds, height, width)
    for _ in range(dice.integer(NUM_BLOBS)):
        _paint_blob(dice, canvas)
    for _ in range(dice.integer(NUM_LINES)):
        _paint_line(dice, canvas)
    return np.clip(canvas, 0.0, 1.0)


def _enlarge(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Spread the values of a grid (n, n, 3) linearly over a picture (height, width, 3)."""
    rows, columns = _interpolation(height, grid.shape[0]), _interpolation(width, grid.shape[1])
    tall = (rows @ grid.reshape(grid.shape[0], -1)).reshape(height, -1, 3)
    return columns @ tall


def _interpolation(size: int, cells: int) -> np.ndarray:
    """Matrix (size, cells) that spreads ``cells`` values linearly over ``size`` pixels."""
    position = np.linspace(0, cells - 1, size)[:, None]
    return np.clip(1 - np.abs(position - np.arange(cells)), 0.0, 1.0)


def _paint_blob(dice: _Dice, canvas: np.ndarray) -> None:
    """Paint a soft-edged spot with a wavy outline: clutter that is none of the classes."""
    height, width = canvas.shape[:2]
    radius, softness = dice.uniform(0.04, 0.2) * min(height, width), dice.uniform(4, 16)
    waves = [cmath.rect(dice.uniform(0, 0.25), dice.uniform(0, 2 * math.pi)) for _ in range(3)]
    reach = radius * (1 + sum(abs(wave) for wave in waves)) + softness / 2
    patch, x, y = _surroundings(canvas, (dice.uniform(0, width), dice.uniform(0, height)), reach, reach)
    distance = np.hypot(x, y)
    direction = (x + 1j * y) / np.maximum(distance, 1e-6)
    outline = 1 + (direction * (waves[0] + direction * (waves[1] + direction * waves[2]))).real
    distance -= radius * outline
    alpha = CLUTTER_OPACITY * np.clip(0.5 - distance / softness, 0.0, 1.0)[..., None]
    patch += alpha * (dice.color() - patch)


def _paint_line(dice: _Dice, canvas: np.ndarray) -> None:
    """Paint a straight stroke through the picture or through a part of it."""
    height, width = canvas.shape[:2]
    angle, half_length, half_width = dice.uniform(0, math.pi), dice.uniform(0.1, 0.8) * width, dice.uniform(0.5, 2.5)
    cosine, sine = math.cos(angle), math.sin(angle)
    reach_x, reach_y = half_length * abs(cosine) + 4, half_length * sine + 4
    patch, x, y = _surroundings(canvas, (dice.uniform(0, width), dice.uniform(0, height)), reach_x, reach_y)
    distance = np.maximum(np.abs(y * cosine - x * sine) - half_width, np.abs(x * cosine + y * sine) - half_length)
    alpha = CLUTTER_OPACITY * np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    patch += alpha * (dice.color() - patch)


def _surroundings(
    canvas: np.ndarray, center: tuple[float, float], reach_x: float, reach_y: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """View (h, w, 3) of the canvas around ``center``, and its pixels' x (w,) and y (h, 1) relative to it."""
    left, top = max(math.floor(center[0] - reach_x), 0), max(math.floor(center[1] - reach_y), 0)
    patch = canvas[top : math.ceil(center[1] + reach_y), left : math.ceil(center[0] + reach_x)]
    ys, xs = np.arange(patch.shape[0])[:, None], np.arange(patch.shape[1])
    return patch, xs + (left + 0.5 - center[0]), ys + (top + 0.5 - center[1])
