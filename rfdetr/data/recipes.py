"""Augmentation recipes by name: what is drawn for a training sample.

What a recipe does to a sample depends on the generator it is given and on nothing else, so not on which packages are installed.
A change that alters samples raises the recipe's version; the number is part of a run's log.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rfdetr.data.views import FULL_VIEW, View, short_side_size
from rfdetr.errors import InputError

SHORT_SIDES = (400, 500, 600)  # pixels; the published random crop resizes to one of them ...
CROP_SIDES = (384, 600)  # ... and cuts out a square between these sides

BLUR_SIGMAS, BLUR_KERNEL = (0.3, 1.5), 7  # pixels of the sample
MAX_NOISE = 0.04  # standard deviation, of values 0..1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is drawn for each sample; everything is off by default."""

    name: str
    version: int = 1
    purpose: str = ""  # what it is for and why it is as it is, in a line
    scale_crop: float = 0.0  # probability of the published crop: a square that covers much or all of the short side
    zoom: float = 0.0  # probability of a crop of the picture's own shape ...
    zoom_sides: tuple[float, float] = (0.6, 1.0)  # ... with sides of this share of the picture's
    min_visible: float = 0.0  # a box that shows less than this share of its area after a crop is dropped
    hflip: float = 0.0  # probability
    vflip: float = 0.0
    transpose: float = 0.0  # probability of a turn over the diagonal; with both flips that makes rotations by right angles
    brightness: float = 0.0  # factor between 1 - x and 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    colour_cast: float = 0.0  # a factor of its own for red, green and blue
    grey: float = 0.0  # probability
    blur: float = 0.0  # probability
    noise: float = 0.0  # probability

    def draw_view(self, generator: np.random.Generator, height: int, width: int) -> View:
        """Draw which part of a picture of this size is shown, and which way round."""
        view = FULL_VIEW
        if generator.random() < self.scale_crop:
            view = _draw_square(generator, height, width)
        elif generator.random() < self.zoom:
            view = _draw_zoom(generator, self.zoom_sides)
        view = view._replace(hflip=bool(generator.random() < self.hflip), vflip=bool(generator.random() < self.vflip))
        return view._replace(transpose=_happens(generator, self.transpose))

    def change_colours(self, generator: np.random.Generator, pixels: Tensor) -> Tensor:
        """Draw and apply the change of colours to pixels (3, h, w) in 0..1."""
        strengths = {F.adjust_brightness: self.brightness, F.adjust_contrast: self.contrast, F.adjust_saturation: self.saturation}
        for change, strength in strengths.items():
            if strength > 0:
                pixels = change(pixels, float(generator.uniform(1 - strength, 1 + strength)))
        if self.colour_cast > 0:
            gains = generator.uniform(1 - self.colour_cast, 1 + self.colour_cast, size=(3, 1, 1))
            pixels = (pixels * torch.from_numpy(gains.astype(np.float32))).clamp_(0, 1)
        if _happens(generator, self.grey):
            pixels = F.rgb_to_grayscale(pixels).repeat(3, 1, 1)
        if _happens(generator, self.blur):
            pixels = F.gaussian_blur(pixels, [BLUR_KERNEL, BLUR_KERNEL], [generator.uniform(*BLUR_SIGMAS)])
        if _happens(generator, self.noise):
            noise = generator.standard_normal(tuple(pixels.shape), dtype=np.float32) * np.float32(generator.uniform(0, MAX_NOISE))
            pixels = (pixels + torch.from_numpy(noise)).clamp_(0, 1)
        return pixels


RECIPES = {recipe.name: recipe for recipe in (
    Recipe(name="none", purpose="pictures as they are"),
    Recipe(name="default", scale_crop=0.5, hflip=0.5, purpose="as published: large square crops and mirror images"),
    Recipe(name="flips", hflip=0.5, vflip=0.5, purpose="pictures without an up and down, objects of a known size"),
    Recipe(name="light", hflip=0.5, zoom=0.5, min_visible=0.2, brightness=0.2, contrast=0.2, saturation=0.2,
           purpose="a little of everything, for most photographs"),
    Recipe(name="conservative", hflip=0.5, brightness=0.1, contrast=0.1, saturation=0.1,
           purpose="many or very uniform pictures: no object changes its size or is cut"),
    Recipe(name="aggressive", hflip=0.5, zoom=0.7, zoom_sides=(0.4, 1.0), min_visible=0.2, brightness=0.3, contrast=0.3,
           saturation=0.5, colour_cast=0.1, grey=0.1, blur=0.1,
           purpose="few pictures and long training: light, colours, sharpness and distance all vary"),
    Recipe(name="aerial", hflip=0.5, vflip=0.5, transpose=0.5, zoom=0.5, zoom_sides=(0.5, 1.0), min_visible=0.2, brightness=0.15,
           contrast=0.15, saturation=0.15,
           purpose="seen from above: every direction is as likely, and the height varies"),
    Recipe(name="industrial", zoom=0.5, zoom_sides=(0.85, 1.0), min_visible=0.2, brightness=0.25, contrast=0.25, blur=0.2,
           noise=0.3, purpose="a fixed camera: light, focus, noise, small shifts; nothing is mirrored, as print would be"),
)}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name."""
    if name not in RECIPES:
        raise InputError(f"data.augment: there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]


def _draw_square(generator: np.random.Generator, height: int, width: int) -> View:
    """Draw the published crop: short side to one of SHORT_SIDES, then a square somewhere in it."""
    height, width = short_side_size(height, width, SHORT_SIDES[generator.integers(len(SHORT_SIDES))])
    smallest, largest = CROP_SIDES
    side = int(generator.integers(smallest, min(largest, height, width), endpoint=True))
    top, left = generator.integers(height - side, endpoint=True), generator.integers(width - side, endpoint=True)
    return View(left / width, top / height, (left + side) / width, (top + side) / height)


def _draw_zoom(generator: np.random.Generator, sides: tuple[float, float]) -> View:
    side = generator.uniform(*sides)
    left, top = generator.uniform(0, 1 - side, size=2)
    return View(left, top, left + side, top + side)


def _happens(generator: np.random.Generator, probability: float) -> bool:
    """Draw whether something is done; what a recipe never does draws nothing."""
    return probability > 0 and bool(generator.random() < probability)
