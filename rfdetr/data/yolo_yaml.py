"""What a YOLO data set's data.yaml says: paths of the splits, class names, and what a line of its label files is.

Every scalar is read as the text that stands there. YAML itself would make booleans, times, numbers and dates of class names like
no, on, 12:30, 1e3 and 2024-01-01.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from rfdetr.data.darknet import DARKNET_SUFFIX, read_darknet
from rfdetr.data.findings import Findings, Kind
from rfdetr.data.label_map import Category
from rfdetr.data.yolo_labels import LineForm
from rfdetr.errors import InputError
from rfdetr.values import UniqueKeyLoader, shown

NOTHING = ("", "~", "null", "Null", "NULL")
WHOLE = re.compile(r"[0-9]{1,6}")  # ids and counts beyond a million are slips

KINDS = {
    "names_count": Kind("error", "classes", "contradictions between nc and names", "make both of data.yaml agree"),
    "class_without_name": Kind("warning", "classes", "classes without a name", "name them in data.yaml", "repairs"),
}


class _TextLoader(UniqueKeyLoader):
    """Makes dictionaries, lists and text; anchors and merge keys work, other tags are errors."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # the merge key
    yaml_constructors = {tag: function for tag, function in yaml.SafeLoader.yaml_constructors.items()
                         if tag is None or tag.endswith((":map", ":seq", ":str"))}


def read_data_file(path: Path) -> dict[str, Any]:
    """Return the keys that have a value; a file that holds something else gives none.

    Raises:
        InputError: the file is not YAML.
    """
    if path.suffix == DARKNET_SUFFIX:
        return read_darknet(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _TextLoader)
    except (yaml.YAMLError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())[:300]}); correct it") from None
    except RecursionError:
        raise InputError(f"{path}: not valid YAML (lists within lists without an end); correct it") from None
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str) and value not in NOTHING}


def read_paths(path: Path, content: dict[str, Any], key: str) -> list[str]:
    """Return one path or several, as they stand."""
    value = content[key]
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) and "\0" not in entry for entry in paths):
        raise InputError(f"{path}: {key!r} must be a path or a list of paths; it is {shown(value)}")
    return paths


def read_categories(path: Path, content: dict[str, Any], findings: Findings) -> list[Category]:
    """Return the classes; their ids are the numbers that labels have."""
    names, count = content.get("names"), _whole(content.get("nc"))
    if names is None and count:
        names = [""] * count
    pairs = list(names.items()) if isinstance(names, dict) else list(enumerate(names)) if isinstance(names, list) else []
    by_id = {_whole(id_): name for id_, name in pairs}
    if not pairs or None in by_id or len(by_id) < len(pairs) or not all(isinstance(name, str) for name in by_id.values()):
        raise InputError(f"{path}: 'names' must be a list of class names, or class ids with their names (0: cat), each once; "
                         f"{'it is ' + shown(names) if names is not None else 'it is missing'}")
    if "nc" in content and count not in (len(by_id), max(by_id) + 1):
        findings.add("names_count", KINDS["names_count"],
                     f"{path.name}: nc is {shown(content['nc']) if count is None else count}, but there are {len(by_id)} names")
    nameless = {id_ for id_, name in by_id.items() if not name.strip()}
    findings.add("class_without_name", KINDS["class_without_name"], [f"class {id_}" for id_ in sorted(nameless)])
    return [Category(id_, f"class_{id_}" if id_ in nameless else name) for id_, name in sorted(by_id.items())]


def read_line_form(path: Path, content: dict[str, Any]) -> LineForm:
    """Return what data.yaml says of the lines of label files."""
    task, shape = content.get("task"), content.get("kpt_shape")
    if shape is None:
        if task == "pose":
            raise InputError(f"{path}: the task is pose, but 'kpt_shape' is missing; write kpt_shape: [how many, 2 or 3]")
        return LineForm(is_polygon=task in ("segment", "obb"))
    numbers = [_whole(entry) for entry in shape] if isinstance(shape, list) else []
    if len(numbers) != 2 or not numbers[0] or numbers[1] not in (2, 3):
        raise InputError(f"{path}: 'kpt_shape' must be [number of key points, 2 or 3]; it is {shown(shape)}")
    return LineForm(key_point_fields=5 + numbers[0] * numbers[1])


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value)
    return value if type(value) is int else None
