"""Checks of the fields of a configuration: a refused value is reported as ``section.field: value ...; it must be ...``."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rfdetr.errors import InputError


def check_fields(section: object, name: str, rule: str, is_valid: Callable[[Any], bool], *fields: str) -> None:
    """Refuse the first of ``fields`` whose value is not valid; ``rule`` says in words what would be."""
    for key in fields:
        value = getattr(section, key)
        if not is_valid(value):
            raise InputError(f"{name}.{key}: {value!r} is not possible; it must be {rule}")


def check_choices(section: object, name: str) -> None:
    """Refuse a value that is not among the choices of its `Literal` field (Python does not check types itself)."""
    for key, hint in get_type_hints(type(section)).items():
        if get_origin(hint) is Literal:
            check_fields(section, name, f"one of {', '.join(map(str, get_args(hint)))}", get_args(hint).__contains__, key)


def is_positive(value: float) -> bool:
    return 0 < value < math.inf


def is_not_negative(value: float) -> bool:
    return 0 <= value < math.inf


def is_fraction(value: float) -> bool:
    return 0 <= value <= 1


def is_count(value: int) -> bool:
    return value >= 1


def is_name_or_none(value: str | None) -> bool:
    """Refuse also "true" and "false", by which a switch was meant."""
    return value is None or bool(value.strip()) and value.lower() not in ("true", "false")
