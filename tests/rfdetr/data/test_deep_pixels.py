"""Pictures of more than 8 bits a channel: one white level for a data set, the same for every way of reading it."""

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfdetr.data import eval_loader, open_dataset, read_image
from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD, to_rgb
from rfdetr.errors import InputError

VALUES = np.random.default_rng(0).integers(0, 4096, (20, 30, 3)).astype(np.uint16)  # of a camera of 12 bits
VALUES[0, :2] = [[4095], [0]]
GREY = VALUES[..., 0]
SHADES = VALUES / 4095 * 255
HALF = 0.51  # of a grey level


def png(values: np.ndarray, colour_type: int, *, before: tuple[bytes, bytes] | None = None) -> bytes:
    """Write 16-bit PNG: colour types 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha; `before` is a chunk before the pixels."""
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    extra = b"" if before is None else chunk(*before)
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, order: str = "<", *, photometric: int = 2, planar: int = 1, signed: bool = False) -> bytes:
    """Write an uncompressed 16-bit TIFF."""
    height, width = values.shape[:2]
    bands = 1 if values.ndim == 2 else values.shape[2]
    planes = values if planar == 1 else values.transpose(2, 0, 1)
    pixels = planes.astype(f"{order}u2").tobytes()
    num_strips = 1 if planar == 1 else bands
    size = len(pixels) // num_strips
    tags = [(256, [width]), (257, [height]), (258, [16] * bands), (259, [1]), (262, [photometric]),
            (273, [8 + strip * size for strip in range(num_strips)]), (277, [bands]), (278, [height]), (279, [size] * num_strips),
            (284, [planar]), (339, [1 + signed] * bands)]
    place = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    directory, outside = struct.pack(f"{order}H", len(tags)), b""
    for tag, numbers in tags:
        content = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(content) > 4:
            content, outside = struct.pack(f"{order}I", place + len(outside)), outside + content
        directory += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    return head + pixels + directory + struct.pack(f"{order}I", 0) + outside


def saved(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF", **options)
    return buffer.getvalue()


def read(content: bytes, **options) -> np.ndarray:
    return read_image(Path("picture"), file=io.BytesIO(content), **options).permute(1, 2, 0).numpy()


FILES = {
    "grey PNG": png(GREY, 0), "RGB PNG": png(VALUES, 2), "RGBA PNG": png(np.dstack([VALUES, VALUES[..., :1] * 0 + 65535]), 6),
    "grey TIFF": tiff(GREY, photometric=1), "big-endian TIFF": tiff(GREY, ">", photometric=1), "RGB TIFF": tiff(VALUES),
    "big-endian RGB TIFF": tiff(VALUES, ">"), "planar TIFF": tiff(VALUES, planar=2),
    "big-endian planar TIFF": tiff(VALUES, ">", planar=2),
    "signed TIFF": tiff(GREY, photometric=1, signed=True), "LZW TIFF": saved(GREY, compression="tiff_lzw"),
    "32-bit TIFF": saved(GREY.astype(np.int32)), "float TIFF": saved(GREY.astype(np.float32)),
    "float TIFF to 1": saved((GREY / 4095).astype(np.float32)),
}


@pytest.mark.parametrize("name", FILES)
def test_12_bits_in_16_are_not_black(name):
    pixels = read(FILES[name])
    expected = SHADES if "RGB" in name or "planar" in name else SHADES[..., :1]
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=HALF)


def test_grey_and_alpha_is_close():
    """Pillow gives the upper half of these alone."""
    assert np.abs(read(png(VALUES[..., :2], 4)) - SHADES[..., :1]).max() < 17


def test_white_may_be_zero():
    np.testing.assert_allclose(read(tiff(GREY, photometric=0))[..., :1], 255 - SHADES[..., :1], atol=HALF)


@pytest.mark.parametrize("array", [np.uint16(GREY // 16), np.int32(GREY // 16), np.float32(GREY // 16)])
def test_8_bit_values_stay_as_they_are(array):
    np.testing.assert_array_equal(read(saved(array))[..., 0], GREY // 16)


def test_what_the_file_declares_comes_first(caplog):
    dark = GREY // 8  # of a camera of 12 bits, in the dark
    for content, white in ((png(dark, 0, before=(b"sBIT", b"\x0c")), 4095), (saved(dark, tiffinfo={281: 4095}), 4095)):
        np.testing.assert_allclose(read(content)[..., 0], dark / white * 255, atol=HALF)
    assert not caplog.text
    assert read(png(dark, 0)).max() > 120 and "values 0 to 511 of 65535; 1023 is taken for white" in caplog.text
    np.testing.assert_allclose(read(png(dark, 0), white_level=2047)[..., 0], dark / 2047 * 255, atol=HALF)


@pytest.mark.parametrize("content, message", [
    (saved(np.full((4, 4), np.nan, np.float32)), "not numbers"), (saved(np.full((4, 4), np.inf, np.float32)), "not numbers"),
    (saved(GREY.astype(np.int32) - 1024), "values go down to -10.*but 0 is black"),
    (saved(GREY.astype(np.int32) * 1000), "go up to 4.095e.06.*set data.white_level"),
])
def test_what_has_no_shade_is_refused(content, message):
    with pytest.raises(InputError, match=f"picture: .*{message}"):
        read(content)


def test_a_pillow_image_of_any_state():
    for load in (False, True):
        image = Image.open(io.BytesIO(png(GREY, 0)))
        if load:
            image.load()
        np.testing.assert_allclose(np.asarray(to_rgb(image, 4095))[..., 0], SHADES[..., 0], atol=HALF)


@pytest.fixture
def folder(write_roboflow, coco_content):
    """Pictures of 12 bits; the val split has dark ones alone, and one of 8 bits."""
    content = coco_content(4, size=(20, 30))
    folder = write_roboflow(train=content, valid=content)
    for index, image in enumerate(content["images"]):
        (folder / "train" / image["file_name"]).write_bytes(png(GREY // (8 if index < 3 else 1), 0))
        if index:
            (folder / "valid" / image["file_name"]).write_bytes(png(GREY // 8, 0))
    return folder


def test_one_white_level_for_all_splits(folder, caplog):
    train = open_dataset(folder, "train", training=True, image_size=(20, 30))
    assert train.white_level == 4095
    assert "4095 is taken for white in all of them (data.white_level)" in caplog.text
    assert "values 0 to 4095 of 65535" in caplog.text
    val = open_dataset(folder, "val", training=False, image_size=(20, 30), label_map=train.label_map)
    assert val.white_level == 4095
    loader = eval_loader(val, batch_size=1, num_workers=1)
    _, second, *_ = [samples.to("cpu").tensors[0] for samples, _ in loader]
    shades = (second * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) * 255
    np.testing.assert_allclose(shades[0], (GREY // 8) / 4095 * 255, atol=HALF)


def test_a_white_level_of_ones_own(folder, caplog):
    val = open_dataset(folder, "val", training=False, image_size=(20, 30), white_level=511)
    assert val.white_level == 511 and val[1][0].max() > 2
    assert "taken for white" not in caplog.text
    with pytest.raises(InputError, match="data.white_level: 0 is not possible"):
        open_dataset(folder, "val", training=False, image_size=(20, 30), white_level=0)


def test_8_bits_need_no_white_level(write_roboflow, coco_content, caplog):
    with caplog.at_level(logging.INFO):
        dataset = open_dataset(write_roboflow(train=coco_content()), "train", training=True, image_size=(32, 32))
    assert dataset.white_level is None and "taken for white" not in caplog.text
