"""Values of foreign files as numbers: one strict conversion for every id, flag, size and coordinate.

`1`, `1.0` and `"1"` are the number 1. Nothing is cut, guessed or taken for true: whatever else stands there is not valid.
"""

import re
import reprlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import yaml

WHOLE = re.compile(r"([+-]?\d{1,18})(\.0*)?", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
MAX_SHOWN = 80  # characters of a value in a message
LARGEST = 2**63 - 1  # that an array of int64 holds


class _Short(reprlib.Repr):
    """Writes the beginning of lists, numbers and texts of any length and depth."""

    def repr_array(self, numbers: array, level: int) -> str:
        return self.repr_list(numbers.tolist(), level)

    def repr_int(self, value: int, level: int) -> str:
        return super().repr_int(value, level) if abs(value) < 10**100 else "a number of more than 100 digits"


_short = _Short()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring, _short.maxlong = 5, 20, 8, MAX_SHOWN, 40


def shown(value: Any) -> str:
    """Quote a value for a message."""
    return _short.repr(value)[:MAX_SHOWN]


def whole_number(value: Any) -> int | None:
    """Return a whole number, None for what is none; True and False are none."""
    if isinstance(value, str):
        match = WHOLE.fullmatch(value.strip())
        value = int(match[1]) if match else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else None  # NaN and infinity are not
    return value if type(value) is int and abs(value) <= LARGEST else None


def number(value: Any) -> float | None:
    """Return a number, NaN and infinity among them, and None for what is none."""
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value.strip()) else None
    try:
        return float(value) if type(value) in (int, float) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def whole_numbers(column: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Return a column (n,) int64, and which of its values (n,) bool are whole numbers; the others read 0."""
    return _as_array(column, {int}, np.int64, whole_number, 0)


def numbers(column: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Return a column (n,) float64, and which of its values (n,) bool are numbers; the others read NaN."""
    return _as_array(column, {int, float}, np.float64, number, np.nan)


def _as_array(column: Sequence, plain: set[type], dtype: type, read: Callable, otherwise: float) -> tuple[np.ndarray, np.ndarray]:
    if set(map(type, column)) <= plain:
        try:
            return np.array(column, dtype=dtype), np.ones(len(column), dtype=bool)
        except OverflowError:
            pass
    values = [read(value) for value in column]
    valid = np.array([value is not None for value in values], dtype=bool)
    return np.array([otherwise if value is None else value for value in values], dtype=dtype), valid


def rows_of_numbers(column: Sequence, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lists (or arrays "d") of `length` numbers (n, length) float64, and which (n,) bool are that; the others read NaN."""
    if set(map(type, column)) == {array} and set(map(len, column)) == {length}:
        return np.frombuffer(b"".join(column)).reshape(-1, length), np.ones(len(column), dtype=bool)
    right_length = np.array([isinstance(row, (list, array)) and len(row) == length for row in column], dtype=bool)
    flat, valid = numbers(list(chain.from_iterable(row if ok else [None] * length for row, ok in zip(column, right_length))))
    return flat.reshape(-1, length), valid.reshape(-1, length).all(axis=1)


def flags(column: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Return a column (n,) bool, and which of its values (n,) bool are 0, 1, false, true or None, which reads false."""
    plain = {None: 0, False: 0, True: 1}
    values, valid = whole_numbers([plain[value] if value is None or isinstance(value, bool) else value for value in column])
    valid &= (values == 0) | (values == 1)
    return valid & (values == 1), valid


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
        again = next((key for index, key in enumerate(keys) if key in keys[:index]), None) if len(set(keys)) < len(keys) else None
        if again is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {again!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)
