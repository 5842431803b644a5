"""Samples mixed from several pictures: mosaic, copy-paste and mixup.

Which pictures are mixed, and how, is a function of the sample's position alone, as everything is that is drawn for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rfdetr.data.samplers import SampleKey
from rfdetr.data.scene import Scene

CENTRE = (0.3, 0.7)  # where the four pictures of a mosaic meet, as a share of its sides
PASTED = 0.5  # probability of each object to be pasted
BLEND = 8.0  # of Beta(x, x), from which the weight of the first picture is drawn; mostly 0.3 to 0.7

Cell = tuple[tuple[int, int], float]  # (h, w) and share, see `covering`
Show = Callable[[SampleKey, Cell | None], Scene]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The probabilities with which a sample is mixed, until an epoch."""

    mosaic: float = 0.0
    copy_paste: float = 0.0
    mixup: float = 0.0
    end_epoch: int  # from which on nothing is mixed

    @property
    def num_pictures(self) -> float:
        """Pictures of a sample, on average."""
        return 1 + 3 * self.mosaic + self.copy_paste + self.mixup

    @property
    def most_pictures(self) -> int:
        """Pictures of a sample, at most."""
        return 1 + 3 * (self.mosaic > 0) + (self.copy_paste > 0) + (self.mixup > 0)

    def mix(self, key: SampleKey, num_images: int, show: Show) -> Scene:
        """Make the sample of a key, whose size is set.

        Args:
            num_images: partners are chosen among so many.
            show: gives the augmented picture of a key, or of a cell, which it has to cover.
        """
        generator = key.mixing_generator()
        indices = generator.integers(num_images, size=5).tolist()
        partners = [key._replace(index=index, part=part) for part, index in enumerate(indices, start=1)]
        does_mosaic, does_paste, does_mixup = generator.random(3) < (self.mosaic, self.copy_paste, self.mixup)
        scene = _mosaic(generator, [key, *partners[:3]], show) if does_mosaic else show(key, None)
        if does_paste:  # Simple Copy-Paste, Ghiasi et al., CVPR 2021
            other = _window(generator, partners[3], scene.size, show)
            scene = scene.pasted_over(other.with_objects(generator.random(len(other.boxes)) < PASTED))
        if does_mixup:  # Zhang et al., ICLR 2018; for detection as in arXiv:1902.04103, with the boxes of both
            other, weight = _window(generator, partners[4], scene.size, show), generator.beta(BLEND, BLEND)
            scene = scene._replace(pixels=scene.pixels.lerp(other.pixels, 1 - weight)).with_objects_of([other])
        return scene


def covering(size: tuple[int, int], cell: tuple[int, int], share: float) -> tuple[int, int]:
    """Return an (h, w) of the shape of `size` that covers a cell: at share 0 the smallest, at 1 `size`, if that covers it."""
    smallest = max(inner / outer for inner, outer in zip(cell, size))
    scale = smallest + share * max(0, 1 - smallest)
    height, width = (max(inner, round(outer * scale)) for inner, outer in zip(cell, size))
    return height, width


def _mosaic(generator: np.random.Generator, keys: list[SampleKey], show: Show) -> Scene:
    """Show four pictures around a point (Bochkovskiy et al., YOLOv4, 2020), each at 0.3 to 1 of its usual size."""
    size = keys[0].size
    y, x = (round(side * share) for side, share in zip(size, generator.uniform(*CENTRE, size=2)))
    cells = [(0, 0, y, x), (0, x, y, size[1] - x), (y, 0, size[0] - y, x), (y, x, size[0] - y, size[1] - x)]
    parts = [_window(generator, key, (height, width), show).placed(top, left, size)
             for key, (top, left, height, width) in zip(keys, cells)]
    return parts[0]._replace(pixels=sum(part.pixels for part in parts)).with_objects_of(parts[1:])


def _window(generator: np.random.Generator, key: SampleKey, size: tuple[int, int], show: Show) -> Scene:
    """Show a picture so that it covers (h, w), and cut that out of it somewhere."""
    share, *offsets = generator.random(3)
    scene = show(key, (size, share))
    top, left = (int(offset * (length - wanted + 1)) for offset, length, wanted in zip(offsets, scene.size, size))
    return scene.cut(top, left, size)
