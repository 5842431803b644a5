"""Read JSON files whose outermost value is an object, of which the long lists are read entry by entry.

Neither the text of a big file nor anything that is not needed of its entries is ever in memory as a whole.
"""

import codecs
import json
from array import array
from collections.abc import Collection, Iterator
from json import JSONDecodeError
from typing import Any, BinaryIO

from rfdetr.errors import InputError

WINDOW = 2**22  # bytes of the file that are looked at together
LISTS = ("images", "annotations", "categories")
KEPT = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "file_name", "height", "width", "offset",
        "length", "name", "supercategory")  # of the entries of lists; offset and length are of shards
ENDS = set(" \t\n\r,:]}")  # what may follow a value
PLAIN = {int, float}
DECODER = json.JSONDecoder()
EXPORT_AGAIN = "correct the file, or export the data set again"


def parse_json(file: BinaryIO, path: object) -> dict[str, Any]:
    """Read a JSON object; `path` is what messages name.

    Boxes and polygons become arrays, which take a fourth of the memory of lists.

    Raises:
        InputError: the file holds something else.
    """
    text = _Text(file)
    try:
        content = dict(_members(text)) if text.peek() == "{" else text.value()
        if text.peek():
            raise text.error("Extra data")
    except JSONDecodeError as error:
        place = f"line {text.line + error.lineno}, column {error.colno + text.column * (error.lineno == 1)}"
        raise InputError(f"{path}: not valid JSON at {place} ({error.msg}); {EXPORT_AGAIN}") from None
    except UnicodeDecodeError as error:
        place = text.num_bytes - len(error.object) + error.start
        raise InputError(f"{path}: not valid JSON, byte {place} is not UTF-8; {EXPORT_AGAIN}") from None
    except (ValueError, RecursionError) as error:  # thousands of digits, thousands of brackets
        raise InputError(f"{path}: not JSON that can be read ({str(error)[:80]}); {EXPORT_AGAIN}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, but COCO annotations are an object with the lists images, "
                         f"annotations and categories; {EXPORT_AGAIN}")
    return content


class _Text:
    """The text of a file, of which a window is in memory, and the place in it."""

    def __init__(self, file: BinaryIO) -> None:
        start = file.read(WINDOW)
        self._file, self._waiting, self.num_bytes = file, start, 0
        self._decoder = codecs.getincrementaldecoder(json.detect_encoding(start))("surrogatepass")
        self._window, self._place, self._is_whole = "", 0, False
        self.line, self.column = 0, 0  # of the beginning of the window, counted from 0

    def value(self) -> Any:
        """Read the value that begins here."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._window, self._place)
                if self._is_whole or self._window[end : end + 1] in ENDS:  # else a number may go on behind the window
                    self._place = end
                    return value
            except JSONDecodeError:
                if self._is_whole:
                    raise
            self._read_more()

    def peek(self) -> str:
        """Return the character that comes next, spaces left out; nothing at the end."""
        while True:
            while self._place < len(self._window) and self._window[self._place] in " \t\n\r":
                self._place += 1
            if self._place < len(self._window) or self._is_whole:
                return self._window[self._place : self._place + 1]
            self._read_more()

    def take(self, characters: Collection[str]) -> str:
        """Return the next character, which has to be one of these, and go on behind it."""
        found = self.peek()
        if not found or found not in characters:
            raise self.error(f"Expecting {' or '.join(map(repr, characters))}")
        self._place += 1
        return found

    def error(self, message: str) -> JSONDecodeError:
        return JSONDecodeError(message, self._window, self._place)

    def _read_more(self) -> None:
        """Let go what was read, and take in as much again as is left: long values are looked at few times."""
        lines = self._window.count("\n", 0, self._place)
        self.column = self._place - self._window.rfind("\n", 0, self._place) - 1 + self.column * (not lines)
        self.line += lines
        rest = self._window[self._place :]
        data = self._waiting or self._file.read(max(WINDOW, len(rest)))
        self._waiting, self.num_bytes = b"", self.num_bytes + len(data)
        self._window, self._place, self._is_whole = rest + self._decoder.decode(data, final=not data), 0, not data


def _members(text: _Text) -> Iterator[tuple[str, Any]]:
    """Give the keys and values of the object that begins here."""
    text.take("{")
    found = set()
    while text.peek() != "}" or found:
        if text.peek() != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        key = text.value()
        text.take(":")
        if key in found and key in LISTS:
            raise ValueError(f"the list {key!r} stands there twice")  # json would take the last
        found.add(key)
        yield key, list(_entries(text)) if text.peek() == "[" else text.value()
        if text.take(",}") == "}":
            return
    text.take("}")


def _entries(text: _Text) -> Iterator[Any]:
    """Give the entries of the list that begins here."""
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        entry = text.value()
        yield _compact(entry) if isinstance(entry, dict) else entry
        if text.take(",]") == "]":
            return


class _Keys:
    """Lends the dictionaries of its objects: they share their keys, and so take half the memory of others."""


def _compact(entry: dict) -> dict:
    kept = _Keys()
    for key in KEPT:
        if key in entry:
            setattr(kept, key, entry[key])
    entry, box, polygons = vars(kept), entry.get("bbox"), entry.get("segmentation")
    try:
        if type(box) is list and len(box) == 4 and set(map(type, box)) <= PLAIN:
            entry["bbox"] = array("d", box)
        if type(polygons) is list and all(type(polygon) is list for polygon in polygons):
            entry["segmentation"] = [array("d", polygon) for polygon in polygons]
    except (TypeError, OverflowError):  # something else than numbers, which the readers report
        pass
    return entry
