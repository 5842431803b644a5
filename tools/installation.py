"""Imported before anything else by every tool: says in one message what is wrong when torch and torchvision do not fit."""

import sys
from importlib import metadata

try:
    import torch  # noqa: F401
    import torchvision  # noqa: F401
except Exception as error:  # a torchvision made for another torch fails with ImportError, OSError, RuntimeError, ...
    versions = {name: "" for name in ("torch", "torchvision")}
    for name in versions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    print(
        f"error: torch {versions['torch']} and torchvision {versions['torchvision']} do not load together "
        f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). They have to be a matching pair; "
        "install one with: pip install --upgrade --force-reinstall torch torchvision",
        file=sys.stderr,
    )
    sys.exit(2)
