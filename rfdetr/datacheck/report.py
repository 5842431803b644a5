"""The check of a data set as text for a terminal and as plain values for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rfdetr.data.findings import MAX_EXAMPLES, Finding
from rfdetr.datacheck.dataset_check import DatasetCheck

MAX_CLASSES = 30  # in the text; the JSON has all
MAX_DETAILED = 6  # kinds of findings; more of them get a line each
LINE_LENGTH = 160
SEVERITIES = {"error": "ERRORS, which would break or falsify training", "warning": "WARNINGS, worth a look", "info": "NOTES"}
FIXES = {"leaves": "", "repairs": "; --fix repairs them", "drops": "; --fix leaves them out"}


def to_dict(check: DatasetCheck) -> dict[str, Any]:
    """Return everything as plain values."""
    return {
        "dataset_dir": str(check.dataset_dir), "format": check.format, "input_size": list(check.input_size),
        "num_queries": check.num_queries, "splits": {name: asdict(numbers) for name, numbers in check.statistics.items()},
        "findings": [{"name": found.name, "split": found.split, **found.kind._asdict(), "count": found.count,
                      "examples": found.examples} for found in check.findings],
    }


def to_text(check: DatasetCheck) -> str:
    """Return the report for a terminal."""
    height, width = check.input_size
    head = f"{check.dataset_dir}: format {check.format}, input {width} x {height} pixels, {check.num_queries} queries"
    by_kind: dict[str, list[Finding]] = {}
    for found in check.findings:
        by_kind.setdefault(found.name, []).append(found)
    findings = list(map(_kind, by_kind.values())) if len(by_kind) <= MAX_DETAILED else _lines(list(by_kind.values()))
    return "\n\n".join([head, *findings, *_numbers(check), _summary(check)])


def has_errors(check: DatasetCheck) -> bool:
    """Tell whether something would break or falsify training."""
    return any(found.kind.severity == "error" for found in check.findings)


def _numbers(check: DatasetCheck) -> list[str]:
    statistics = check.statistics
    if not statistics:
        return []
    rows = [["", *statistics]]
    for title, value in {
        "images": lambda s: f"{s.images}", "  without boxes": lambda s: f"{s.background_images}",
        "boxes": lambda s: f"{s.boxes}", "  crowd regions beside them": lambda s: f"{s.crowds}",
        "  large, from 96 x 96 pixels": lambda s: f"{s.box_sizes['large']:.1%}",
        "  medium": lambda s: f"{s.box_sizes['medium']:.1%}",
        "  small, below 32 x 32": lambda s: f"{s.box_sizes['small']:.1%}",
        "    of them tiny, below 8 x 8": lambda s: f"{s.box_sizes['tiny']:.1%}",
        "objects an image, median": lambda s: f"{s.median_objects:g}", "objects an image, most": lambda s: f"{s.max_objects}",
        "memory of the annotations, MB": lambda s: f"{s.memory_mb:.1f}",
    }.items():
        rows.append([title, *map(value, statistics.values())])
    return [_table(rows), *_classes({name: numbers.class_counts for name, numbers in statistics.items()})]


def _classes(counts: dict[str, dict[str, int]]) -> list[str]:
    names = sorted(counts.get("train", {}), key=lambda name: -counts["train"][name])
    if not names:
        return []
    shown = names if len(names) <= MAX_CLASSES else names[: MAX_CLASSES // 2] + names[-MAX_CLASSES // 2 :]
    rows = [["boxes of each class", *counts]]
    rows += [["  " + name, *(str(split[name]) for split in counts.values())] for name in shown]
    if len(shown) < len(names):
        rows.insert(1 + MAX_CLASSES // 2, [f"  ({len(names) - len(shown)} classes between)", *[""] * len(counts)])
    return [_table(rows)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(max(8, width)) for cell, width in zip(row[1:], widths[1:]))]
                               ).rstrip() for row in rows)


def _kind(findings: list[Finding]) -> str:
    """Say what there is of one kind in all splits."""
    kind = findings[0].kind
    lines = [f"{kind.severity.upper():<8}{kind.text}: {_counts(findings)}"]
    for found in findings:
        lines += [f"    {found.split}: {example}" for example in found.examples]
        if len(found.examples) == MAX_EXAMPLES < found.count:
            lines.append(f"    {found.split}: and so on")
    return "\n".join([*lines, f"  > {kind.advice}{FIXES[kind.fix]}"])


def _lines(kinds: list[list[Finding]]) -> list[str]:
    """Give each kind one line, with its counts and an example, under its severity."""
    width = max(len(_counts(findings)) for findings in kinds)
    blocks = []
    for severity, title in SEVERITIES.items():
        lines = [f"  {_counts(findings):<{width}}  {findings[0].kind.text}: {findings[0].examples[0]}"
                 for findings in kinds if findings[0].kind.severity == severity]
        if lines:
            lines = [line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH - 3]}..." for line in lines]
            blocks.append("\n".join([title, *lines]))
    fixes = [findings[0].kind.fix for findings in kinds]
    advice = (f"--fix repairs {fixes.count('repairs')} of these kinds and leaves out what {fixes.count('drops')} are about; "
              "more examples, and what to do about each, are in check.json of --output")
    return [*blocks, advice]


def _counts(findings: list[Finding]) -> str:
    return ", ".join(f"{found.split} {found.count}" for found in findings)


def _summary(check: DatasetCheck) -> str:
    counts = {severity: len({found.name for found in check.findings if found.kind.severity == severity})
              for severity in SEVERITIES}
    if not any(counts.values()):
        return "nothing found"
    parts = [f"{counts['error']} errors (would break or falsify training)", f"{counts['warning']} warnings (worth a look)",
             f"{counts['info']} notes"]
    return "kinds of findings: " + ", ".join(parts)
