"""One's own augmentation: a list of torchvision v2 transforms instead of a recipe.

Such transforms draw from the global generators, so those are seeded for each sample and put back afterwards: the sample depends
on its position in the run alone, and nobody else's draws are disturbed.
"""

import importlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from rfdetr.data.scene import Scene
from rfdetr.errors import InputError


def make_transforms(steps: Sequence[Callable | dict]) -> Callable:
    """Make one transform of a list.

    Args:
        steps: transforms, or dicts ``{"class_path": "torchvision.transforms.v2.RandomRotation", "init_args": {"degrees": 10}}``.
    """
    made = [_make_transform(step) if isinstance(step, dict) else step for step in steps]
    for step in made:
        if not callable(step):
            raise InputError(f"data.augment: {step!r} is not a transform; give its class_path and init_args")
    return v2.Compose(made) if made else v2.Identity()


def apply_transforms(
    transform: Callable, pixels: Tensor, boxes: np.ndarray, labels: Tensor, masks: Tensor | None, seed: int
) -> Scene:
    """Apply a transform of dicts ``image, boxes, labels[, masks]`` to a picture at its full size.

    Args:
        pixels: (3, h, w) uint8.
        boxes: (n, 4) xyxy in pixels.
        seed: of the global generators while the transform runs.
    """
    size = tuple(pixels.shape[-2:])
    sample = {"image": tv_tensors.Image(pixels), "labels": labels,
              "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size)}
    if masks is not None:
        sample["masks"] = tv_tensors.Mask(masks)
    with seeded_globals(seed):
        sample = transform(sample)
    return _checked(sample, size)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of torch, numpy and Python, and put their states back at the end."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would also seed the GPUs
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _make_transform(step: dict) -> Callable:
    unknown = sorted(set(step) - {"class_path", "init_args"})
    path = step.get("class_path")
    if unknown or not isinstance(path, str) or "." not in path:
        raise InputError(f"data.augment: {step} does not name a transform; give class_path (module and class) and init_args only")
    make = _find_transform(path)
    try:
        return make(**(step.get("init_args") or {}))
    except Exception as error:  # of whatever it was given
        raise InputError(f"data.augment: {path} does not accept {step.get('init_args')}: {error}") from error


def _find_transform(path: str) -> type:
    """Import a class whose objects can be called; a configuration names transforms, not any function that there is."""
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package in sys.builtin_module_names:
        raise InputError(f"data.augment: {path} is of Python's own library, which has no transforms")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's own module may raise anything
        raise InputError(f"data.augment: there is no {path} ({error}); give the module and the class") from error
    if not isinstance(found, type) or not any("__call__" in vars(base) for base in found.__mro__):
        raise InputError(f"data.augment: {path} is not a class of transforms, whose objects are called with a sample")
    return found


def _checked(sample: dict, size: tuple[int, int]) -> Scene:
    """Read the transformed dict; boxes are cut at the picture's edges, and those without an area dropped.

    The transforms may have dropped any of the objects, so areas are those of boxes in the picture as it was, of (h, w) `size`.
    """
    pixels, boxes, labels, masks = (sample.get(name) for name in ("image", "boxes", "labels", "masks"))
    if not isinstance(pixels, Tensor) or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise InputError(f"data.augment: the transforms must leave an image tensor (3, h, w), not {type(pixels).__name__} "
                         f"{tuple(getattr(pixels, 'shape', ()))}")
    lengths = {len(values) for values in (boxes, labels, masks) if values is not None}
    if not isinstance(boxes, tv_tensors.BoundingBoxes) or labels is None or len(lengths) != 1:
        raise InputError("data.augment: the transforms must leave as many boxes (tv_tensors.BoundingBoxes) as labels and masks; "
                         "SanitizeBoundingBoxes drops all three together")
    height, width = pixels.shape[-2:]
    xyxy = F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY).as_subclass(Tensor)
    fractions = (xyxy.double().numpy() / (width, height, width, height)).clip(0, 1)
    kept = ((fractions[:, 2:] - fractions[:, :2]) > 0).all(axis=1)
    chosen = torch.from_numpy(kept)
    masks = None if masks is None else masks.as_subclass(Tensor)[chosen]
    boxes = fractions[kept]
    areas = torch.from_numpy((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * size[0] * size[1]).float()
    return Scene(pixels.as_subclass(Tensor), boxes, labels[chosen], areas, masks)
