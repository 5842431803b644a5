"""Write the README's tables of all options: ``python tests/tools/options_table.py [--write README.md]``.

They are made from the dataclasses of the configuration: name, default, and the text below each field.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from rfdetr.errors import InputError
from rfdetr.training.command_line import ExitCode, run_tool
from rfdetr.training.config import RunConfig

START, END = "<!-- options: made by tests/tools/options_table.py -->", "<!-- end of options -->"


def options_table() -> str:
    """Return Markdown that folds: a table for each section of the configuration."""
    return "\n\n".join(_section(section.name, type(section.default)) for section in fields(RunConfig)
                       if is_dataclass(section.default))


def put_into(text: str, table: str, name: str) -> str:
    """Return the text of a file with the table between its two marks.

    Args:
        name: of the file, for messages.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise InputError(f"{name}: has to hold the lines {START} and {END}, between which the table belongs")
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


def _section(name: str, section: type) -> str:
    documentation = parse_from_object(section)
    texts = {parameter.arg_name: parameter.description for parameter in documentation.params}
    hints = get_type_hints(section)
    rows = [f"| `{option.name}` | {_default(option, hints[option.name])} | {_cell(texts[option.name])} |"
            for option in fields(section)]
    summary = f"<summary><code>{name}</code>: {_lower_first(documentation.short_description)}</summary>"
    return "\n".join([f"<details>{summary}", "", "| option | default | |", "|---|---|---|", *rows, "", "</details>"])


def _default(option: Field, hint: Any) -> str:
    """Write a default as YAML would have it, and beside it what else there is to choose."""
    value = option.default_factory() if option.default is MISSING else option.default
    text = f"`{value if isinstance(value, str) else json.dumps(value)}`"
    others = [f"`{choice}`" for choice in get_args(hint) if choice != value] if get_origin(hint) is Literal else []
    return f"{text} or {', '.join(others)}" if others else text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _lower_first(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Print the tables, or put them into a file."""
    parser = argparse.ArgumentParser(description="Make the tables of all options.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace what is between the two marks of this file")
    path = parser.parse_args(argv).write
    if path is None:
        sys.stdout.write(options_table() + "\n")
    elif not path.is_file():
        raise InputError(f"--write {path}: there is no such file")
    else:
        path.write_text(put_into(path.read_text(encoding="utf-8"), options_table(), str(path)), encoding="utf-8")
    return ExitCode.DONE


if __name__ == "__main__":
    run_tool(main)
