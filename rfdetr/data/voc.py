"""Read one annotation file of Pascal VOC: XML with the objects of a picture.

VOC's own files count pixels from 1 and mean the last one included, so 1 is taken off xmin and ymin there: a box from 1 to the
width covers the picture. They are known by their <database>, "The VOC2007 Database". LabelImg, CVAT, Roboflow and other programs
write edges in pixels, counted from 0, which are read as they stand. What VOC's evaluation ignores as difficult is a crowd here,
which training leaves out and evaluation does not count. Documents with a DOCTYPE are refused: nothing is fetched or unfolded.
"""

import re
from array import array
from pathlib import Path
from typing import Any
from xml.parsers import expat

from rfdetr.data.picture_notes import NoteError, PictureNote
from rfdetr.values import number, whole_number

OFFICIAL = re.compile(r"VOC\s*(19|20)\d\d", re.I)  # in <database>
SIDES = ("xmin", "ymin", "xmax", "ymax")
ROOT = re.compile(rb"<annotation[\s>]")
HEAD = 4096  # bytes that a file is recognised by


class Element:
    """An element of an XML document, its text, and the line where it begins."""

    def __init__(self, tag: str, line: int) -> None:
        self.tag, self.line, self.text, self.children = tag, line, "", []

    def all(self, tag: str) -> list["Element"]:
        return [child for child in self.children if child.tag == tag]

    def value(self, *tags: str) -> str:
        """Return the text of the first child of this name, of its child and so on; "" where there is none."""
        found = self
        for tag in tags:
            found = next(iter(found.all(tag)), Element(tag, 0))
        return found.text.strip()


def looks_like_voc(path: Path) -> bool:
    """Tell from its beginning whether a file is one of VOC's."""
    with open(path, "rb") as file:
        return ROOT.search(file.read(HEAD)) is not None


def read_voc(path: Path) -> PictureNote | None:
    """Return what a file says of its picture; None for other XML.

    Raises:
        NoteError: it is not well-formed; says in which line.
    """
    root = parse_xml(path.read_bytes())
    if root.tag != "annotation":
        return None
    sides = [whole_number(root.value("size", side)) or 0 for side in ("height", "width")]
    origin = 1.0 if OFFICIAL.search(root.value("source", "database")) else 0.0
    objects = [_object(element, f"{path.name}:{element.line}", origin) for element in root.all("object")]
    return PictureNote(root.value("filename"), tuple(sides) if min(sides) > 0 else None, objects)


def _object(element: Element, place: str, origin: float) -> dict[str, Any]:
    entry = {"id": place, "class": element.value("name"), "difficult": element.value("difficult") or 0}
    entry["iscrowd"] = int(entry["difficult"] == "1")
    for box in element.all("bndbox")[:1]:
        given = [number(box.value(side)) for side in SIDES]
        if None in given:
            entry["bbox"] = [box.value(side) for side in SIDES]  # for the message
        else:
            left, top, right, bottom = given[0] - origin, given[1] - origin, *given[2:]
            entry["bbox"] = [left, top, right - left, bottom - top]
    for polygon in element.all("polygon")[:1]:  # Roboflow's: <x1>, <y1>, <x2>, ...
        numbers = [number(child.text) for child in polygon.children]
        if None not in numbers and [child.tag[:1] for child in polygon.children] == ["x", "y"] * (len(numbers) // 2):
            entry["segmentation"] = [array("d", numbers)]
    return entry


def parse_xml(content: bytes) -> Element:
    """Return the outermost element of a document."""
    parser = expat.ParserCreate()
    top = Element("", 0)
    path = [top]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        path[-1].children.append(element)
        path.append(element)
        if len(path) > 100:
            raise NoteError(f"line {parser.CurrentLineNumber}: elements within elements without an end")

    def text(part: str) -> None:
        path[-1].text += part

    def refuse(*declared: Any) -> None:
        raise NoteError(f"line {parser.CurrentLineNumber}: it has a DOCTYPE, which these files have not")

    parser.StartElementHandler, parser.EndElementHandler = start, lambda tag: path.pop()
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, refuse
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # of an encoding too
        if isinstance(error, NoteError):
            raise
        raise NoteError(f"not well-formed XML ({error})") from None
    return top.children[0]
