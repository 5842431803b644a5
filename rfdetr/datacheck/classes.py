"""Findings about classes: their names, how many objects they have, and how the splits differ."""

import numpy as np

from rfdetr.data.class_matching import ClassMatch, match_classes, normal_name
from rfdetr.data.findings import Kind
from rfdetr.data.label_map import LabelMap
from rfdetr.datacheck.split_check import SplitCheck
from rfdetr.errors import InputError

FEW_OBJECTS = 10
REPEAT_THRESHOLD = 0.1  # the default of data.repeat_threshold
IMBALANCE = 100  # times as many objects as the rarest class that has enough
SKEW = 3.0  # times the share of the images that show a class in the train split
ENOUGH_IMAGES = 20  # with a class, for judging its share
MANY_BACKGROUND = 0.5  # of the images

KINDS = {
    "no_name": Kind("warning", "classes", "categories without a name", "give each a name; metrics are reported by name"),
    "name_twice": Kind("warning", "classes", "names that several categories have (capitals, spaces and the like aside)",
                       "merge these categories, or tell them apart"),
    "other_classes": Kind("error", "classes", "splits whose classes are not those of the train split",
                          "give the same classes the same names in all splits; export them together"),
    "other_ids": Kind("info", "classes", "classes with another id or spelling than in the train split, matched by name",
                      "nothing to do if they mean the same"),
    "other_numbers": Kind("warning", "classes", "classes without names here or in the train split, matched by their ids or order",
                          "look whether they mean the same; name the classes in all splits"),
    "no_objects": Kind("warning", "classes", "classes without a box in the train split",
                       "the model cannot learn them: label some, or take them out of the list of categories"),
    "few_objects": Kind("warning", "classes", f"classes with fewer than {FEW_OBJECTS} boxes in the train split",
                        "label more of them, or merge or remove these classes"),
    "imbalance": Kind("info", "classes", f"classes with less than a {IMBALANCE}th of the boxes of the most frequent class",
                      "look at their AP by itself; more examples of them help most, also data.sampling repeat_factor (shows "
                      "their images more often) or loss.class_weights balanced"),
    "only_here": Kind("warning", "classes", "classes that have boxes here and none in the train split",
                      "the model cannot find them, which lowers the mean AP: move some images to the train split"),
    "not_here": Kind("warning", "classes", "classes of the train split that have no boxes here",
                     "nothing is measured for them: move some images here"),
    "skewed": Kind("warning", "classes",
                   f"classes on a share of the images that differs from the train split by more than {SKEW:.0f} times",
                   "metrics here may not tell how the model does on data like the train split; divide the images at random"),
    "background": Kind("info", "images", "images without a box", "they are trained on as background"),
    "much_background": Kind("warning", "images", "images without a box, more than half of all",
                            "look whether their labels are missing; such images teach the model to find nothing"),
    "no_boxes": Kind("error", "boxes", "splits without a single usable box",
                     "there is nothing to learn or to measure; check the labels"),
}


def check_classes(splits: dict[str, SplitCheck]) -> None:
    """Look at the categories of each split, and compare the others with the train split."""
    for split in splits.values():
        _check_names(split)
        _check_background(split)
    train = splits.get("train")
    if train is None:
        return
    label_map = train_label_map(train)
    train_counts = class_counts(train, label_map)
    _check_counts(train, label_map, train_counts)
    for name, split in splits.items():
        if name != "train":
            _compare(split, train, label_map, train_counts)


def train_label_map(train: SplitCheck) -> LabelMap:
    """Return the label map that training makes of this split."""
    return LabelMap.from_categories(train.raw.categories, np.unique(train.raw.category_ids).tolist())


def class_counts(split: SplitCheck, label_map: LabelMap) -> np.ndarray:
    """Number of usable boxes of each label, crowds left out, (K,); zeros where the split has other classes."""
    rows = split.usable & ~split.raw.is_crowd
    try:
        labels = _match(split, label_map).labels_of(split.raw.category_ids[rows])
    except InputError:  # that is a finding
        labels = np.zeros(0, dtype=np.int64)
    return np.bincount(labels[labels >= 0], minlength=label_map.num_classes)


def _match(split: SplitCheck, label_map: LabelMap) -> ClassMatch:
    used_ids = np.unique(split.raw.category_ids).tolist()
    return match_classes(split.raw.categories, used_ids, label_map, source=split.raw.source)


def _check_names(split: SplitCheck) -> None:
    names: dict[str, list[str]] = {}
    for category in split.raw.categories:
        names.setdefault(normal_name(category.name), []).append(f"{category.name!r} (id {category.id})")
    split.note("no_name", KINDS["no_name"], names.pop("", []))
    split.note("name_twice", KINDS["name_twice"], [", ".join(same) for same in names.values() if len(same) > 1])


def _check_background(split: SplitCheck) -> None:
    if not (split.usable & ~split.raw.is_crowd).any():
        if split.name != "test" and "no_labels" not in split.reported:
            split.note("no_boxes", KINDS["no_boxes"], [str(split.raw.source)])
        return
    empty = np.flatnonzero(split.counts() == 0)
    if len(empty) == split.reported.get("background_image"):
        return
    name = "much_background" if len(empty) > MANY_BACKGROUND * len(split.raw.image_ids) else "background"
    split.note_images(name, KINDS[name], empty)


def _check_counts(train: SplitCheck, label_map: LabelMap, counts: np.ndarray) -> None:
    if not counts.any():
        return
    names = np.array(label_map.category_names, dtype=object)
    few = (counts > 0) & (counts < FEW_OBJECTS)
    rare = (counts >= FEW_OBJECTS) & (counts * IMBALANCE < counts.max())
    train.note("no_objects", KINDS["no_objects"], names[counts == 0].tolist())
    shares, weights = _image_shares(train, label_map, label_map), counts.sum() / ((counts > 0).sum() * counts.clip(min=1))
    repeats = np.sqrt(np.maximum(1, REPEAT_THRESHOLD / shares.clip(min=1e-9)))
    for name, found in (("few_objects", few), ("imbalance", rare)):
        labels = np.flatnonzero(found)[np.argsort(counts[found], kind="stable")]
        remedies = [f" (on {shares[label]:.2%} of the images: repeat_factor would show them {repeats[label]:.1f} times an epoch, "
                    f"balanced count each box {weights[label]:.3g} times)" * bool(counts[label] * IMBALANCE < counts.max())
                    for label in labels]
        train.note(name, KINDS[name], [f"{names[label]} {counts[label]}{remedy}" for label, remedy in zip(labels, remedies)])


def _compare(split: SplitCheck, train: SplitCheck, label_map: LabelMap, train_counts: np.ndarray) -> None:
    """Compare which classes there are, and how often, with the train split."""
    try:
        match = _match(split, label_map)
    except InputError as error:
        return split.note("other_classes", KINDS["other_classes"], [str(error)])
    name = "other_ids" if match.by == "name" else "other_numbers"
    split.note(name, KINDS[name], list(match.moved))
    counts = class_counts(split, label_map)
    if not counts.any() or not train_counts.any():
        return
    names = np.array(label_map.category_names, dtype=object)
    only_here = [category.name for category in match.left_out] + names[(counts > 0) & (train_counts == 0)].tolist()
    split.note("only_here", KINDS["only_here"], only_here)
    split.note("not_here", KINDS["not_here"], names[(counts == 0) & (train_counts > 0)].tolist())
    shares, train_shares = _image_shares(split, match, label_map), _image_shares(train, label_map, label_map)
    fewer, more = np.minimum(shares, train_shares), np.maximum(shares, train_shares)
    judged = (fewer > 0) & (more * min(len(split.raw.image_ids), len(train.raw.image_ids)) >= ENOUGH_IMAGES)
    skewed = np.flatnonzero(judged & (more > SKEW * fewer))
    split.note("skewed", KINDS["skewed"], [
        f"{names[label]} {shares[label]:.1%} here, {train_shares[label]:.1%} in the train split" for label in skewed])


def _image_shares(split: SplitCheck, classes: LabelMap | ClassMatch, label_map: LabelMap) -> np.ndarray:
    """Share of the images that show each label, (K,)."""
    labels = classes.labels_of(split.raw.category_ids)
    known = split.usable & (labels >= 0)
    pairs = np.unique(np.stack([split.raw.image_indices[known], labels[known]]), axis=1)
    return np.bincount(pairs[1], minlength=label_map.num_classes) / len(split.raw.image_ids)
