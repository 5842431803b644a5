"""Packages that only some of the work needs, imported where it is done."""

import importlib
from types import ModuleType

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
