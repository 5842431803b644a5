"""The part of a data set that a run uses: some of its classes, all of them as one, a share of the images."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rfdetr.data.annotations import RawSplit
from rfdetr.data.class_matching import find_names, normal_name
from rfdetr.data.label_map import Category

ONE_CLASS = Category(1, "object")
_IMAGES_STREAM = 20_250_613  # of the choice of images, which is the same in every run

logger = logging.getLogger(__name__)


def select_classes(raw: RawSplit, wanted: Sequence[str] | None, *, as_one: bool, is_train: bool) -> RawSplit:
    """Keep the objects of the classes with these names, and make all one class of them; images stay, as background.

    Args:
        wanted: None: all classes. In other splits than train some may be missing, and where all are, the label map decides alone.

    Raises:
        InputError: the train split has no class of such a name.
    """
    if wanted is not None:
        names = [category.name for category in raw.categories]
        there = {normal_name(name) for name in names}
        places = find_names("data.classes", [name for name in wanted if is_train or normal_name(name) in there], names)
        categories = [raw.categories[place] for place in sorted(set(places))] or raw.categories
        kept = np.isin(raw.category_ids, [category.id for category in categories])
        logger.info("data.classes: %s: %d of the %d objects of %s", ", ".join(category.name for category in categories),
                    kept.sum(), len(kept), raw.source)
        raw = raw.with_objects(kept, categories=categories)
    if as_one:
        logger.info("data.single_class: the %d classes of %s are one, %r", len(raw.categories), raw.source, ONE_CLASS.name)
        raw = replace(raw, categories=[ONE_CLASS], category_ids=np.full_like(raw.category_ids, ONE_CLASS.id))
    return raw


def select_images(raw: RawSplit, fraction: float) -> RawSplit:
    """Keep a share of the images: always the same ones, and a larger share holds all of a smaller one."""
    num_images = len(raw.image_ids)
    by_id = np.argsort(raw.image_ids, kind="stable")  # the order in a file does not matter
    order = by_id[np.random.default_rng(_IMAGES_STREAM).permutation(num_images)]
    chosen = np.sort(order[: max(1, round(fraction * num_images))])
    logger.info("data.fraction: %g: %d of the %d images of %s", fraction, len(chosen), num_images, raw.source)
    return raw.with_images(chosen)
