"""Findings about files, from their names alone: folders are listed, no file is opened."""

import os
import re
from collections import Counter, defaultdict

import numpy as np

from rfdetr.data.file_names import NearNames, files_in
from rfdetr.data.findings import Kind
from rfdetr.data.images import IMAGE_SUFFIXES
from rfdetr.datacheck.split_check import SplitCheck

OTHER_EXTENSIONS = {".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd", ".svg", ".pdf", ".dng", ".raw", ".cr2", ".nef",
                    ".arw", ".mp4", ".avi", ".mov", ".mkv", ".webm"}  # fmt: skip
ROBOFLOW_COPY = re.compile(r"^(?P<source>.+)\.rf\.[0-9a-zA-Z]+\.\w+$")  # name of an exported, perhaps augmented copy
VIDEO_FRAME = re.compile(r"(?P<video>.*(?:mp4|avi|mov|mkv|m4v|webm|frame|video).*?)[-_ .]?\d+(?:_(?:jpe?g|png|bmp|webp))?", re.I)

NONE_THERE = "correct the names or data.dataset_dir; none of the listed images is there"

KINDS = {
    "missing_image": Kind("error", "files", "images that are listed but not there",
                          "copy them there, or take them out of the annotations", "drops"),
    "case_clash": Kind("warning", "files", "names that differ only in capitals",
                       "rename them: on Windows and macOS they are one file"),
    "listed_twice": Kind("warning", "files", "images that are listed more than once",
                         "list each image once, with all its boxes"),
    "unlisted_image": Kind("warning", "files", "images that no split lists",
                           "they are not used: add their annotations, or as background images without any"),
    "unsupported": Kind("warning", "files", "files of a type that is not read", "convert them to JPEG or PNG; they are not used"),
    "same_image": Kind("error", "files", "images that the train split lists too",
                       "take them out of one of the splits: metrics on images that were trained on say nothing"),
    "same_source": Kind("warning", "files", "images made of a picture that the train split has copies of",
                        "divide pictures before copies are made of them; metrics are too high otherwise"),
    "same_video": Kind("warning", "files", "frames of a video that the train split has frames of too, by their names",
                       "neighbouring frames look alike, so metrics will be too high; divide by video to know how the model does "
                       "on new ones"),
}


def check_files(splits: dict[str, SplitCheck]) -> None:
    """Compare the names that the splits list with the files that are there, and with each other."""
    contents = {folder: files_in(folder) for split in splits.values() for folder in split.folders}
    listed = {path for split in splits.values() for path in _paths(split)}
    reported: set[str] = set()  # folders that an earlier split shares
    for split in splits.values():
        if split.raw.open_image is None:
            _check_listed(split, contents)
            _check_unlisted(split, {folder: contents[folder] for folder in split.folders - reported}, listed)
            reported |= split.folders
        if "train" in splits and split.name != "train":
            _check_shared(split, splits["train"])


def _paths(split: SplitCheck) -> list[str]:
    return [os.path.normpath(os.path.join(split.raw.image_root, name)) for name in split.raw.file_names]


def _check_listed(split: SplitCheck, contents: dict[str, set[str]]) -> None:
    names, root = split.raw.file_names, split.raw.image_root
    _check_missing(split, [index for index, (folder, name) in enumerate(map(os.path.split, names))
                           if name not in contents[os.path.join(root, folder)]])
    spellings, times = defaultdict(set), defaultdict(int)
    for name in names:
        spellings[name.casefold()].add(name)
        times[name] += 1
    split.note("case_clash", KINDS["case_clash"], [", ".join(sorted(same)) for same in spellings.values() if len(same) > 1])
    if "listed_again_for_training" not in split.reported:
        again = [f"{name} ({count} times)" for name, count in times.items() if count > 1]
        split.note("listed_twice", KINDS["listed_twice"], again)


def _check_missing(split: SplitCheck, missing: list[int]) -> None:
    """Report images that are not there, with what is."""
    if not missing:
        return
    names, near = split.raw.file_names, NearNames(split.raw.image_root)

    def detail(index: int) -> str:
        fitting = near.find(names[index])
        if len(fitting) > 1:
            return f"{len(fitting)} files fit: {', '.join(sorted(fitting)[:3])}"
        if fitting:
            return f"{fitting[0]} fits, but other names fit it too"
        return near.describe() if index == missing[0] else "no file fits"

    kind = KINDS["missing_image"]
    if len(missing) == len(names):
        kind = kind._replace(advice=NONE_THERE, fix="leaves")  # nothing would be left
    split.note_images("missing_image", kind, np.array(missing, dtype=np.int64), detail)


def _check_unlisted(split: SplitCheck, contents: dict[str, set[str]], listed: set[str]) -> None:
    """Report pictures that lie beside those of the split and belong to none, and files that look like pictures."""
    unlisted, unsupported = [], []
    listed_anyhow = {path.casefold() for path in listed}  # other capitals are reported already
    for folder, files in sorted(contents.items()):
        for name in sorted(files):
            extension, path = os.path.splitext(name)[1].lower(), os.path.normpath(os.path.join(folder, name))
            if path.casefold() not in listed_anyhow and extension in IMAGE_SUFFIXES:
                unlisted.append(path)
            elif path.casefold() not in listed_anyhow and extension in OTHER_EXTENSIONS:
                unsupported.append(path)
    split.note("unlisted_image", KINDS["unlisted_image"], unlisted)
    split.note("unsupported", KINDS["unsupported"], unsupported)


def _check_shared(split: SplitCheck, train: SplitCheck) -> None:
    """Report what a split shares with the train split: files, sources of copies, videos."""
    train_paths = set(_paths(train))
    shared = np.array([path in train_paths for path in _paths(split)], dtype=bool)
    split.note_images("same_image", KINDS["same_image"], np.flatnonzero(shared))
    sources = {_source(name) for name in train.raw.file_names} - {None}
    copies = np.array([_source(name) in sources for name in split.raw.file_names], dtype=bool) & ~shared
    split.note_images("same_source", KINDS["same_source"], np.flatnonzero(copies))
    others = [name for name, is_known in zip(split.raw.file_names, shared | copies) if not is_known]
    train_frames, frames = (Counter(filter(None, map(_video, names))) for names in (train.raw.file_names, others))
    both = [video for video, _ in frames.most_common() if video in train_frames]
    split.note("same_video", KINDS["same_video"], [f"{video}: {frames[video]} frames, {train_frames[video]} in the train split"
                                                   for video in both], sum(frames[video] for video in both))


def _source(name: str) -> str | None:
    """Name of the picture that an export of Roboflow made this copy of."""
    found = ROBOFLOW_COPY.match(os.path.basename(name))
    return found["source"] if found else None


def _video(name: str) -> str | None:
    """Name of the video that a frame was taken from, if the name says that it is a frame."""
    found = VIDEO_FRAME.fullmatch(_source(name) or os.path.splitext(os.path.basename(name))[0])
    return found["video"].rstrip("-_ .") if found else None
