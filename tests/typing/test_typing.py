"""What a type checker makes of the public names, and of the modules behind them (setup.cfg says which)."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[2]
WRONG = Path(__file__).parent / "wrong_uses.py"


def mypy(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", "setup.cfg", "--no-error-summary", "--no-color-output",
                           *arguments], capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode < 2, done.stderr
    return done.stdout


def test_public_modules_and_right_uses_have_no_errors():
    assert mypy() == ""


def test_each_wrong_use_is_found_and_nothing_else():
    lines = WRONG.read_text(encoding="utf-8").splitlines()
    expected = [number for number, line in enumerate(lines, start=1) if line.endswith("# wrong")]
    found = mypy(str(WRONG))
    assert sorted({int(line.split(":")[1]) for line in found.splitlines() if ": error: " in line}) == expected, found


def test_the_packages_say_that_they_have_types():
    assert all((ROOT / package / "py.typed").is_file() for package in ("engine", "hooks", "rfdetr"))
