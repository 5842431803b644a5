"""HTML and SVG that cannot be broken by what is put into them: every text is escaped, unless it is `Html` already."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

VOID = ("br", "input", "image", "rect", "circle", "line", "polyline", "use", "meta", "link")


class Html(str):
    """Text that is markup already."""


def tag(element: str, *content: Any, **attributes: Any) -> Html:
    """Return an element; ``class_`` stands for class, ``data_x`` for data-x; attributes that are None are left out."""
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    shown = "".join(f' {name}="{html.escape(str(value))}"' for name, value in given.items())
    if element in VOID and not content:
        return Html(f"<{element}{shown}/>")
    return Html(f"<{element}{shown}>{joined(content)}</{element}>")


def joined(parts: Iterable[Any]) -> Html:
    """Put parts after one another; None is nothing."""
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts if part is not None))


def section(title: str, *content: Any) -> Html:
    """Return a part of the page under its title."""
    return tag("section", tag("h2", title), *content)


def number(value: Any, digits: int = 3) -> str:
    """Show a number for a person; "-" for what is missing, not finite, or COCO's -1, "nothing to evaluate"."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value == -1:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def duration(seconds: Any) -> str:
    """Show seconds as a person says them."""
    if not isinstance(seconds, (int, float)):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def table(
    heads: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str, sortable: bool = False, attributes: Any = None
) -> Html:
    """Return a table whose first column names the rows.

    Args:
        sortable: give each head a button that sorts.
        attributes: those of the row's element, by the number of the row.
    """
    rows = list(rows)
    kinds = [None, *("number" if all(map(_is_number, column)) else None for column in list(zip(*rows))[1:])]
    kinds += [None] * (len(heads) - len(kinds))
    head = [tag("th", tag("button", text, type="button") if sortable else text, scope="col", class_=kind,
                aria_sort="none" if sortable else None) for text, kind in zip(heads, kinds)]
    body = [tag("tr", tag("th", first, scope="row"), *(tag("td", cell, class_=kind) for cell, kind in zip(cells, kinds[1:])),
                **(attributes(place) if attributes else {})) for place, (first, *cells) in enumerate(rows)]
    made = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="sortable" if sortable else None)
    return joined([tag("p", caption, class_="caption"), tag("div", made, class_="scroll", tabindex="0", role="region",
                                                            aria_label=caption)])


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Html) and (value == "-" or value[:1].isdigit())
