"""Where pictures are: files, folders, patterns such as ``shots/**/*.jpg``, and text files that list them."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from rfdetr.data.file_names import pictures_below
from rfdetr.data.images import IMAGE_SUFFIXES
from rfdetr.errors import InputError
from rfdetr.video import VIDEO_SUFFIXES


def find_pictures(*sources: str | os.PathLike) -> list[tuple[str, Path]]:
    """Return names and paths, each file once, frame 2 before frame 10 in a folder and of a pattern.

    Names are relative to the folder or the list; of a pattern, to the folder before its first wildcard; of several sources, they
    are the paths.

    Raises:
        InputError: there is nothing of that kind.
    """
    found: dict[Path, str] = {}
    for source in sources:
        for name, path in _find(Path(source)):
            found.setdefault(path, name if len(sources) == 1 else str(path))
    return [(name, path) for path, name in found.items()]


def _find(source: Path) -> Sequence[tuple[str, Path]]:
    if source.is_file():
        return _listed(source) if source.suffix.lower() == ".txt" else [(source.name, source)]
    if source.is_dir():
        paths, root = [Path(entry) for entry in pictures_below(str(source))], source
    elif glob.has_magic(str(source)):
        paths = [path for match in glob.iglob(str(source), recursive=True) if (path := Path(match)).is_file()]
        fixed = next(place for place, part in enumerate(source.parts) if glob.has_magic(part))
        root = Path(*source.parts[:fixed])
    else:
        raise InputError(f"{source}: there is no such file or folder")
    if not paths:
        raise InputError(f"{source}: no images in it ({', '.join(IMAGE_SUFFIXES)}); a video is named by its file "
                         f"({', '.join(VIDEO_SUFFIXES[:5])}, ...)")
    named = [(path.relative_to(root).as_posix(), path) for path in paths]
    return sorted(named, key=lambda pair: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", pair[0])])


def _listed(source: Path) -> list[tuple[str, Path]]:
    """Return the pictures of a list, a path a line, which are relative to the folder of the list."""
    try:
        lines = [line.strip() for line in source.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: this list of pictures cannot be read ({error})") from None
    if not any(lines):
        raise InputError(f"{source}: this list of pictures is empty; write the path of one into each line")
    return [(line, source.parent / line) for line in lines if line]
