"""The check of a whole data set: every split is read, looked at by itself, and compared with the others."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rfdetr.data.findings import Findings, Kind
from rfdetr.data.formats import SPLITS, VAL_FRACTION, Paths, available_splits, detect_format, read_split
from rfdetr.data.images import MAX_PIXELS, allow_pixels
from rfdetr.data.label_map import LabelMap
from rfdetr.data.white_level import find_white_level
from rfdetr.datacheck.boxes import check_boxes
from rfdetr.datacheck.classes import check_classes, train_label_map
from rfdetr.datacheck.duplicates import check_duplicates
from rfdetr.datacheck.files import check_files
from rfdetr.datacheck.image_facts import gather_facts
from rfdetr.datacheck.images import check_images
from rfdetr.datacheck.masks import check_masks
from rfdetr.datacheck.split_check import SplitCheck
from rfdetr.datacheck.statistics import SplitStatistics, gather_statistics
from rfdetr.errors import InputError

NEEDED_SPLITS = ("train", "val")
KINDS = {
    "unreadable_split": Kind("error", "files", "splits that cannot be read",
                             "the message says what to do; nothing else was checked there"),
    "missing_split": Kind("error", "files", "splits that training needs and the data set does not have",
                          "divide the images; none is taken for another"),
}


@dataclass(frozen=True, kw_only=True)
class DatasetCheck:
    """What the check of a data set found."""

    dataset_dir: str | Path
    format: str
    input_size: tuple[int, int]  # (H, W) of the model's input
    num_queries: int
    splits: dict[str, SplitCheck] = field(default_factory=dict)  # those that could be read, in the order train, val, test
    findings: Findings = field(default_factory=Findings)

    @property
    def label_map(self) -> LabelMap | None:
        """The label map that training would make."""
        return train_label_map(self.splits["train"]) if "train" in self.splits else None

    @property
    def statistics(self) -> dict[str, SplitStatistics]:
        """Numbers of each split."""
        label_map = self.label_map
        return {name: gather_statistics(split, label_map, self.input_size) for name, split in self.splits.items()}


def check_dataset(
    dataset_dir: str | Path,
    *,
    format: str = "auto",
    paths: Paths | None = None,
    input_size: tuple[int, int],
    num_queries: int = 300,
    quick: bool = False,
    decode: bool = False,
    with_masks: bool = False,
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
    val_fraction: float = VAL_FRACTION,
    allow_outside: bool = False,
    letterbox: bool = False,
) -> DatasetCheck:
    """Look for everything that would break or falsify training, in any format.

    Args:
        paths, val_fraction, allow_outside: see `formats.read_split`.
        input_size: (H, W) of the model's input.
        num_queries: objects that the model can find in an image.
        quick: only what takes seconds: names of files, classes and boxes; no picture is opened and no mask drawn.
        decode: decode every picture as training does.
        white_level, max_pixels: as in `open_dataset`.
        letterbox: pictures keep their shape, so that objects become as small as it makes them.
        with_masks: read the masks also in a quick check, which draws none, so that its splits can be trained on.

    Raises:
        InputError: there is no data set at all.
    """
    found_format = detect_format(dataset_dir, format) if paths is None else "coco"
    check = DatasetCheck(dataset_dir=dataset_dir, format=found_format, input_size=input_size, num_queries=num_queries)
    allow_pixels(max_pixels)
    _read_splits(check, paths, with_masks=with_masks or not quick, val_fraction=val_fraction, allow_outside=allow_outside)
    for split in check.splits.values():
        split.keeps_shape = letterbox
    check_files(check.splits)
    check_classes(check.splits)
    for split in check.splits.values():
        check_boxes(split, input_size, num_queries)
        check_masks(split, quick=quick)
    if not quick:
        for split in check.splits.values():  # train first, which decides for all
            white_level = white_level or find_white_level(split.raw, max_pixels=max_pixels)
            split.white_level, split.max_pixels = white_level, max_pixels
        facts = {name: gather_facts(split, decode=decode) for name, split in check.splits.items()}
        for name, split in check.splits.items():
            check_images(split, facts[name])
        check_duplicates(check.splits, facts)
    return check


def _read_splits(check: DatasetCheck, paths: Paths | None, **options: Any) -> None:
    available = available_splits(check.dataset_dir, check.format, paths)
    for name in SPLITS:
        check.findings.split = name
        if name in available:
            try:
                raw = read_split(check.dataset_dir, name, format=check.format, paths=paths, findings=check.findings,
                                 **options)
            except InputError as error:
                check.findings.add("unreadable_split", KINDS["unreadable_split"], str(error))
            else:
                check.splits[name] = SplitCheck(name, raw, check.findings)
        elif name in NEEDED_SPLITS:
            check.findings.add("missing_split", KINDS["missing_split"], f"found: {', '.join(available)}")
