"""Names of image files as annotations write them, matched with the files that are there.

Other systems and tools write backslashes, %20, other capitals, accents in two characters, or the folders of another machine.
Where exactly one file fits such a name, and no other name means it, it is taken, with a warning. A name that leads out of the
data set's folder is refused.
"""

import html
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from urllib.parse import unquote

import numpy as np

from rfdetr.data.annotations import RawSplit
from rfdetr.data.findings import MAX_EXAMPLES, Findings, Kind
from rfdetr.data.images import IMAGE_SUFFIXES

MAX_NAME = 4096  # bytes; systems allow no more
OTHER_MACHINE = re.compile(r"[/\\]|[a-z]:|[a-z][a-z0-9+.-]*://", re.I)  # how a whole path or an address begins
EXPORT_AGAIN = "correct the names, or export the data set again"

KINDS = {
    "other_name": Kind("warning", "files", "images whose file has a name that is nearly the listed one, and is used",
                       "correct the names in the annotations, so that other tools find the files too", "repairs"),
    "outside_folder": Kind("error", "files", "images whose name leads out of the folder of the data set",
                           "copy the pictures into it; or set data.allow_outside if these files are meant", "drops"),
    "impossible_name": Kind("error", "files", "images with a name that no file can have", EXPORT_AGAIN, "drops"),
}


def is_possible(name: object) -> bool:
    """Tell whether a file can have this name."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) <= MAX_NAME
    except UnicodeEncodeError:  # half a character, as "\ud800" in JSON
        return False


def match_names(raw: RawSplit, roots: Iterable[str | os.PathLike], findings: Findings, *, allow_outside: bool) -> RawSplit:
    """Return a split with the names of the files that are there; what no file fits keeps its name.

    Args:
        roots: folders of the data set; a name may lead into any of them.
        findings: gets what was put right, and what is left out: names that are not possible or lead out of the folders.
        allow_outside: files outside of them may be used.
    """
    possible = np.array([is_possible(name) for name in raw.file_names], dtype=bool)
    examples = [f"{name[:60]!r}" for name, is_good in zip(raw.file_names, possible) if not is_good]
    findings.add("impossible_name", KINDS["impossible_name"], examples)
    raw = _only_images(raw, possible)
    if raw.open_image is not None:
        return raw
    folders = _Folders(raw.image_root, () if allow_outside else roots)
    lost = [index for index, name in enumerate(raw.file_names) if not folders.has(name)]
    names = list(raw.file_names)
    if lost:
        found = _find_near(raw, lost)
        for index, name in found.items():
            names[index] = name
        findings.add("other_name", KINDS["other_name"],
                     [f"listed as {raw.file_names[index]!r}, there as {name!r}" for index, name in found.items()][:MAX_EXAMPLES],
                     count=len(found))
        outside = [index for index in lost if index not in found and folders.is_outside_file(names[index])]
        findings.add("outside_folder", KINDS["outside_folder"], [repr(names[index]) for index in outside])
        raw = _only_images(replace(raw, file_names=names), ~np.isin(np.arange(len(names)), outside))
    return _with_relative_names(raw, folders)


def base_name(name: str) -> str:
    """Return the name of a file without its folders, in a form that does not depend on system and tool."""
    return next(iter(_parts(name)[-1:]), "")


class NearNames:
    """The pictures in a folder and all below it, looked up by names that are nearly theirs."""

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = root
        start = len(os.path.join(root, ""))
        self.files = [entry.path[start:] for entry in pictures_below(os.path.join(root, ""))
                      if entry.is_file(follow_symlinks=False) or os.path.isfile(entry)]
        self._by_base: dict[str, list[tuple[list[str], str]]] = defaultdict(list)
        self._by_stem: dict[str, list[tuple[list[str], str]]] = defaultdict(list)  # for names without an ending
        for file in self.files:
            parts = _parts(file)
            stem = os.path.splitext("".join(parts[-1:]))[0]
            self._by_base["".join(parts[-1:])].append((parts, file))
            self._by_stem[stem].append(([*parts[:-1], stem], file))
        self._is_one_folder = len({os.path.dirname(file) for file in self.files}) == 1

    def find(self, name: str) -> list[str]:
        """Return the files that fit a name best, relative to the folder.

        The end of the one path must be the other, so cam1/7.jpg does not fit cam2/7.jpg; only a path of another machine may
        name other folders, where there is a single one here.
        """
        parts = _parts(name)
        known = self._by_base if parts and parts[-1].endswith(IMAGE_SUFFIXES) else self._by_stem
        same = known.get(parts[-1], []) if parts else []
        common = {file: _common_end(parts, theirs) for theirs, file in same}
        is_any_folder = self._is_one_folder and OTHER_MACHINE.match(name)
        fitting = [file for theirs, file in same if is_any_folder or common[file] == min(len(parts), len(theirs))]
        best = max((common[file] for file in fitting), default=0)
        return [file for file in fitting if common[file] == best]

    def describe(self) -> str:
        """Say what pictures there are."""
        if not self.files:
            return f"{self.root} holds no pictures"
        return f"{self.root} holds {len(self.files)} pictures, such as {', '.join(sorted(self.files)[:3])}"


class _Folders:
    """What lies in the folders that names lead to; each is listed once, and no file is looked at by itself."""

    def __init__(self, image_root: str | os.PathLike, roots: Iterable[str | os.PathLike]) -> None:
        self._image_root = os.path.abspath(image_root)
        self._roots = [os.path.join(os.path.abspath(root), "") for root in roots]
        self._files: dict[str, set[str]] = {}

    def has(self, name: str) -> bool:
        """Tell whether the file is there, in the folders of the data set."""
        head, base = os.path.split(name)
        if head not in self._files:
            is_inside = self._is_inside(self._path(head))
            self._files[head] = files_in(os.path.join(self._image_root, head)) if is_inside else set()
        return base in self._files[head]

    def is_outside_file(self, name: str) -> bool:
        return not self._is_inside(self._path(os.path.dirname(name))) and os.path.lexists(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self._image_root, name))

    def _is_inside(self, folder: str) -> bool:
        return not self._roots or any(os.path.join(folder, "").startswith(root) for root in self._roots)


def files_in(folder: str) -> set[str]:
    """Return the names of the files in a folder, none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if holds(entry.is_file)}
    except (OSError, ValueError):
        return set()


def pictures_below(root: str, *, strict: bool = False) -> Iterator[os.DirEntry]:
    """Give what has the name of a picture in a folder and all below it, each folder once, however many links lead to it.

    Args:
        strict: raise the OSError of a folder that cannot be read, instead of leaving it out.
    """
    waiting, links, seen = [root], [], set()
    while waiting or links:  # links last, so that pictures have the name of their own folder
        folder = waiting.pop() if waiting else links.pop()
        try:
            place = os.stat(folder)
            if (place.st_dev, place.st_ino) in seen:
                continue
            seen.add((place.st_dev, place.st_ino))
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                    if entry.name.startswith((".", "__MACOSX")):  # left behind by systems and tools
                        continue
                    if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                        (links if entry.is_symlink() else waiting).append(entry.path)
                    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                        yield entry
        except OSError:
            if strict:
                raise


def holds(ask: Callable[[], bool]) -> bool:
    """Ask something of an entry of a folder; of a link that leads to itself nothing holds."""
    try:
        return ask()
    except OSError:
        return False


def _find_near(raw: RawSplit, lost: list[int]) -> dict[int, str]:
    """Return the files that the names of images `lost` nearly name, where only one fits and no other name means it."""
    near = NearNames(raw.image_root)
    listed = {os.path.normpath(name) for name in raw.file_names}
    fits = {name: [file for file in near.find(name) if file not in listed] for name in {raw.file_names[index] for index in lost}}
    claims = Counter(files[0] for files in fits.values() if len(files) == 1)
    single = {name: files[0] for name, files in fits.items() if len(files) == 1 and claims[files[0]] == 1}
    return {index: single[raw.file_names[index]] for index in lost if raw.file_names[index] in single}


def _parts(name: str) -> list[str]:
    """Return the folders and the name of a path in a form that does not depend on system and tool."""
    if "?d=" in name:  # Label Studio's /data/local-files/?d=
        name = name.partition("?d=")[2]
    elif "://" in name:
        name = name.partition("?")[0]
    while "%" in name and (decoded := unquote(name)) != name:  # some tools do it twice
        name = decoded
    name = html.unescape(name) if "&" in name else name
    name = (name if name.isascii() else unicodedata.normalize("NFKC", name)).replace("\\", "/").casefold()
    if not name.isprintable():
        name = "".join(character for character in name if character.isprintable())
    parts = [part.strip() for part in name.split("/")]
    stem, dot, ending = parts[-1].rpartition(".")
    parts[-1] = stem.strip() + dot + ending
    return [part for part in parts if part not in ("", ".", "..")]


def _common_end(a: list[str], b: list[str]) -> int:
    """Return how many of the last parts of two paths are the same."""
    return next((n for n, (x, y) in enumerate(zip(reversed(a), reversed(b))) if x != y), min(len(a), len(b)))


def _only_images(raw: RawSplit, kept: np.ndarray) -> RawSplit:
    """Return a split without some of its images (N,) bool."""
    return raw if kept.all() else raw.with_images(np.flatnonzero(kept))


def _with_relative_names(raw: RawSplit, folders: _Folders) -> RawSplit:
    """Return a split whose names are relative to its folder, which is one above all pictures where some were whole paths."""
    whole = {name for name in raw.file_names if os.path.isabs(name)}
    lost = {name for name in whole if not folders.has(name)}
    if whole == lost:
        return raw
    paths = [name if name in lost else os.path.normpath(os.path.join(os.path.abspath(raw.image_root), name))
             for name in raw.file_names]
    root = os.path.commonpath({os.path.dirname(path) for path in paths if path not in lost})
    names = [path if path in lost else os.path.relpath(path, root) for path in paths]
    return replace(raw, image_root=type(raw.image_root)(root), file_names=names)
