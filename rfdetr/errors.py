"""The error for anything a user can put right, and what may be shown of texts that come out of files."""

import difflib
import re
from collections.abc import Sequence

MAX_TEXT = 50_000  # characters of one message
# C0 without tab and newline, DEL, C1, marks that change the direction of writing, lone surrogates
_NOT_FOR_TERMINALS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """Bad input from the user; the message says what is wrong, where it is and what to do about it."""


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return a hint for a message: the same key in another section, or else the most similar name, or all of them."""
    last = name.rsplit(".", 1)[-1]
    elsewhere = [other for other in known if other.rsplit(".", 1)[-1] == last]
    close = difflib.get_close_matches(name, elsewhere or known, n=1, cutoff=0.0 if elsewhere else 0.5)
    return f"did you mean {prefix}{close[0]}?" if close else f"there are: {', '.join(prefix + other for other in known)}"


def printable(text: str) -> str:
    """Return a text that a terminal only shows: control characters escaped, and not endless."""
    shortened = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ... ({len(text):,} characters)"
    return _NOT_FOR_TERMINALS.sub(lambda match: match[0].encode("unicode_escape").decode(), shortened)
