"""Write the tables of all options and findings: ``python tests/tools/options_table.py [--write tools/REFERENCE.md]``.

They are made from the dataclasses of the configuration (name, default, the text below each field) and from the kinds of findings.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from rfdetr.datacheck.kinds import all_kinds
from rfdetr.errors import InputError
from rfdetr.training.command_line import ExitCode, run_tool
from rfdetr.training.config import RunConfig

START, END = "<!-- options: made by tests/tools/options_table.py -->", "<!-- end of options -->"
FINDINGS_START, FINDINGS_END = "<!-- findings: made by tests/tools/options_table.py -->", "<!-- end of findings -->"
SEVERITIES = ("error", "warning", "info")


def findings_table() -> str:
    """Return Markdown: a row for each kind of finding, the gravest first."""
    kinds = sorted(all_kinds().items(), key=lambda item: (SEVERITIES.index(item[1].severity), item[1].group, item[0]))
    rows = [f"| `{name}` | {kind.severity} | {_cell(kind.text)} | {_cell(kind.advice)} | {kind.fix} |" for name, kind in kinds]
    head = f"<details><summary>All {len(kinds)} kinds of findings</summary>"
    columns = ["| name | severity | what | what to do | `--fix` |", "|---|---|---|---|---|"]
    return "\n".join([head, "", *columns, *rows, "", "</details>"])


def updated(text: str, name: str) -> str:
    """Return the text of a page with current tables; `name` is for messages."""
    text = put_into(text, options_table(), name)
    return put_into(text, findings_table(), name, FINDINGS_START, FINDINGS_END)


def options_table() -> str:
    """Return Markdown that folds: a table for each section of the configuration."""
    return "\n\n".join(_section(section.name, type(section.default)) for section in fields(RunConfig)
                       if is_dataclass(section.default))


def put_into(text: str, table: str, name: str, first: str = START, last: str = END) -> str:
    """Return the text of a file with the table between its two marks.

    Args:
        name: of the file, for messages.
    """
    before, start, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not start or not end:
        raise InputError(f"{name}: has to hold the lines {first} and {last}, between which the table belongs")
    return f"{before}{first}\n\n{table}\n\n{last}{after}"


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
        sys.stdout.write(f"{options_table()}\n\n{findings_table()}\n")
    elif not path.is_file():
        raise InputError(f"--write {path}: there is no such file")
    else:
        path.write_text(updated(path.read_text(encoding="utf-8"), str(path)), encoding="utf-8")
    return ExitCode.DONE


if __name__ == "__main__":
    run_tool(main)
