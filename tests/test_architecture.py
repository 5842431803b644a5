"""The shape of the source: who imports whom, how long files and functions are, which packages are installed."""

import ast
import configparser
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from engine import HOOK_POINTS
from hooks import DropPathHook, EarlyStopHook, EMAHook
from rfdetr.training.config import RunConfig

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "hooks", "rfdetr", "tools")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_IMPORT_RFDETR = {"coco_eval.py"}  # of the hooks

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported_modules(tree: ast.Module) -> set[str]:
    """Return the absolute names of all imported modules, those of type checkers left out."""
    hidden = {inner for node in ast.walk(tree) if is_type_checking(node) for inner in ast.walk(node)}
    modules = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            modules.add(node.module)
    return modules


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_scan_sees_the_packages():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@every_file
def test_import_arrows(path):
    package, *rest = path.relative_to(ROOT).parts
    modules = imported_modules(parse(path))
    tops = {module.split(".")[0] for module in modules}
    is_training = package == "rfdetr" and rest[0] == "training"
    if package == "engine":
        assert tops <= {"engine", "torch"} | sys.stdlib_module_names
    elif package == "hooks":
        assert not tops & ({"tools", "jsonargparse"} | (set() if path.name in MAY_IMPORT_RFDETR else {"rfdetr"}))
    elif package == "rfdetr":
        assert not tops & ({"tools"} if is_training else {"tools", "engine", "hooks", "jsonargparse"})
    if package != "tools" and not is_training:
        assert not [module for module in modules if module.startswith("rfdetr.training")]


def test_the_detector_alone_imports_no_loop():
    code = "import rfdetr, sys; rfdetr.build_model; print(sorted({'engine', 'hooks', 'jsonargparse'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_configurations_are_taken_apart_in_few_places():
    """Everywhere else plain values are passed; but a ModelConfig travels in checkpoints."""
    allowed = {"rfdetr/build.py", "rfdetr/config.py"}
    for path in FILES:
        place = path.relative_to(ROOT)
        if place.parts[:2] not in (("rfdetr", "weights"), ("rfdetr", "training")) and place.as_posix() not in allowed:
            assert not imported_modules(parse(path)) & {"rfdetr.config", "rfdetr.losses.config"}, place


def test_no_import_cycles():
    names = {module_name(path): path for path in FILES}
    graph = {name: imported_modules(parse(path)) & set(names) for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the cycle


@every_file
def test_length_and_first_line(path):
    tree = parse(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    if path.read_text(encoding="utf-8"):
        assert ast.get_docstring(tree), "the first line says what a file is for"
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [f.name for f in functions if f.end_lineno - f.lineno + 1 > 60] == []


def test_the_readme_has_a_row_for_every_hook_point():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "hooks" / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [row for row in rows if row.startswith(("before_", "after_"))] == list(HOOK_POINTS)


def test_setup_cfg_lists_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["packages"].split()
    folders = {module_name(path) for path in FILES if path.name == "__init__.py"}
    assert sorted(listed) == sorted(folders)


def test_every_field_of_the_configuration_is_read():
    sources = [ROOT / "rfdetr" / "build.py", *(ROOT / "rfdetr" / "training").glob("*.py")]
    read = {
        node.attr
        for path in sources
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    sections = {section: type(default) for section, default in vars(RunConfig()).items() if section != "hooks"}
    fields = {f"{section}.{field}" for section, cls in sections.items() for field in cls.__dataclass_fields__}
    whole = {"ema": EMAHook, "drop": DropPathHook, "early_stopping": EarlyStopHook}  # sections that are a hook's arguments
    given = {f"{section}.{name}" for section, hook in whole.items() for name in inspect.signature(hook).parameters}
    assert {field for field in fields - given if field.split(".")[1] not in read} == set()
