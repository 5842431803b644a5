"""The page for those who come from other trainers: current, and what it names is there."""

import ast
import importlib
import inspect
import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import migrating_page
import pytest
from test_every_option import OPTIONS

import hooks
from rfdetr.training.command_line import ExitCode
from rfdetr.training.commands import COMMANDS
from rfdetr.training.config import RunConfig

ROOT = Path(__file__).parents[2]
LINES = [line for lines in migrating_page.all_lines().values() for line in lines]
SECTIONS = "|".join(section.name for section in fields(RunConfig) if is_dataclass(section.default))


@cache
def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}


def test_it_is_current(tmp_path):
    assert migrating_page.main(["--write", str(tmp_path / "page.md")]) == ExitCode.DONE
    shown = (ROOT / "tools" / "MIGRATING.md").read_text(encoding="utf-8")
    assert shown == migrating_page.page() == (tmp_path / "page.md").read_text(encoding="utf-8"), (
        "the tables have changed: run `python tests/tools/migrating_page.py --write tools/MIGRATING.md`")


def resolve(dotted: str) -> object:
    """Import what a name with dots stands for."""
    package, *names = dotted.split(".")
    found = importlib.import_module(package)
    for name in names:
        package = f"{package}.{name}"
        found = getattr(found, name) if hasattr(found, name) else importlib.import_module(package)
    return found


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.theirs[:40])
def test_what_a_row_names_is_there(line):
    path, _, function = line.test.partition("::")
    name, _, option = function.rstrip("]").partition("[")
    assert name in functions_of(ROOT / path), line.test
    assert not option or option in OPTIONS, line.test
    text = f"{line.ours} {line.note}"
    found = {match for match in re.findall(rf"\b(?:{SECTIONS})\.[a-z_]+\b", re.sub(r"\b[\w/]+\.\w+\.\w[\w.]*", "", text))
             if not match.endswith((".pth", ".yaml", ".md"))}
    assert found <= set(OPTIONS) | {"data.yaml"}, found - set(OPTIONS)
    assert set(re.findall(r"\brfdetr ([a-z]+)", line.ours)) <= COMMANDS.keys()
    for dotted in re.findall(r"\b(?:rfdetr|engine|hooks)(?:\.\w+)+", line.ours):
        assert resolve(dotted) is not None, dotted
    for hook, arguments in re.findall(r"hooks\.(\w+)\(([^)]*)\)", line.ours):
        assert set(re.findall(r"\w+", arguments)) <= set(inspect.signature(getattr(hooks, hook)).parameters), hook
