"""Darknet's obj.data, which CVAT writes too: lines ``train = data/train.txt``; read as the content of a data.yaml.

Its paths are meant from Darknet's own folder, in which the data set is the folder data/.
"""

from pathlib import Path
from typing import Any

from rfdetr.errors import InputError

DARKNET_SUFFIX = ".data"


def darknet_file(folder: Path) -> Path | None:
    """Return a folder's obj.data, or its only file of another such name.

    Raises:
        InputError: there are several.
    """
    files = sorted(file for file in folder.glob(f"*{DARKNET_SUFFIX}") if file.is_file() and file.name[0] != ".")
    named = [file for file in files if file.name == "obj.data"] or files
    if len(named) > 1:
        raise InputError(f"{folder}: holds {', '.join(file.name for file in named)}; name the one that is meant as dataset_dir")
    return named[0] if named else None


def read_darknet(path: Path) -> dict[str, Any]:
    """Return the keys that have a value, with the names themselves in the place of their file; other files give none.

    Raises:
        InputError: the file of the names is missing or no text.
    """
    pairs = [line.partition("=") for line in _text(path).splitlines() if "=" in line and not line.lstrip().startswith("#")]
    content: dict[str, Any] = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    if "names" not in content:
        return {}
    places = [path.parent / name for name in (content["names"], without_data_folder(content["names"])) if "\0" not in name]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(f"{path}: names = {content['names']} points nowhere (looked at {', '.join(map(str, places))})")
    names = [line.strip() for line in _text(file).rstrip().splitlines()]
    return {**{key: value for key, value in content.items() if key in ("train", "valid", "val", "test")}, "names": names,
            **({"nc": content["classes"]} if "classes" in content else {})}


def without_data_folder(path: str) -> str:
    """Return a path of Darknet's as it is within the data set."""
    return path.removeprefix("./").removeprefix("data/")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8") from None
