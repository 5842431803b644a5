"""Packages that only exporting, or running exported files, needs."""

import importlib
from types import ModuleType

from rfdetr.errors import InputError


def require(name: str) -> ModuleType:
    """Import a package of the extra `onnx`.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"the package {name}, which ONNX files need, is not installed; pip install {name}, or this project with "
                         'it: pip install -e ".[onnx]"') from error
