"""What is imported only where it is needed: packages of some of the work, and classes that a configuration names."""

import importlib
from importlib import metadata
from types import ModuleType
from typing import Any

from rfdetr.errors import InputError


def import_extra(package: str, extra: str, what: str) -> ModuleType:
    """Import a package of an extra of this project; `what` begins the message where it is missing.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{what} is not installed; pip install {package}, or this project with it: "
                         f'pip install -e ".[{extra}]"') from error


def import_named(path: str, option: str) -> Any:
    """Import ``package.module.Class``; `option` begins the message where that fails.

    Raises:
        InputError: there is no such thing, or its module fails.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's own module may raise anything
        raise InputError(f"{option}: cannot import {path!r}: {' '.join(str(error).split())}; give it as "
                         "package.module.Class") from error


def installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # ours, where it is run from its folder
        return "(not installed)"
