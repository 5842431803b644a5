"""`rfdetr.load`: one detector for pictures of any kind, whatever wrote its file."""

import argparse
import dataclasses
import io
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

import rfdetr
from rfdetr import VARIANTS, Detector, InputError, LabelMap, build_model, checkpoint_payload, official_state_dict
from rfdetr.data.images import ImageError
from rfdetr.tiles import tile_places

CONFIG = dataclasses.replace(VARIANTS["pico_seg"], resolution=64, positional_encoding_size=4, num_queries=7, num_select=9,
                             num_classes=2)
CLASSES = LabelMap((3, 7), ("cat", "dog"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model(CONFIG)
    torch.nn.init.normal_(model.class_embed.weight, std=0.2)  # else all that is found scores nearly the same
    return model


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "ours.pth"
    torch.save(checkpoint_payload(model, CONFIG, label_map=CLASSES), path)
    return path


@pytest.fixture(scope="module")
def detector(file):
    return rfdetr.load(file, "cpu")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def same(one, other, atol=0.0) -> bool:
    """Tell whether two predictions are equal, those that score the same in any order."""
    return len(one) == len(other) > 0 and all(np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=atol)
                                              for name in ("boxes", "scores", "labels", "masks"))


def tensor_of(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


# --- pictures ---


def test_a_picture_of_any_kind_alone_in_a_list_and_in_a_folder(detector, pixels, tmp_path):
    for number in (10, 9):
        Image.fromarray(pixels).save(tmp_path / f"frame{number}.png")
    path = tmp_path / "frame9.png"
    kinds = [pixels, tensor_of(pixels), Image.fromarray(pixels), path, str(path)]
    (expected,) = detector.predict(pixels, threshold=0.0)
    assert expected.masks.shape == (len(expected), 40, 56) and expected.masks.dtype == bool
    assert expected.names.tolist() == [CLASSES.names[label] for label in expected.labels]
    for kind in kinds:
        (found,) = detector.predict(kind, 0.0)
        assert same(found, expected)
    batches = [kinds, tuple(kinds), iter(kinds), np.stack([pixels] * 5), torch.stack([tensor_of(pixels)] * 5)]
    assert all(same(found, expected, 1e-4) for batch in batches for found in detector.predict(batch, 0.0, batch_size=2))
    assert [found.file_name for found in detector.predict(tmp_path)] == ["frame9.png", "frame10.png"]
    assert detector.predict([]) == []


@pytest.mark.parametrize("kind", ["grey", "grey tensor", "one channel", "transparent", "float", "bfloat16", "16 bits"])
def test_pixels_of_other_kinds_are_what_viewers_show(detector, pixels, kind):
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    alpha = np.concatenate([pixels, pixels[..., :1]], axis=2)
    image, shown = {
        "grey": (pixels[..., 0], grey), "grey tensor": (torch.from_numpy(pixels[..., 0]), grey),
        "one channel": (pixels[..., :1], grey),
        "transparent": (alpha, pixels), "float": (pixels / 255, pixels), "bfloat16": (tensor_of(pixels // 128 * 128) / 256, None),
        "16 bits": (pixels.astype(np.uint16) * 257, pixels),
    }[kind]
    if kind == "bfloat16":
        image, shown = image.bfloat16(), pixels // 128 * 128
    (found,), (expected,) = (detector.predict(picture, 0.0) for picture in (image, shown))
    assert same(found, expected)


@pytest.mark.parametrize(("image", "message"), [
    (np.full((8, 8, 3), 200.0), "values go from 200 to 200; floats must be 0 to 1"),
    (np.full((8, 8, 3), np.nan), "values go from nan"),
    (torch.full((3, 8, 8), -1.5), "a picture: its values go from -1.5"),
    (np.zeros((3, 8, 8), np.uint8), r"its shape is \(3, 8, 8\); arrays are \(h, w, channels\)"),
    (torch.zeros(8, 8, 3), r"its shape is \(8, 8, 3\); .* tensors \(channels, h, w\)"),
    (np.zeros((0, 8, 3), np.uint8), r"its shape is \(0, 8, 3\)"),
    (np.zeros((8, 8, 3), np.int64), "its values are int64; they must be uint8"),
    (None, "this NoneType cannot be used as a picture"),
    ([[1, 2]], "this list cannot be used as a picture"),
    ("nowhere.jpg", "nowhere.jpg: there is no such file or folder"),
    (["nowhere.jpg"], "nowhere.jpg: there is no such image file"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_cannot_be_a_picture_is_refused_in_one_message(detector, image, message):
    with pytest.raises(InputError, match=message):
        detector.predict(image)


def test_a_folder_without_pictures_and_a_damaged_picture(detector, pixels, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="no images in it"):
        detector.predict(tmp_path)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "half.png").write_bytes(buffer.getvalue()[:3000])
    with pytest.raises(ImageError, match="half.png: the image cannot be decoded"):
        detector.predict(tmp_path)
    with pytest.raises(InputError, match="this PngImageFile cannot be used as a picture: .*truncated"):
        detector.predict(Image.open(tmp_path / "half.png"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_files_and_opened_pictures_are_turned_alike(detector, pixels, tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"phone.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    from_file, opened = detector.predict([path, Image.open(path)], 0.0)
    assert same(from_file, opened, 1e-4) and from_file.masks.shape[1:] == (56, 40)
    assert from_file.draw().size == opened.draw().size == (40, 56)


# --- the file ---


def test_official_and_lightning_files_find_the_same(detector, model, pixels, tmp_path):
    state, args = official_state_dict(model), {**dataclasses.asdict(CONFIG), "class_names": ["cat", "dog"]}
    files = {
        "official.pth": {"model": state, "args": argparse.Namespace(**args)},
        "lightning.ckpt": {"state_dict": {f"model.{name}": value for name, value in state.items()}, "args": args},
    }
    (expected,) = detector.predict(pixels, 0.0)
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        (found,) = rfdetr.load(tmp_path / name, "cpu").predict(pixels, 0.0)
        assert same(found, expected) and found.names.tolist() == expected.names.tolist()


def test_a_detector_of_a_model_in_memory_with_what_a_file_would_say(model, detector, file, pixels, tmp_path):
    deep = pixels.astype(np.uint16) * 16
    content = torch.load(file, weights_only=True)
    content["args"]["data"] = {"resize": "letterbox", "white_level": 4095, "max_pixels": 3000, "exif": "refuse"}
    torch.save(content, tmp_path / "with_settings.pth")
    stored = rfdetr.load(tmp_path / "with_settings.pth", "cpu")
    in_memory = Detector(model, CONFIG, CLASSES, resize="letterbox", white_level=4095)
    (expected,), (found,), (other,) = (one.predict(deep, 0.0) for one in (in_memory, stored, detector))
    assert same(found, expected) and not same(other, expected)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif)
    for picture in (tmp_path / "phone.jpg", Image.open(tmp_path / "phone.jpg")):
        with pytest.raises(InputError, match="EXIF"):
            stored.predict(picture)
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="4096 pixels, more than data.max_pixels 3000"):
        stored.predict(tmp_path / "large.png")
    assert len(rfdetr.load(tmp_path / "with_settings.pth", "cpu", max_pixels=5000).predict(tmp_path / "large.png")) == 1


@pytest.mark.parametrize(("arguments", "message"), [
    ({"device": "tpu7"}, "device: 'tpu7' cannot be used"), ({"device": "cuda:99"}, "device: 'cuda:99' cannot be used"),
    ({"max_pixels": 0}, "max_pixels: 0 is not possible"), ({"use_ema": True}, "no averaged"),
    ({"precision": "fp8"}, "precision 'fp8' is not one of"),
])  # fmt: skip
def test_bad_arguments_of_load(file, arguments, message):
    with pytest.raises(InputError, match=message):
        rfdetr.load(file, **{"device": "cpu", **arguments})


# --- arguments ---


def test_classes_and_numbers_narrow_what_is_returned(detector, pixels):
    (everything,) = detector.predict(pixels, 0.0)
    assert set(everything.names) == {"cat", "dog"}, "the spare logit is no class"
    (dogs,) = detector.predict(pixels, 0.0, classes="dog", max_detections=2)
    is_dog = everything.names == "dog"
    assert len(dogs) == 2 and dogs.scores.tolist() == everything.scores[is_dog][:2].tolist()
    np.testing.assert_array_equal(dogs.masks, everything.masks[is_dog][:2])
    (both,) = detector.predict(pixels, float(everything.scores[2]), classes=["dog", "cat"])
    assert len(both) == 2 and detector.class_names == ["cat", "dog"]
    assert len(detector.predict(pixels, 0.0, classes=[])[0]) == 0


@pytest.mark.parametrize(("arguments", "message"), [
    ({"threshold": 40}, "threshold: 40 is not possible; scores are between 0 and 1"),
    ({"threshold": float("nan")}, "threshold: nan is not possible"), ({"threshold": "high"}, "threshold: 'high' is not possible"),
    ({"batch_size": 0}, "batch_size: 0 is not possible"), ({"max_detections": 2.5}, "max_detections: 2.5 is not possible"),
    ({"tile": 8}, "tile: 8 is not possible; it must be a whole number from 32 on"),
    ({"classes": ["dgo"]}, "classes: 'dgo' is no class of this detector; did you mean 'dog'. it knows 2: cat, dog"),
    ({"classes": [1]}, "classes: 1 is no class"),
])  # fmt: skip
def test_bad_arguments_of_predict(detector, pixels, arguments, message):
    with pytest.raises(InputError, match=message):
        detector.predict(pixels, **arguments)


def test_threads_share_it_and_it_is_always_in_evaluation_mode(detector, pixels):
    pictures = [pixels, pixels[:20], pixels[::2], pixels[:, ::-1]]
    expected = [detector.predict(picture, 0.0)[0] for picture in pictures]
    detector.model.train()
    assert same(detector.predict(pixels, 0.0)[0], expected[0]) and not detector.model.training
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: detector.predict(pictures[index], 0.0)[0], [0, 1, 2, 3] * 5))
    assert all(same(one, other, 1e-4) for one, other in zip(found, expected * 5))
    assert detector.warm_up(batch_size=2, repeats=2) > 0


# --- parts of large pictures ---


def bright_things(crops, threshold):
    """Stand in for a model: each bright thing of a part, the whole ones with the better score."""
    results = []
    for crop in crops:
        numbered, count = ndimage.label(crop[0].numpy() > 128)
        masks = numbered == np.arange(1, count + 1)[:, None, None]
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(numbered)]
        labels = [int(crop[1].numpy()[mask].max() > 128) for mask in masks]
        scores = 0.5 + torch.from_numpy(masks.sum((1, 2))).float() / 1e5
        results.append({"boxes": torch.tensor(boxes).float().reshape(-1, 4), "scores": scores,
                        "labels": torch.tensor(labels, dtype=torch.int64), "masks": torch.from_numpy(masks)[:, None]})
    return results


def test_objects_at_every_place_of_the_parts_are_found_once(model, monkeypatch):
    detector = Detector(model, CONFIG, CLASSES)
    monkeypatch.setattr(detector, "_found_on", bright_things)
    generator = np.random.default_rng(0)
    for _ in range(40):
        height, width = generator.integers(150, 260, 2)
        picture = np.zeros((height, width, 3), np.uint8)
        for y in range(0, height - 30, 30):
            for x in range(0, width - 30, 30):
                h, w = generator.integers(4, 25, 2)  # up to a quarter of the tile
                picture[y : y + h, x : x + w, 0], picture[y : y + h, x : x + w, 1] = 255, 255 * generator.integers(2)
        whole, tiled = detector.predict(picture, tile=None)[0], detector.predict(picture, tile=100, batch_size=3)[0]
        order = [np.lexsort(found.boxes.T) for found in (whole, tiled)]
        for name in ("boxes", "labels", "scores", "masks"):
            np.testing.assert_array_equal(getattr(whole, name)[order[0]], getattr(tiled, name)[order[1]])
        assert (np.diff(tiled.scores) <= 0).all()
        assert len(detector.predict(picture, tile=100, max_detections=3)[0]) == 3


def test_parts_cover_the_picture_and_overlap_by_a_quarter():
    for length in (1, 99, 100, 101, 175, 176, 1000):
        spans = [columns for _, columns in tile_places(100, length, 100)]
        assert spans[0].start == 0 and spans[-1].stop == length
        assert all(one.stop - other.start >= 25 and one.stop - one.start == 100 for one, other in zip(spans, spans[1:]))


def test_a_picture_that_fits_into_a_part_is_not_cut(detector, pixels):
    assert same(detector.predict(pixels, 0.0, tile=64)[0], detector.predict(pixels, 0.0)[0])
    large = np.tile(pixels, (4, 4, 1))
    first, (alone,) = detector.predict([large, pixels], 0.0, tile=64)[1], detector.predict(pixels, 0.0)
    assert same(first, alone, 1e-4), "the parts of one picture are not mixed up with those of the next"


# --- results ---


def test_rows_for_coco_have_the_masks_and_ids_of_the_categories(detector, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (found,) = detector.predict(tmp_path, 0.0)
    rows = found.to_coco(image_id=5)
    assert [row["category_id"] for row in rows] == [CLASSES.category_ids[label] for label in found.labels]
    assert {(row["image_id"], row["file_name"]) for row in rows} == {(5, "a.png")}
    np.testing.assert_array_equal(np.stack([coco_mask.decode(row["segmentation"]) for row in rows]), found.masks)
    assert "file_name" not in detector.predict(pixels, 0.0)[0].to_coco()[0]
    assert "on a.png" in repr(found) and repr(detector.predict(pixels, 1.0)[0]) == "<Prediction: nothing>"
    assert detector.predict(pixels, 1.0)[0].to_coco() == [] and detector.predict(pixels, 1.0)[0].names.shape == (0,)


def test_it_is_drawn_on_a_copy(detector, pixels):
    before = pixels.copy()
    drawn = detector.predict(pixels, 0.0)[0].draw()
    assert drawn.size == (56, 40) and (np.asarray(drawn) != pixels).any()
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(detector.predict(pixels, 1.0)[0].draw(), pixels)


def test_supervision_is_asked_for_when_it_is_used(detector, pixels, monkeypatch):
    (found,) = detector.predict(pixels, 0.0)
    monkeypatch.setitem(sys.modules, "supervision", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"supervision is not installed; .*\.\[supervision\]"):
        found.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=types.SimpleNamespace))
    made = found.to_supervision()
    assert made.xyxy is found.boxes and made.class_id is found.labels and made.mask is found.masks
    assert made.confidence is found.scores and made.data["class_name"].tolist() == found.names.tolist()


def test_the_real_supervision_takes_it(detector, pixels):
    supervision = pytest.importorskip("supervision")
    (found,) = detector.predict(pixels, 0.0)
    made = found.to_supervision()
    assert isinstance(made, supervision.Detections) and len(made) == len(found) > 0
    for ours, theirs in ((found.boxes, made.xyxy), (found.scores, made.confidence), (found.labels, made.class_id),
                         (found.masks, made.mask)):
        np.testing.assert_array_equal(ours, theirs)
    drawn = supervision.MaskAnnotator().annotate(supervision.BoxAnnotator().annotate(pixels.copy(), made), made)
    assert drawn.shape == pixels.shape and (drawn != pixels).any()
    assert len(made.with_nms(0.5)) <= len(made) and len(detector.predict(pixels, 1.0)[0].to_supervision()) == 0
    assert len(made[made["class_name"] == "dog"]) == (found.names == "dog").sum()
