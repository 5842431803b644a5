"""The command ``rfdetr``, and the way into it for the files in tools/."""

from rfdetr.training.command_line import run_tool
from rfdetr.training.commands import COMMANDS, main

__all__ = ["main", "run"]


def run(command: str) -> None:
    """Run one command with the words of the command line, and exit with its code."""
    run_tool(lambda: COMMANDS[command](None))
