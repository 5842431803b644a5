"""The reference's tables of options: current, complete, and written where the marks are."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import options_table
import pytest

from rfdetr.errors import InputError
from rfdetr.training.command_line import ExitCode
from rfdetr.training.config import RunConfig

REFERENCE = Path(__file__).parents[2] / "tools" / "REFERENCE.md"


def test_the_reference_is_current():
    text = REFERENCE.read_text(encoding="utf-8")
    current = options_table.updated(text, "REFERENCE.md")
    assert text == current, "the tables have changed: run `python tests/tools/options_table.py --write tools/REFERENCE.md`"


def test_every_option_has_a_row_with_its_default_and_its_text():
    rows = [line for line in options_table.options_table().splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(fields(section.default)) for section in fields(RunConfig) if is_dataclass(section.default))
    assert "| `clip_max_norm` | `0.1` | Gradients are scaled down to this global L2 norm; 0 does not clip. |" in rows
    assert "| `optimizer_args` | `{}` | Further arguments of the optimizer, such as betas. |" in rows
    assert "| `normalize` | `batch` or `window` | " in "\n".join(rows)
    assert any(row.startswith("| `monitor` | `null` | ") and "AP/&lt;class>" in row for row in rows)


def test_what_is_between_the_marks_is_replaced_and_nothing_else(tmp_path, capsys):
    path = tmp_path / "REFERENCE.md"
    path.write_text(f"before\n{options_table.START}\nan older table\n{options_table.END}\nbetween\n"
                    f"{options_table.FINDINGS_START}\nan older table\n{options_table.FINDINGS_END}\nafter\n")
    assert options_table.main(["--write", str(path)]) == ExitCode.DONE
    written = path.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "an older table" not in written
    assert options_table.main([]) == ExitCode.DONE
    assert all(line in written for line in capsys.readouterr().out.splitlines())


def test_a_file_without_marks_is_left_alone(tmp_path):
    path = tmp_path / "REFERENCE.md"
    path.write_text("no marks")
    with pytest.raises(InputError, match="has to hold the lines <!-- options"):
        options_table.main(["--write", str(path)])
    assert path.read_text() == "no marks"
    with pytest.raises(InputError, match="no such file"):
        options_table.main(["--write", str(tmp_path / "nowhere")])
