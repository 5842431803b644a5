"""DetectionDataset: targets against the goldens, boxes and masks that follow the pixels, and what happens to bad images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

from rfdetr.data import RECIPES, Recipe, SampleKey, open_dataset
from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.errors import InputError

GOLDEN_FOLDER = Path(__file__).parents[2] / "goldens" / "training"
GOLDENS = json.loads((GOLDEN_FOLDER / "dataset.json").read_text())
GREY_LEVEL = 1 / 255 / min(IMAGENET_STD)


def key(index: int, position: int = 0, *, epoch: int = 0, size: tuple[int, int] | None = None, seed: int = 1) -> SampleKey:
    return SampleKey(index, seed, epoch, position, size)


def pixel_boxes(target: dict, size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) xyxy in pixels of an image (h, w)."""
    cx, cy, w, h = target["boxes"].double().numpy().T
    return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1) * (size[1], size[0], size[1], size[0])


def colours(image: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: (3, h, w) in 0..255."""
    return (image * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) * 255


def open_train(folder, **options):
    return open_dataset(folder, "train", training=True, **{"image_size": (64, 64), **options})


@pytest.fixture
def golden_folder(tmp_path):
    """The goldens' annotations and image as a data set."""
    width, height = GOLDENS["image_size_wh"]
    annotations = [{"id": i, "image_id": 42, **row} for i, row in enumerate(GOLDENS["annotations"])]
    categories = [{"id": 3, "name": "three"}, {"id": 7, "name": "seven"}]
    images = [{"id": 42, "file_name": "a.png", "width": width, "height": height}]
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
        Image.fromarray(np.load(GOLDEN_FOLDER / "dataset.npz")["image"]).save(tmp_path / split / "a.png")
    return tmp_path


@pytest.mark.parametrize("case", [case for case in GOLDENS["convert"] if not case.get("empty")],
                         ids=lambda case: f"masks={case['include_masks']} map={bool(case['cat2label'])}")
def test_conversion_golden(golden_folder, case):
    expected = case["target"]
    dataset = open_train(golden_folder, with_masks=case["include_masks"], label_map=None if case["cat2label"] else "coco")
    _, target = dataset[0]
    np.testing.assert_allclose(pixel_boxes(target, (60, 80)), expected["boxes"], atol=1e-4)
    for name in ("labels", "image_id", "iscrowd", "orig_size"):
        assert target[name].tolist() == expected[name] and target[name].dtype == torch.int64
    np.testing.assert_allclose(target["area"], expected["area"])
    if case["include_masks"]:
        assert list(target["masks"].shape) == expected["mask_shape"] and target["masks"].dtype == torch.bool
        assert target["masks"].sum(dim=(1, 2)).tolist() == expected["mask_sums"]


def test_empty_target_golden(write_roboflow, coco_content):
    expected = next(case for case in GOLDENS["convert"] if case.get("empty"))["target"]
    _, target = open_train(write_roboflow(train=coco_content()), with_masks=True)[0]
    assert {name: [list(value.shape), str(value.dtype)] for name, value in target.items()} == expected


@pytest.mark.parametrize("name", ["square", "aspect"])
def test_validation_golden(golden_folder, name):
    """Decisions 27 and 33: crowds stay, marked, and boxes as annotated, which the golden cuts at the edge; areas stay in pixels
    of the original, where the golden scales them."""
    expected = GOLDENS["val_transforms"][name]
    dataset = open_dataset(golden_folder, "val", training=False, image_size=expected["size"], label_map="coco")
    image, target = dataset[0]
    corners = box_convert(target["boxes"], "cxcywh", "xyxy").clamp(0, 1)
    assert target["boxes"].max() > 1
    keep = (target["iscrowd"] == 0) & (corners[:, 2:] > corners[:, :2]).all(dim=1)
    np.testing.assert_allclose(box_convert(corners[keep], "xyxy", "cxcywh"), expected["boxes"], atol=1e-6)
    assert target["labels"][keep].tolist() == expected["labels"] and target["iscrowd"].sum() == 1
    assert target["size"].tolist() == expected["size"] and target["orig_size"].tolist() == expected["orig_size"]
    golden = torch.from_numpy(np.load(GOLDEN_FOLDER / "dataset.npz")[f"val_{name}"])
    torch.testing.assert_close(image, golden, atol=1.01 * GREY_LEVEL, rtol=0)


@pytest.fixture
def rectangle_folder(tmp_path):
    """One large JPEG: a red rectangle on blue, with its box and its mask twice, as polygon and as run lengths."""
    height, width = 700, 900
    left, top, right, bottom = 330, 210, 640, 560
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 250
    pixels[top:bottom, left:right] = (250, 0, 0)
    mask = np.zeros((height, width), dtype=int)
    mask[top:bottom, left:right] = 1
    flat = np.concatenate([[0], mask.ravel(order="F"), [0]])
    edges = np.flatnonzero(np.diff(flat))
    runs = {"size": [height, width], "counts": np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()}
    polygon = [[left, top, right, top, right, bottom, left, bottom]]
    base = {"image_id": 1, "category_id": 1, "bbox": [left, top, right - left, bottom - top], "area": 1.0}
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}],
               "annotations": [{"id": 1, **base, "segmentation": polygon}, {"id": 2, **base, "segmentation": runs}],
               "categories": [{"id": 1, "name": "red"}]}
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    Image.fromarray(pixels).save(tmp_path / "train" / "a.jpg", quality=95)
    return tmp_path


AFFINE = {"degrees": 0, "scale": [0.8, 1.2], "translate": [0.1, 0.1]}
OWN = [{"class_path": "torchvision.transforms.v2.RandomAffine", "init_args": AFFINE},
       {"class_path": "torchvision.transforms.v2.RandomHorizontalFlip"}]


@pytest.mark.parametrize("augment", [*RECIPES, OWN], ids=lambda augment: augment if isinstance(augment, str) else "own")
@pytest.mark.parametrize("size", [(96, 128), (256, 192)], ids=["reduced decoding", "full decoding"])
def test_boxes_and_masks_follow_the_pixels(rectangle_folder, augment, size):
    dataset = open_train(rectangle_folder, augment=augment, with_masks=True)
    seen = set()
    for position in range(8):
        image, target = dataset[key(0, position, size=size)]
        assert image.shape == (3, *size) and target["size"].tolist() == list(size) and len(target["boxes"]) == 2
        red = colours(image)[0].numpy()
        red = red > (red.min() + red.max()) / 2  # grey pictures too: there red is brighter than blue
        columns, rows = np.flatnonzero(red.any(axis=0)), np.flatnonzero(red.any(axis=1))
        expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(pixel_boxes(target, size), [expected] * 2, atol=1.3)
        for mask in target["masks"].numpy():
            assert (mask != red).mean() < 0.015
        seen.add(tuple(expected))
    assert len(seen) == 1 if augment == "none" else len(seen) > 1


def test_same_key_same_sample_whatever_came_before(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content(extension="jpg"))
    for augment in ("default", "light", OWN):
        dataset = open_train(folder, augment=augment)
        image, target = dataset[key(2, 5)]
        dataset[key(1, 9)]
        again, target_again = open_train(folder, augment=augment)[key(2, 5)]
        assert torch.equal(image, again) and all(torch.equal(target[name], target_again[name]) for name in target)
        others = [dataset[other][0] for other in (key(2, 6), key(2, 5, epoch=1), key(2, 5, seed=2), key(2, 7), key(2, 8))]
        assert any(not torch.equal(image, other) for other in others)


def test_plain_index_is_never_augmented(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content(), valid=coco_content())
    train = open_train(folder, augment="light")
    val = open_dataset(folder, "val", training=False, image_size=(64, 64), label_map=train.label_map)
    assert torch.equal(train[2][0], val[2][0]) and torch.equal(val[2][0], val[key(2, 3)][0])
    assert torch.equal(train[-1][0], train[5][0])
    with pytest.raises(IndexError):
        train[6]


def test_evaluation_masks_have_the_size_of_the_original(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content(), valid=coco_content())
    _, target = open_dataset(folder, "val", training=False, image_size=(32, 32), with_masks=True)[1]
    assert target["masks"].shape == (2, 60, 80)  # an object and the crowd
    assert target["masks"].sum(dim=(1, 2)).tolist() == [320, 60 * 80 - 100]
    _, target = open_train(folder, with_masks=True)[key(1, size=(32, 48))]
    assert target["masks"].shape[1:] == (32, 48)


def test_boxes_that_show_too_little_are_dropped(rectangle_folder):
    """A view of 0.6 of the sides may cut the rectangle, which is 310 of 900 pixels wide."""
    dataset = open_train(rectangle_folder)
    widths = {}
    for min_visible in (0.0, 0.999):
        dataset.augment = Recipe(name="test", zoom=1.0, zoom_sides=(0.6, 0.6), min_visible=min_visible)
        targets = [dataset[key(0, position)][1]["boxes"] for position in range(40)]
        widths[min_visible] = torch.cat(targets)[:, 2]
        assert all((boxes[:, :2] - boxes[:, 2:] / 2 > -1e-6).all() for boxes in targets)
    whole = 310 / 900 / 0.6
    assert (widths[0.0] < 0.9 * whole).any() and len(widths[0.0]) > len(widths[0.999]) > 0
    assert ((widths[0.999] - whole).abs() < 0.01).all()


def test_counts_and_scales_of_default_recipe(rectangle_folder):
    """As published: half of the samples show the whole picture, others a square of 384..600 of a short side of 400..600."""
    generator = np.random.default_rng(0)
    views = [RECIPES["default"].draw_view(generator, 700, 900) for _ in range(400)]
    crops = [view for view in views if view.extent.min() < 1 or view.extent.max() < 1]
    assert 160 < len(crops) < 240 and 160 < sum(view.hflip for view in views) < 240 and not any(view.vflip for view in views)
    heights = np.array([view.extent[1] for view in crops])
    assert heights.min() >= 384 / 600 - 1e-9 and heights.max() <= 1
    for view in crops:  # a square in pixels
        assert view.extent[0] * 900 == pytest.approx(view.extent[1] * 700, rel=5e-3)


def test_colours_change_with_light_only(rectangle_folder):
    def brightness(augment):
        return {round(colours(open_train(rectangle_folder, augment=augment)[key(0, i)][0])[2].max().item()) for i in range(8)}
    assert len(brightness("flips")) == 1 and len(brightness("light")) > 3


def test_missing_and_broken_images_are_named_at_access(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content())
    dataset = open_train(folder)
    (folder / "train" / "picture_2.png").unlink()
    (folder / "train" / "picture_4.png").write_bytes(b"broken")
    dataset[1]
    for index in (2, 4):
        with pytest.raises(InputError, match=f"picture_{index}.png"):
            dataset[index]
        with pytest.raises(InputError, match=f"picture_{index}.png"):
            dataset[key(index)]


def test_blank_image_takes_the_place_of_a_bad_one(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content(), valid=coco_content())
    for split in ("train", "valid"):
        (folder / split / "picture_2.png").unlink()
    train = open_train(folder, on_bad_image="skip", with_masks=True)
    image, target = train[key(2)]
    assert len(target["boxes"]) == 0 and target["masks"].shape == (0, 64, 64) and image.abs().max() < 0.4
    assert "picture_2.png: there is no such image file" in target["bad_image"] and "bad_image" not in train[key(1)][1]
    val = open_dataset(folder, "val", training=False, image_size=(64, 64), label_map=train.label_map, on_bad_image="skip")
    image, target = val[2]
    assert len(target["boxes"]) == 2 and image.shape == (3, 64, 64)  # its objects count as missed
    with pytest.raises(InputError, match="on_bad_image: 'blank'"):
        open_train(folder, on_bad_image="blank")


def test_exif_rule_turns_picture_and_boxes_alike(rectangle_folder):
    """The same rectangle in a file that is stored turned: the same sample, or a refusal."""
    expected, target = open_train(rectangle_folder)[0]
    path = rectangle_folder / "train" / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    image, turned = open_train(rectangle_folder)[0]
    assert (colours(image) - colours(expected)).abs().mean() < 1.5 and torch.equal(turned["boxes"], target["boxes"])
    with pytest.raises(InputError, match="which data.exif refuses"):
        open_train(rectangle_folder, exif="refuse")[0]
    assert "data.exif refuses" in open_train(rectangle_folder, exif="refuse", on_bad_image="skip")[key(0)][1]["bad_image"]


def test_bad_masks_are_refused_before_training(write_roboflow, coco_content):
    content = coco_content()
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5]]
    folder = write_roboflow(train=content)
    with pytest.raises(InputError, match=r"_annotations.coco.json: .*\n.* 1 masks that are neither .* with id 0 "):
        open_train(folder, with_masks=True)
    assert open_train(folder).num_boxes == 6


def test_real_masks_agree_with_boxes(real_data):
    """Nuclei: polygons and exact run lengths of the same cells, drawn in the same views."""
    dataset = open_dataset(real_data / "nuclei_dsb2018", "val", training=False, image_size=(128, 128), with_masks=True)
    _, target = dataset[0]
    boxes = pixel_boxes(target, target["orig_size"].tolist())
    assert target["masks"].shape == (len(boxes), *target["orig_size"].tolist())
    for mask, box in zip(target["masks"].numpy(), boxes):
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        np.testing.assert_allclose([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], box, atol=1.5)


def test_real_coco_images(real_data):
    """Every file decodes, grey ones included, and fits its annotated size."""
    dataset = open_train(real_data / "coco_real", augment="light", image_size=(64, 96))
    for index in range(0, len(dataset), 3):
        image, target = dataset[key(index, index)]
        assert image.shape == (3, 64, 96) and torch.isfinite(image).all()
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 1)).all() and (target["labels"] < 80).all()
