"""What is wrong or remarkable in a data set, one finding for each kind of dirt with its count and a few examples.

Readers and the data set check add to a `Findings`; training refuses the errors in it and logs the rest.
"""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rfdetr.errors import InputError, printable

MAX_EXAMPLES = 5
BRIEF = 100  # characters of the example in a log line

logger = logging.getLogger(__name__)

Severity = Literal["error", "warning", "info"]  # would break or falsify training; worth a look; good to know


class Kind(NamedTuple):
    """One kind of dirt."""

    severity: Severity
    group: Literal["files", "classes", "images", "boxes"]
    text: str  # what it is, after the count: "label files without an image"
    advice: str  # what to do about it
    fix: Literal["leaves", "repairs", "drops"] = "leaves"  # what --fix does with such an entry


@dataclass
class Finding:
    """All occurrences of one kind in one split."""

    name: str  # of the kind, such as "class_out_of_range"
    kind: Kind
    split: str
    count: int = 0
    examples: list[str] = field(default_factory=list)  # at most MAX_EXAMPLES, each says where

    def brief(self) -> str:
        """One line for a log."""
        example = self.examples[0] if len(self.examples[0]) <= BRIEF else f"{self.examples[0][:BRIEF]}..."
        return f"{self.split}: {self.count} {self.kind.text}, for example {example}"

    def __str__(self) -> str:
        examples = "; ".join(self.examples) + ("; ..." if self.count > len(self.examples) else "")
        return f"{self.split}: {self.count} {self.kind.text} ({examples}); {self.kind.advice}"


class Findings:
    """Collects findings of a data set, for one split after the other."""

    def __init__(self) -> None:
        self.split = ""  # that new findings belong to
        self._found: dict[tuple[str, str], Finding] = {}

    def add(self, name: str, kind: Kind, examples: str | Iterable[str], count: int | None = None) -> None:
        """Count occurrences of a kind; `count` is the number of examples unless there are more of them than are given."""
        given = [printable(text) for text in ([examples] if isinstance(examples, str) else examples)]
        if not given:
            return
        finding = self._found.setdefault((self.split, name), Finding(name, kind, self.split))
        finding.count += len(given) if count is None else count
        finding.examples += given[: MAX_EXAMPLES - len(finding.examples)]

    def __iter__(self):
        """Go through the findings, the gravest first."""
        order = ("error", "warning", "info")
        return iter(sorted(self._found.values(), key=lambda finding: order.index(finding.kind.severity)))

    def refuse_errors(self, source: object, *, but: Collection[str] = (), split: str | None = None) -> None:
        """Raise if there are errors, with all findings in one message; else log the warnings, and the errors named in `but`.

        Args:
            split: only findings of this one count.
        """
        counted = [finding for finding in self if split in (None, finding.split)]
        if any(finding.kind.severity == "error" and finding.name not in but for finding in counted):
            lines = [f"{finding.kind.severity}: {finding}" for finding in counted]
            raise InputError("\n  ".join([f"{source}: the data set cannot be used as it is:", *lines]))
        for finding in counted:
            if finding.kind.severity == "warning" or finding.name in but:
                logger.warning("%s", finding.brief())
