"""The command ``rfdetr``, and the way into it for the files in tools/; imports nothing heavy before it is certain to fit."""

import importlib
import sys
from importlib import metadata


def main() -> None:
    """Run the command that the first word names: the entry point of ``rfdetr``."""
    _check_installation()
    importlib.import_module("rfdetr.training.commands").main()


def run(command: str) -> None:
    """Run one command with the words of the command line, and exit with its code."""
    _check_installation()
    commands = importlib.import_module("rfdetr.training.commands")
    importlib.import_module("rfdetr.training.command_line").run_tool(commands.COMMANDS[command])


def _check_installation() -> None:
    """Say in one message what is wrong when torch and torchvision do not fit."""
    try:
        importlib.import_module("torch")
        importlib.import_module("torchvision")
    except Exception as error:  # a torchvision made for another torch fails with ImportError, OSError, RuntimeError, ...
        versions = {name: _version(name) for name in ("torch", "torchvision")}
        sys.stderr.write(
            f"error: torch {versions['torch']} and torchvision {versions['torchvision']} do not load together "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). They have to be a matching pair; "
            "install one with: pip install --upgrade --force-reinstall torch torchvision\n"
        )
        sys.exit(2)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
