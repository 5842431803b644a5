"""Whether torch and torchvision, which everything else needs, fit each other."""

import importlib
from importlib import metadata

from rfdetr.errors import InputError


def check_installation() -> None:
    """Say in one message what is wrong when torch and torchvision do not load together.

    Raises:
        InputError: they do not.
    """
    try:
        importlib.import_module("torch")
        importlib.import_module("torchvision")
    except Exception as error:  # a torchvision made for another torch fails with ImportError, OSError, RuntimeError, ...
        versions = {name: installed_version(name) for name in ("torch", "torchvision")}
        raise InputError(
            f"torch {versions['torch']} and torchvision {versions['torchvision']} do not load together "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). They have to be a matching pair; "
            "install one with: pip install --upgrade --force-reinstall torch torchvision"
        ) from error


def installed_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed as a package"
