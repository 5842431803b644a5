"""Names of image files as annotations write them."""

import os

MAX_NAME = 4096  # bytes; systems allow no more


def is_possible(name: object) -> bool:
    """Tell whether a file can have this name."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) <= MAX_NAME
    except UnicodeEncodeError:  # half a character, as "\ud800" in JSON
        return False
