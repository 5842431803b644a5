"""Detections on pictures: the published package's own, and what becomes of them in COCO's results."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from rfdetr import VARIANTS, InputError, LabelMap, build_model, build_postprocess, load_weights
from rfdetr.detections import Prediction
from rfdetr.prediction import drawn_paths, predict, save_drawing

GOLDENS = Path(__file__).parents[1] / "goldens" / "detector"
SPEC = importlib.util.spec_from_file_location("golden_formula", GOLDENS / "formula.py")
formula = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(formula)


@pytest.fixture(scope="module", params=["nano_q24", "seg_nano_q16"])
def published(request):
    """What the published package found on one picture, and the same detector with the picture and its size."""
    with np.load(GOLDENS / f"predict_{request.param}.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    config = dataclasses.replace(VARIANTS[meta["variant"]], **meta["overrides"])
    model = build_model(config)
    weights = formula.state_dict_arrays(formula.load_layout(GOLDENS / f"layout_{request.param}.json"))
    load_weights(model, {"model": {name: torch.from_numpy(array) for name, array in weights.items()}})
    return arrays, model, build_postprocess(config), config.input_size, meta["threshold"]


def test_it_finds_what_the_published_predict_finds(published):
    """Decision 15: the published predict resizes without antialiasing, so the golden is repeated without it."""
    arrays, model, postprocess, size, threshold = published
    (result,) = predict(model, postprocess, [arrays["image"]], size=size, threshold=threshold, antialias=False)
    assert result["labels"].tolist() == arrays["class_id"].tolist()
    np.testing.assert_allclose(result["scores"], arrays["confidence"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(result["boxes"], arrays["xyxy"], atol=1e-2, rtol=0)
    assert ("masks" in result) == ("mask_packed" in arrays)
    if "masks" in result:
        shape = arrays["mask_shape"]
        masks = np.unpackbits(arrays["mask_packed"], count=shape.prod()).reshape(shape).astype(bool)
        assert (result["masks"][:, 0].numpy() != masks).mean() < 1e-4


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    config = dataclasses.replace(VARIANTS["pico_seg"], resolution=64, positional_encoding_size=4, num_queries=7, num_select=5)
    return build_model(config).train(), build_postprocess(config)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_pictures_of_any_kind_and_size_in_one_batch(detector, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    kinds = [pixels, torch.from_numpy(pixels).permute(2, 0, 1), Image.fromarray(pixels), tmp_path / "picture.png"]
    results = predict(*detector, [*kinds, pixels[:20]], size=(64, 64), threshold=0.0)
    for result in results[:4]:
        assert all(torch.equal(result[name], results[0][name]) for name in ("scores", "labels", "boxes", "masks"))
    assert [tuple(result["masks"].shape) for result in results[3:]] == [(5, 1, 40, 56), (5, 1, 20, 56)]
    assert predict(*detector, [], size=(64, 64)) == []


def test_the_model_stays_as_it_was_and_the_threshold_holds(detector, pixels):
    (everything,) = predict(*detector, [pixels], size=(64, 64), threshold=0.0)
    third = everything["scores"][2].item()
    (kept,) = predict(*detector, [pixels], size=(64, 64), threshold=third)
    assert kept["scores"].tolist() == everything["scores"][:2].tolist()
    assert detector[0].training and not kept["scores"].requires_grad
    with pytest.raises(InputError, match="precision 'fp8' is not one of fp32, bf16, fp16"):
        predict(*detector, [pixels], size=(64, 64), precision="fp8")


def test_bf16_is_close_to_float32(detector, pixels):
    (exact,), (rounded,) = (predict(*detector, [pixels], size=(64, 64), threshold=0.0, precision=p) for p in ("fp32", "bf16"))
    difference = (exact["scores"] - rounded["scores"]).abs().max()
    assert 0 < difference < 0.02


def test_12_bits_are_scaled_as_in_training(detector, pixels, tmp_path, caplog):
    grey = pixels[..., 0].astype(np.uint16)
    Image.fromarray(grey * 16).save(tmp_path / "deep.png")
    eight = (grey * 16 / 4095 * 255).round().astype(np.uint8)
    pictures = [np.dstack([eight] * 3), tmp_path / "deep.png", Image.open(tmp_path / "deep.png")]
    results = predict(*detector, pictures, size=(64, 64), threshold=0.0, white_level=4095)
    assert all(torch.equal(result["scores"], results[0]["scores"]) for result in results) and not caplog.text
    predict(*detector, pictures[1:2], size=(64, 64))
    assert "deep.png: more than 8 bits a channel" in caplog.text and "by this picture alone" in caplog.text
    with pytest.raises(InputError, match="deep.png: the image has 2240 pixels"):
        predict(*detector, pictures[1:2], size=(64, 64), max_pixels=1000)


def test_each_drawing_has_a_file_of_its_own_that_can_be_written(tmp_path):
    names = ["photo", "photo.png", "photo.gif", "a/b.JPG", "../../c.jpg", "/d/c.jpg", "..", ".hidden", "odd.", "x.tar", "photo"]
    paths = drawn_paths(tmp_path, names)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "photo-2.png", "photo.png", "photo.gif.png", "a/b.JPG", "c.jpg", "d/c.jpg", "picture.png", ".hidden.png", "odd..png",
        "x.tar.png", "photo-3.png"]
    for path in drawn_paths(tmp_path, [*names, *(f"b{suffix}" for suffix in (".webp", ".bmp", ".tiff", ".jfif", ".jpeg"))]):
        assert save_drawing(path, lambda: Image.new("RGB", (8, 8)))
        assert Image.open(path).size == (8, 8)


def test_a_drawing_that_cannot_be_saved_is_left_out(tmp_path, caplog):
    (tmp_path / "file").touch()
    for name, size in (("file/a.png", (8, 8)), ("wide.webp", (20_000, 4)), ("long.jpg", (4, 70_000)),
                       ("x" * 300 + ".png", (8, 8))):
        assert not save_drawing(tmp_path / name, functools.partial(Image.new, "RGB", size))
        assert "the picture cannot be drawn" in caplog.text and "its results are kept" in caplog.text
        caplog.clear()


def test_rows_of_a_coco_results_file():
    masks = np.zeros((2, 6, 8), dtype=bool)
    masks[0, 1:3, 2:5] = True
    boxes, scores = np.array([[2, 1, 5, 3], [0, 0, 8, 6]], np.float32), np.array([0.75, 0.25], np.float32)
    found = Prediction(boxes, scores, np.array([1, 0]), masks, LabelMap((3, 7), ("cat", "dog")))
    rows = found.to_coco(image_id=12, file_name="a/b.jpg")
    assert [{key: value for key, value in row.items() if key != "segmentation"} for row in rows] == [
        {"image_id": 12, "file_name": "a/b.jpg", "category_id": 7, "category_name": "dog", "bbox": [2, 1, 3, 2], "score": 0.75},
        {"image_id": 12, "file_name": "a/b.jpg", "category_id": 3, "category_name": "cat", "bbox": [0, 0, 8, 6], "score": 0.25},
    ]
    encoded = json.loads(json.dumps(rows))[0]["segmentation"]
    np.testing.assert_array_equal(coco_mask.decode(encoded), masks[0])
    with pytest.raises(InputError, match="does not know its picture"):
        found.draw()
