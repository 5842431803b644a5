"""Names of a package that are imported when they are first asked for, so that a command line answers before torch is loaded."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__all__``, ``__getattr__`` and ``__dir__`` for a package.

    Args:
        package: its ``__name__``.
        homes: module inside of it -> the names that come from there.
    """
    home_of = {name: f"{package}.{home}" for home, names in homes.items() for name in names}
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = found = getattr(importlib.import_module(home_of[name]), name)
        return found

    return sorted(home_of), get, lambda: sorted({*namespace, *home_of})
