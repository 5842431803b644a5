"""Decoding of every kind of image file, orientation, reduced decoding, and the network's input."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from rfdetr.data import preprocess, read_image
from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageError, read_size
from rfdetr.errors import InputError

GOLDENS = Path(__file__).parents[2] / "goldens" / "training"
GREY_LEVEL = 1 / 255 / min(IMAGENET_STD)  # one of 256, after normalisation
GRADIENT = np.add.outer(np.arange(40) * 3, np.arange(30) * 4).astype(np.uint8)


def read_array(path: Path, **options) -> np.ndarray:
    return read_image(path, **options).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(GRADIENT).convert("RGB").convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    image.save(path)
    pixels = read_image(path)
    assert pixels.shape == (3, 40, 30) and pixels.dtype == torch.uint8
    np.testing.assert_allclose(read_array(path).astype(int), np.asarray(image.convert("RGB")).astype(int), atol=2)


def test_transparency_is_ignored(tmp_path):
    pixels = np.dstack([np.full((4, 5, 3), 200, np.uint8), np.zeros((4, 5), np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_array(tmp_path / "a.png") == 200).all()
    palette = Image.fromarray(GRADIENT).convert("P")
    palette.save(tmp_path / "b.png", transparency=0)
    assert read_array(tmp_path / "b.png").shape == (40, 30, 3)


def test_16_bit_grey_keeps_its_range(tmp_path):
    Image.fromarray(GRADIENT.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert (read_array(tmp_path / "deep.png") == GRADIENT[..., None]).all()


def write_turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRADIENT).convert("RGB").save(path, exif=exif)  # stored: 40 high, 30 wide


def test_orientation_follows_the_annotated_size(tmp_path):
    path = tmp_path / "turned.png"
    write_turned(path, 6)
    np.testing.assert_array_equal(read_array(path, annotated_size=(40, 30))[..., 0], GRADIENT)
    np.testing.assert_array_equal(read_array(path, annotated_size=(30, 40))[..., 0], np.rot90(GRADIENT, -1))
    np.testing.assert_array_equal(read_array(path)[..., 0], np.rot90(GRADIENT, -1))
    write_turned(path, 3)
    for annotated_size in ((40, 30), None):  # evaluation and prediction alike
        np.testing.assert_array_equal(read_array(path, annotated_size=annotated_size)[..., 0], np.rot90(GRADIENT, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif"])
def test_orientation_is_applied_or_refused_and_the_size_follows(tmp_path, orientation, extension):
    path = tmp_path / f"turned.{extension}"
    write_turned(path, orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = read_array(path)
    np.testing.assert_array_equal(pixels, expected)
    assert read_size(path) == pixels.shape[:2] == ((30, 40) if orientation > 4 else (40, 30))
    np.testing.assert_array_equal(read_array(path, annotated_size=read_size(path)), pixels)
    if orientation == 1:
        np.testing.assert_array_equal(read_array(path, exif="refuse"), pixels)
    else:
        with pytest.raises(InputError, match=rf"has to be turned \(orientation {orientation}\), which data.exif refuses"):
            read_image(path, exif="refuse")


@pytest.mark.parametrize("extension, tolerance", [("jpg", 12), ("png", 0), ("webp", 12), ("bmp", 0), ("tif", 0), ("tiff", 0)])
def test_file_types(tmp_path, write_picture, extension, tolerance):
    expected = write_picture(tmp_path / "a.png", (40, 30))
    Image.fromarray(expected).save(tmp_path / f"b.{extension}")
    assert np.abs(read_array(tmp_path / f"b.{extension}").astype(int) - expected).mean() <= tolerance


def test_16_bit_tiff_and_colour(tmp_path):
    Image.fromarray(GRADIENT.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    assert (read_array(tmp_path / "deep.tif") == GRADIENT[..., None]).all()


@pytest.mark.parametrize("size", [(80, 60), (30, 40)])
def test_other_size_than_annotated_is_refused(tmp_path, size):
    Image.fromarray(GRADIENT).save(tmp_path / "picture.png")
    with pytest.raises(InputError, match=rf"30 x 40 pixels \(w x h\), but its annotations are for {size[1]} x {size[0]}"):
        read_image(tmp_path / "picture.png", annotated_size=size)


def test_jpeg_is_decoded_as_small_as_it_may_be(tmp_path, write_picture):
    path = tmp_path / "large.jpg"
    write_picture(path, (480, 640))
    sizes = {(240, 320): (240, 320), (241, 320): (480, 640), (100, 100): (120, 160), (600, 600): (480, 640)}
    for min_size, expected in sizes.items():
        assert tuple(read_image(path, annotated_size=(480, 640), min_size=min_size).shape[1:]) == expected
    exact = Image.open(path).resize((160, 120), Image.BOX)
    assert np.abs(read_array(path, min_size=(100, 100)).astype(int) - np.asarray(exact)).mean() < 2


def test_bad_files_are_named(tmp_path, write_picture):
    with pytest.raises(InputError, match="gone.jpg: there is no such image file"):
        read_image(tmp_path / "gone.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(InputError, match="text.jpg: this is not an image"):
        read_image(tmp_path / "text.jpg")
    write_picture(tmp_path / "whole.jpg", (100, 100))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1200])
    with pytest.raises(InputError, match="cut.jpg: the image cannot be decoded .*truncated"):
        read_image(tmp_path / "cut.jpg")


ODD_FILES = {
    "a folder": lambda path: path.mkdir(), "an empty file": lambda path: path.touch(), "a pipe": os.mkfifo,
    "Too many levels of symbolic links": lambda path: path.symlink_to(path),
    "a device": lambda path: path.symlink_to("/dev/zero"), "no such image file": lambda path: path.symlink_to("gone.jpg"),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_only_plain_files_are_read(tmp_path, kind):
    path = tmp_path / "picture.jpg"
    ODD_FILES[kind](path)
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=f"picture.jpg: .*{kind.removeprefix('a ') if kind == 'a device' else kind}"):
            read(path)


@pytest.mark.parametrize("path", ["a\0b.jpg", "x" * 300 + ".jpg", __file__ + "/a.jpg"])
def test_impossible_names_are_bad_images(path):
    with pytest.raises(ImageError, match="image"):
        read_image(Path(path))


def test_other_formats_are_refused_whatever_their_name(tmp_path):
    """PostScript would start Ghostscript, and damaged DDS files raise NotImplementedError."""
    path = tmp_path / "picture.png"
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"DDS |" + bytes(200), b"<!DOCTYPE html>",
                    b"\0\0\0\x18ftypheic" + bytes(99)):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"picture.png: this is not an image that can be read \(JPEG.*first bytes are b'"):
            read_image(path)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, MemoryError, struct.error, zlib.error, IndexError,
                                   TypeError, EOFError, OverflowError, RecursionError, KeyError])
def test_whatever_a_decoder_raises_is_a_bad_image(tmp_path, write_picture, monkeypatch, error):
    write_picture(tmp_path / "picture.png", (8, 8))
    def load(self):
        raise error
    monkeypatch.setattr(PngImageFile, "load", load)
    with pytest.raises(ImageError, match=f"picture.png: the image cannot be decoded .{error.__name__}"):
        read_image(tmp_path / "picture.png")


def test_too_many_pixels_are_refused_before_decoding(tmp_path, write_picture):
    path = tmp_path / "picture.png"
    write_picture(path, (30, 40))
    with pytest.raises(ImageError, match="picture.png: the image has 1200 pixels, more than data.max_pixels 1199"):
        read_image(path, max_pixels=1199)
    assert read_image(path, max_pixels=1200).shape == (3, 30, 40)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match="the image has 3600000000 pixels, more than data.max_pixels 178956970"):
            read(path)


def test_a_larger_limit_than_pillows(tmp_path, write_picture, monkeypatch, recwarn):
    write_picture(tmp_path / "picture.png", (30, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(tmp_path / "picture.png", max_pixels=1200).shape == (3, 30, 40) and not recwarn


@pytest.mark.parametrize("extension, options", [
    ("gif", {}), ("webp", {"lossless": True}), ("tif", {}), ("png", {}), ("mpo", {"quality": 95}),
])
def test_the_first_picture_of_many(tmp_path, write_picture, extension, options):
    expected = write_picture(tmp_path / "a.png", (40, 30))
    path = tmp_path / f"many.{extension}"
    Image.fromarray(expected).save(path, save_all=True, append_images=[Image.new("RGB", (30, 40))] * 2, **options)
    assert np.abs(read_array(path).astype(int) - expected).mean() < 12


def test_damaged_exif_counts_as_upright(tmp_path):
    for name in ("picture.jpg", "picture.png", "picture.webp"):
        Image.fromarray(GRADIENT).convert("RGB").save(tmp_path / name, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
        assert read_image(tmp_path / name).shape == (3, 40, 30) and read_size(tmp_path / name) == (40, 30)
    write_turned(tmp_path / "odd.jpg", 0)  # as some cameras write
    assert read_image(tmp_path / "odd.jpg", exif="refuse").shape == (3, 40, 30)


@pytest.mark.parametrize("rounds", [40, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "16-bit PNG", "TIFF", "LZW TIFF", "WEBP", "GIF", "BMP"])
def test_nothing_but_image_errors_leaves(tmp_path, form, rounds):
    """Bytes changed, cut off, doubled, left out."""
    buffer, pixels = io.BytesIO(), np.dstack([GRADIENT, GRADIENT[::-1], 255 - GRADIENT])
    picture = Image.fromarray(GRADIENT.astype(np.uint16) * 16 if "16" in form else pixels)
    picture.save(buffer, form.split()[-1], **({"compression": "tiff_lzw"} if "LZW" in form else {}))
    whole, dice = buffer.getvalue(), random.Random(form)
    num_bad = 0
    for _ in range(rounds):
        content = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(min(len(content), dice.choice([64, len(content)])))
            content[place] = dice.choice([0, 1, 127, 255, dice.randrange(256)])
        start, end = sorted(dice.choices(range(len(content)), k=2))
        changed = dice.choice([content, content, content[:end], content[:start] + content[end:], content[:end] + content[start:]])
        (tmp_path / "picture").write_bytes(changed)
        for read in (read_image, read_size):
            try:
                read(tmp_path / "picture")
            except ImageError as error:
                num_bad += 1
                assert "\n" not in str(error)
    assert num_bad


def test_preprocess_golden():
    """The published validation transform resizes with Pillow; torch's uint8 kernel rounds a few values the other way."""
    goldens = np.load(GOLDENS / "dataset.npz")
    for name in ("val_square", "val_aspect"):
        made = preprocess(goldens["image"], goldens[name].shape[1:]).numpy()
        assert np.abs(made - goldens[name]).max() < 1.01 * GREY_LEVEL
        assert np.abs(made - goldens[name]).mean() < 0.25 * GREY_LEVEL


def test_preprocess_takes_images_arrays_and_tensors():
    pixels = np.dstack([GRADIENT, GRADIENT, 255 - GRADIENT])
    made = preprocess(Image.fromarray(pixels), (24, 32))
    assert made.shape == (3, 24, 32) and made.dtype == torch.float32 and made.is_contiguous()
    assert torch.equal(made, preprocess(pixels, (24, 32)))
    assert torch.equal(made, preprocess(torch.from_numpy(pixels).permute(2, 0, 1), (24, 32)))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert torch.equal(made, preprocess(Image.open(buffer), (24, 32)))


def test_preprocess_without_resizing_is_the_formula():
    pixels = np.dstack([GRADIENT] * 3)
    expected = (pixels.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(preprocess(pixels, (40, 30)).permute(1, 2, 0), expected, atol=1e-6)


def test_preprocess_without_antialiasing_repeats_the_published_predict():
    pixels = np.dstack([GRADIENT] * 3)
    floats = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(floats, (16, 16), mode="bilinear", align_corners=False)[0]
    expected = (resized - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(preprocess(pixels, (16, 16), antialias=False), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), torch.zeros(4, 4, 3, dtype=torch.uint8)])
def test_preprocess_refuses_other_pixels(image):
    with pytest.raises(InputError, match="expected RGB uint8"):
        preprocess(image, (8, 8))


def test_published_predict_golden():
    """Decision 15: this golden was made without antialiasing."""
    golden = np.load(GOLDENS.parent / "detector" / "predict_seg_nano_q16.npz")
    made = preprocess(golden["image"], (312, 312), antialias=False)
    np.testing.assert_allclose(made[None, :, :24, :24], golden["batch_slice"], atol=2e-6, rtol=0)
    np.testing.assert_allclose(made[None, :, 100:102], golden["batch_rows"], atol=2e-6, rtol=0)
