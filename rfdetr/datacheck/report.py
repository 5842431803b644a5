"""The check of a data set as text for a terminal and as plain values for JSON."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rfdetr.data.findings import MAX_EXAMPLES, Finding
from rfdetr.datacheck.dataset_check import KINDS as KINDS_OF_SPLITS
from rfdetr.datacheck.dataset_check import DatasetCheck
from rfdetr.datacheck.statistics import SplitStatistics

MAX_DETAILED = 6  # kinds of findings; more of them get a line each
LINE_LENGTH = 120
CLASS_LINES = 4  # of the numbers of boxes; the JSON has all
SEVERITIES = {"error": "ERRORS, which would break or falsify training", "warning": "WARNINGS, worth a look", "info": "NOTES"}
FIXES = {"leaves": "", "repairs": "; --fix repairs them", "drops": "; --fix leaves them out"}
MARKS = {"leaves": " ", "repairs": "*", "drops": "-"}  # of what --fix does, where a kind has a line
COLUMNS = {  # of the numbers of a split
    "images": lambda s: f"{s.images}", "empty": lambda s: f"{s.background_images}", "boxes": lambda s: f"{s.boxes}",
    "crowds": lambda s: f"{s.crowds}", "large >96": lambda s: f"{s.box_sizes['large']:.1%}",
    "medium": lambda s: f"{s.box_sizes['medium']:.1%}", "small <32": lambda s: f"{s.box_sizes['small']:.1%}",
    "tiny <8": lambda s: f"{s.box_sizes['tiny']:.1%}",
    "objects an image": lambda s: f"{s.median_objects:g}, most {s.max_objects}", "memory": lambda s: f"{s.memory_mb:.1f} MB",
}  # fmt: skip


def to_dict(check: DatasetCheck) -> dict[str, Any]:
    """Return everything as plain values."""
    return {
        "dataset_dir": str(check.dataset_dir), "format": check.format, "input_size": list(check.input_size),
        "num_queries": check.num_queries, "splits": {name: asdict(numbers) for name, numbers in check.statistics.items()},
        "findings": [{"name": found.name, "split": found.split, **found.kind._asdict(), "count": found.count,
                      "examples": found.examples} for found in check.findings],
    }


def to_text(check: DatasetCheck) -> str:
    """Return the report for a terminal: some kinds of findings in full, or many with a line each, on one screen."""
    height, width = check.input_size
    head = f"{check.dataset_dir}: format {check.format}, input {width} x {height} pixels, {check.num_queries} queries"
    by_kind: dict[str, list[Finding]] = {}
    for found in check.findings:
        by_kind.setdefault(found.name, []).append(found)
    kinds = sorted(by_kind.values(), key=_rank)
    findings = list(map(_kind, kinds)) if len(kinds) <= MAX_DETAILED else _lines(kinds, f"{check.dataset_dir}/")
    return "\n\n".join([head, *findings, *_numbers(check.statistics), _summary(kinds)])


def has_errors(check: DatasetCheck) -> bool:
    """Tell whether something would break or falsify training."""
    return any(found.kind.severity == "error" for found in check.findings)


def _rank(findings: list[Finding]) -> tuple:
    """Order kinds: the gravest first, of these what is about whole splits, then what there is most of."""
    severity = list(SEVERITIES).index(findings[0].kind.severity)
    return severity, findings[0].name not in KINDS_OF_SPLITS, -sum(found.count for found in findings)


def _numbers(statistics: dict[str, SplitStatistics]) -> list[str]:
    """Give each split a line, and the classes some more."""
    rows = [["", *COLUMNS], *([name, *(value(numbers) for value in COLUMNS.values())] for name, numbers in statistics.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    table = ["  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(zip(row, widths)))
             for row in rows]
    counts = {name: numbers.class_counts for name, numbers in statistics.items() if numbers.class_counts}
    names = sorted(counts.get("train", {}), key=lambda name: -counts["train"][name])
    if names:
        classes = [f"{name or '(no name)'} {', '.join(str(of_class[name]) for of_class in counts.values())}" for name in names]
        text = f"boxes of each class ({', '.join(counts)}): {'; '.join(classes)}"
        table += textwrap.wrap(text, LINE_LENGTH, max_lines=CLASS_LINES, placeholder=f" ... ({len(names)} classes)",
                               subsequent_indent="  ", break_long_words=True)
    return ["\n".join(table)] if statistics else []


def _kind(findings: list[Finding]) -> str:
    """Say what there is of one kind in all splits."""
    kind = findings[0].kind
    lines = [f"{kind.severity.upper():<8}{kind.text}: {_counts(findings)}"]
    for found in findings:
        lines += [f"    {found.split}: {example}" for example in found.examples]
        if len(found.examples) == MAX_EXAMPLES < found.count:
            lines.append(f"    {found.split}: and so on")
    return "\n".join([*lines, f"  > {kind.advice}{FIXES[kind.fix]}"])


def _lines(kinds: list[list[Finding]], folder: str) -> list[str]:
    """Give each kind one line, with its counts and an example (names of files relative to `folder`), under its severity."""
    width = max(len(_counts(findings)) for findings in kinds)
    blocks = []
    for severity, title in SEVERITIES.items():
        lines = [f"{MARKS[findings[0].kind.fix]} {_counts(findings):<{width}}  {findings[0].kind.text}: {findings[0].examples[0]}"
                 for findings in kinds if findings[0].kind.severity == severity]
        if lines:
            lines = [line.replace(folder, "") for line in lines]
            lines = [line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH - 3]}..." for line in lines]
            blocks.append("\n".join([title, *lines]))
    return [*blocks, "--fix FOLDER repairs * and leaves out -; more examples and what to do: check.json, by --output FOLDER"]


def _counts(findings: Sequence[Finding]) -> str:
    return ", ".join(f"{found.split} {found.count}" for found in findings)


def _summary(kinds: list[list[Finding]]) -> str:
    found = [findings[0].kind.severity for findings in kinds]
    if not found:
        return "nothing found"
    return (f"kinds of findings: {found.count('error')} errors (would break or falsify training), "
            f"{found.count('warning')} warnings (worth a look), {found.count('info')} notes")
