"""Findings about the pictures: files that do not decode, sizes, orientation, pixel formats."""

from collections import Counter

import numpy as np

from rfdetr.data.findings import Kind
from rfdetr.datacheck.image_facts import ImageFacts, grey_levels
from rfdetr.datacheck.split_check import SplitCheck

SMALL_SIDE = 32  # pixels
LARGE_AREA = 50_000_000  # pixels; each takes a second to decode, and 150 MB
EXTREME_SHAPE = 4.0  # times as long as wide
UNIFORM = 1.0  # grey levels, standard deviation of the thumbnail
UPRIGHT = 1  # of EXIF
USUAL_MODES = ("RGB", "L")

KINDS = {
    "undecodable": Kind("error", "files", "images that cannot be decoded",
                        "replace the files, or take them out of the annotations", "drops"),
    "wrong_size": Kind("error", "images", "images of another size than their annotations state",
                       "export the data set again: the boxes are for another picture, or correct width and height"),
    "rotated": Kind("warning", "images", "images that EXIF says to turn or mirror",
                    "their boxes must fit the picture as viewers show it; look at some, or save the images upright without EXIF"),
    "deep": Kind("warning", "images", "images with more than 8 bits a channel",
                 "look whether the white level fits: the same value is white in all of them, and what is above it is cut; "
                 "data.white_level chooses another"),
    "above_white": Kind("warning", "images", "images whose values go beyond the white level",
                        "choose data.white_level so that it holds them, or they are trained on as white"),
    "odd_mode": Kind("info", "images", "images that are neither RGB nor plain grey", "they are converted to RGB when loaded"),
    "small_image": Kind("warning", "images", f"images with a side below {SMALL_SIDE} pixels", "look whether they are thumbnails"),
    "large_image": Kind("warning", "images", f"images of more than {LARGE_AREA // 1_000_000} megapixels",
                        "resize them, or cut them into tiles: loading will be slow, and small objects are lost"),
    "extreme_shape": Kind("warning", "images", f"images more than {EXTREME_SHAPE:.0f} times as long as wide",
                          "cut them into tiles, or keep their shape by data.resize letterbox: else the input squashes them"),
    "uniform": Kind("warning", "images", "images of a single colour", "look whether they are damaged or placeholders"),
}


def check_images(split: SplitCheck, facts: list[ImageFacts]) -> None:
    """Look at what was found in the files of a split; missing ones are reported from their names."""
    def note(name: str, chosen: list[bool], detail=None) -> None:
        split.note_images(name, KINDS[name], np.flatnonzero(chosen), detail)

    annotated = [tuple(size) for size in split.raw.image_sizes.tolist()]
    is_reported = "no_image_size" in split.reported  # by the reader, for files without a readable header
    note("undecodable", [bool(fact.error) and not (is_reported and fact.size is None) for fact in facts],
         lambda index: facts[index].error)
    split.marked_images["undecodable"] = np.flatnonzero([bool(fact.error) for fact in facts])
    note("wrong_size", [bool(fact.size) and not _fits(fact, size) for fact, size in zip(facts, annotated)],
         lambda index: f"is {_show(facts[index].size)}, stated as {_show(annotated[index])}")
    note("rotated", [fact.orientation != UPRIGHT for fact in facts], lambda index: f"orientation {facts[index].orientation}")
    levels = [fact.white_level or 0 for fact in facts]  # 0: 8 bits
    white = split.white_level or max(levels, default=0)
    note("deep", [level > 0 for level in levels], lambda index: f"{facts[index].values}, white is {white}")
    note("above_white", [level > white for level in levels], lambda index: facts[index].values)
    modes = Counter(fact.mode for fact in facts if fact.mode and fact.mode not in USUAL_MODES and fact.white_level is None)
    split.note("odd_mode", KINDS["odd_mode"], [f"{mode}: {count}" for mode, count in modes.most_common()], sum(modes.values()))
    sizes = [fact.size or (SMALL_SIDE, SMALL_SIDE) for fact in facts]
    note("small_image", [min(size) < SMALL_SIDE for size in sizes], lambda index: _show(sizes[index]))
    note("large_image", [size[0] * size[1] > LARGE_AREA for size in sizes], lambda index: _show(sizes[index]))
    note("extreme_shape", [max(size) > EXTREME_SHAPE * min(size) for size in sizes], lambda index: _show(sizes[index]))
    note("uniform", [bool(fact.thumbnail) and grey_levels(fact).std() < UNIFORM for fact in facts])


def _fits(fact: ImageFacts, annotated: tuple[int, int]) -> bool:
    """Tell whether a file has the annotated size, as stored or turned as EXIF says."""
    return fact.size == annotated or (fact.size[::-1] == annotated and fact.orientation in (5, 6, 7, 8))


def _show(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
