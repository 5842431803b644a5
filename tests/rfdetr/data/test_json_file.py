"""JSON files that are read a window at a time: as Python's own reader has them, with its errors in their places."""

import io
import json
import re

import numpy as np
import pytest

from rfdetr.data import json_file
from rfdetr.data.json_file import parse_json
from rfdetr.errors import InputError

ENTRY = {"id": 12, "bbox": [1.5, 2, 3, 4.25], "segmentation": [[1, 2, 3, 4, 5, 6.5], [0.25] * 6],
         "name": "Kätzchen \" \\ \u2028"}
TEXTS = [
    "{}", ' { "images" : [ ] }\n', '{"images":[1,2.5e1,null,"a"],"info":{"a":[1,2]},"x":-12.5}', '{"info": 123}', '{"a":1,"a":2}',
    json.dumps({"images": [ENTRY] * 3, "info": {"year": 2024}, "categories": []}, indent=1),
    json.dumps({"annotations": [ENTRY, [], {}, {"segmentation": {"size": [1, 2], "counts": "x"}}]}, ensure_ascii=False),
]  # fmt: skip
BAD = [
    "", "{", '{"a" 1}', '{"a": 1,}', '{"images": [1 2]}', '{"images": [\n{"id": 1},\n{"id": }]}', '{"a": 1} x',
    '{"a": tru', "{1: 2}", '{"images": [1,]}', '{"a": "\n"}', '{"images": [{"id": 1}\n, {"id": 2}', '{"a": [1, 2}',
    '\n\n {"a":\n\n 1, b: 2}', "{,}",
]  # fmt: skip


@pytest.fixture(params=[1, 5, 64, 2**22])
def window(request, monkeypatch):
    monkeypatch.setattr(json_file, "WINDOW", max(4, request.param))


def plain(value):
    """Arrays as the lists that they were made of."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) or hasattr(value, "typecode") else value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
@pytest.mark.parametrize("text", TEXTS)
def test_it_reads_what_json_reads(window, text, encoding):
    assert plain(parse_json(io.BytesIO(text.encode(encoding)), "a.json")) == json.loads(text)


@pytest.mark.parametrize("text", BAD)
def test_errors_are_where_json_finds_them(window, text):
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(InputError) as found:
        parse_json(io.BytesIO(text.encode()), "a.json")
    line, column = map(int, re.search(r"line (\d+), column (\d+)", str(found.value)).groups())
    assert line == expected.value.lineno and abs(column - expected.value.colno) <= 1  # Pythons differ at a comma too many


def test_bytes_that_are_no_text_are_named_by_their_place(window):
    with pytest.raises(InputError, match="a.json: not valid JSON, byte 91 is not UTF-8"):
        parse_json(io.BytesIO(b'{"images": "' + b"x" * 79 + b'\xff"}'), "a.json")


def test_entries_keep_what_is_used_alone_in_little_memory(window):
    (entry,) = parse_json(io.BytesIO(json.dumps({"images": [{**ENTRY, "coco_url": "http://"}]}).encode()), "a.json")["images"]
    assert plain(entry) == ENTRY and entry["bbox"].typecode == "d" and np.frombuffer(entry["segmentation"][0])[5] == 6.5
    values = [[True, 1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, 10**400], None]  # are left to the reader
    rows = parse_json(io.BytesIO(json.dumps({"annotations": [{"bbox": value} for value in values]}).encode()), "a")["annotations"]
    assert [row["bbox"] for row in rows] == values
