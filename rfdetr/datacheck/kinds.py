"""All kinds of findings there are, of the readers and of the check: what documentation lists."""

import importlib
import pkgutil

from rfdetr import data, datacheck
from rfdetr.data.findings import Kind


def all_kinds() -> dict[str, Kind]:
    """Collect the `KINDS` of all modules, by name.

    Raises:
        ValueError: two modules have a kind of the same name.
    """
    kinds: dict[str, Kind] = {}
    for package in (data, datacheck):
        for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")):
            for name, kind in getattr(importlib.import_module(module), "KINDS", {}).items():
                if name in kinds:
                    raise ValueError(f"{module}: there is another kind of finding called {name!r}")
                kinds[name] = kind
    return kinds
