"""Findings about pictures that are there twice, as identical files or nearly, within a split and in different ones.

Near duplicates have difference hashes of 256 bits that differ in few of them. Comparing all pairs would be quadratic: hashes are
cut into more bands than bits may differ, so that a pair agrees in one band at least, and only such pairs are compared.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rfdetr.data.findings import Kind
from rfdetr.datacheck.image_facts import ImageFacts, grey_levels
from rfdetr.datacheck.images import UNIFORM
from rfdetr.datacheck.split_check import SplitCheck

MAX_BITS = 20  # of 256 that may differ
BANDS, BAND_BITS = 21, 12
MIN_CORRELATION = 0.95  # of the thumbnails; plain backgrounds alone make hashes alike
MANY = 8  # pictures that look alike, from one to the next, are no copies: a camera that stands still
MAX_COMPARED = 64  # neighbours, in a band that very many pictures share, such as the frames of one still camera

KINDS = {
    "identical_to_train": Kind("error", "images", "files that are identical to one of the train split",
                               "keep each in one split only: metrics on images that were trained on say nothing"),
    "identical_across": Kind("warning", "images", "files that are identical to one of the val split",
                             "keep each in one split only"),
    "identical": Kind("warning", "images", "files that are identical to another of the split",
                      "keep one of each, or their boxes count twice"),
    "similar_to_train": Kind("warning", "images", "images that look almost like one of the train split",
                             "metrics here will be too high; divide by scene or video to know how the model does on new ones"),
    "similar_across": Kind("info", "images", "images that look almost like one of the val split",
                           "keep like images in one split"),
    "similar": Kind("info", "images", "images that look almost like another of the split",
                    "near copies teach little; keep one of each"),
    "fixed_camera": Kind("info", "images", "images that look almost like many others of the split: a fixed camera?",
                         "they are no copies where what is before the camera differs, so keep them; divide by camera or by day, "
                         "so that metrics say how the model does on new scenes"),
}


class Twin(NamedTuple):
    """What a picture is a copy of: an image of a split."""

    split: str
    index: int
    bits: int  # that differ, 0 for identical files


def check_duplicates(splits: dict[str, SplitCheck], facts: dict[str, list[ImageFacts]]) -> None:
    """Find copies; each is reported where it does most harm: as one of the train split, of another split, of its own."""
    places = [(name, index) for name in splits for index in range(len(facts[name]))]
    flat = [facts[name][index] for name, index in places]
    twins: dict[tuple[str, int], dict[str, Twin]] = defaultdict(dict)  # image -> kind -> the nearest copy
    similar = list(_similar(flat))
    of_camera = _in_large_groups([(one, other) for one, other, _ in similar if places[one][0] == places[other][0]], len(flat))
    for first, second, bits in [*_identical(flat), *similar]:
        (one, index), (other, other_index) = places[first], places[second]  # splits are in the order train, val, test
        if _same_file(splits[one], index, splits[other], other_index):
            continue  # reported from the names
        prefix = "identical" if bits is None else "similar"
        if prefix == "similar" and one == other and of_camera[first]:
            continue  # reported of all together
        kind = prefix if one == other else f"{prefix}_to_train" if one == "train" else f"{prefix}_across"
        twin = Twin(one, index, bits or 0)
        known = twins[other, other_index].setdefault(kind, twin)
        if twin.bits < known.bits:
            twins[other, other_index][kind] = twin
    worst: dict[tuple[str, str], dict[int, Twin]] = defaultdict(dict)  # kind, split -> image -> its copy
    for (name, index), kinds in twins.items():
        kind = min(kinds, key=list(KINDS).index)
        worst[kind, name][index] = kinds[kind]
    for (kind, name), found in worst.items():
        _note(splits, kind, name, found)
    for name, split in splits.items():
        alike = [index for place, (one, index) in enumerate(places) if one == name and of_camera[place]]
        names = ", ".join(split.raw.file_names[index] for index in alike[:3])
        split.note("fixed_camera", KINDS["fixed_camera"], [f"{len(alike)} of {len(facts[name])}: {names}, ..."] if alike else [],
                   len(alike))


def _in_large_groups(pairs: list[tuple[int, int]], count: int) -> np.ndarray:
    """Tell which of `count` pictures (n,) bool are in a group of `MANY` or more that such pairs hold together."""
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    groups = connected_components(coo_matrix((np.ones(len(pairs)), ends), shape=(count, count)), directed=False)[1]
    return np.bincount(groups)[groups] >= MANY if count else np.zeros(0, dtype=bool)


def _note(splits: dict[str, SplitCheck], kind: str, name: str, found: dict[int, Twin]) -> None:
    order = np.array(sorted(found, key=lambda index: (found[index].bits, index)), dtype=np.int64)
    splits[name].note_images(kind, KINDS[kind], order, lambda index: _describe(splits, found[index]))


def _describe(splits: dict[str, SplitCheck], twin: Twin) -> str:
    name = splits[twin.split].raw.file_names[twin.index]
    return f"{twin.split}: {name}" + (f", {twin.bits} of 256 bits differ" if twin.bits else "")


def _same_file(one: SplitCheck, index: int, other: SplitCheck, other_index: int) -> bool:
    first, second = (os.path.normpath(os.path.join(split.raw.image_root, split.raw.file_names[place]))
                     for split, place in ((one, index), (other, other_index)))
    return first == second


def _identical(facts: list[ImageFacts]) -> Iterator[tuple[int, int, None]]:
    """Pairs of identical files: the first of each group, and each of the others."""
    groups: dict[bytes, int] = {}
    for index, fact in enumerate(facts):
        if fact.digest and not fact.error and (first := groups.setdefault(fact.digest, index)) != index:
            yield first, index, None


def _similar(facts: list[ImageFacts]) -> Iterator[tuple[int, int, int]]:
    """Pairs of pictures that look alike, and the number of bits in which they differ."""
    used = np.array([index for index, fact in enumerate(facts) if fact.thumbnail and grey_levels(fact).std() >= UNIFORM])
    if len(used) < 2:
        return
    hashes = np.stack([np.frombuffer(facts[index].difference_hash, np.uint8) for index in used])
    thumbnails = np.stack([_standardised(grey_levels(facts[index])) for index in used])
    for first, second in _candidates(hashes):
        bits = np.unpackbits(hashes[first] ^ hashes[second], axis=1).sum(axis=1)
        first, second, bits = (values[bits <= MAX_BITS] for values in (first, second, bits))
        alike = np.einsum("ij,ij->i", thumbnails[first], thumbnails[second]) >= MIN_CORRELATION
        pairs = np.sort(np.stack([used[first[alike]], used[second[alike]]]), axis=0)
        for one, other, count in zip(*pairs.tolist(), bits[alike].tolist()):
            if facts[one].digest != facts[other].digest:
                yield one, other, count


def _standardised(values: np.ndarray) -> np.ndarray:
    """Scale grey levels so that the product of two pictures is their correlation."""
    centred = values.astype(np.float32) - values.mean()
    return centred / np.linalg.norm(centred)


def _candidates(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of hashes (n, 32) that agree in a band, in chunks; each pair comes with the first band that it agrees in."""
    bits = np.unpackbits(hashes, axis=1)[:, : BANDS * BAND_BITS].reshape(len(hashes), BANDS, BAND_BITS)
    bands = bits.astype(np.int64) @ (1 << np.arange(BAND_BITS))  # (n, BANDS)
    by_hash = np.lexsort(hashes.T)  # like hashes become neighbours in bands that many share
    for band in range(BANDS):
        order = by_hash[np.argsort(bands[by_hash, band], kind="stable")]
        values = bands[order, band]
        for step in range(1, min(MAX_COMPARED, len(order) - 1) + 1):
            same = np.flatnonzero(values[step:] == values[:-step])
            if not len(same):
                break
            first, second = order[same], order[same + step]
            is_new = ~(bands[first, :band] == bands[second, :band]).any(axis=1)
            yield first[is_new], second[is_new]
