"""Augmentation of one's own: torchvision transforms by class path, repeatable, and without a trace in the global generators."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from rfdetr.data import SampleKey, open_dataset
from rfdetr.data.recipes import find_recipe
from rfdetr.data.transforms import apply_transforms, make_transforms
from rfdetr.errors import InputError

PIXELS = torch.arange(3 * 40 * 60, dtype=torch.uint8).view(3, 40, 60)
BOXES = np.array([[5, 5, 25, 25], [30, 10, 60, 40]], dtype=np.float32)
LABELS = torch.tensor([4, 7])


def apply(*steps, seed: int = 0, masks=None):
    return apply_transforms(make_transforms(steps), PIXELS, BOXES, LABELS, masks, seed)


def test_class_path_and_init_args():
    sample = apply({"class_path": "torchvision.transforms.v2.RandomHorizontalFlip", "init_args": {"p": 1.0}})
    assert torch.equal(sample.pixels, PIXELS.flip(2)) and type(sample.pixels) is torch.Tensor
    np.testing.assert_allclose(sample.boxes * (60, 40, 60, 40), [[35, 5, 55, 25], [0, 10, 30, 40]], atol=1e-5)
    assert sample.labels.tolist() == [4, 7]


def test_boxes_that_leave_the_picture_are_dropped_with_their_labels_and_masks():
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[1, 10:40, 30:60] = True
    sample = apply(v2.CenterCrop((20, 20)), masks=masks)  # x 20..40, y 10..30
    np.testing.assert_allclose(sample.boxes * 20, [[0, 0, 5, 15], [10, 0, 20, 20]])
    sample = apply(v2.RandomCrop((4, 4)), v2.CenterCrop((2, 2)), v2.SanitizeBoundingBoxes(), masks=masks, seed=4)
    assert len(sample.boxes) == len(sample.labels) == len(sample.masks) <= 1


def test_masks_turn_with_their_boxes():
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 5:25, 5:25], masks[1, 10:40, 30:60] = True, True
    sample = apply({"class_path": "torchvision.transforms.v2.RandomRotation", "init_args": {"degrees": [90, 90], "expand": True}},
                   masks=masks)
    assert torch.equal(sample.pixels, PIXELS.rot90(1, (1, 2))) and torch.equal(sample.masks, masks.rot90(1, (1, 2)))
    np.testing.assert_allclose(sample.boxes * (40, 60, 40, 60), [[5, 35, 25, 55], [10, 0, 40, 30]], atol=1e-5)


def test_no_transform_leaves_all_as_it_is():
    sample = apply()
    assert torch.equal(sample.pixels, PIXELS) and sample.masks is None
    np.testing.assert_allclose(sample.boxes * (60, 40, 60, 40), BOXES)


@pytest.mark.parametrize("step, message", [
    ({"class_path": "torchvision.transforms.v2.Nothing"}, "there is no torchvision.transforms.v2.Nothing"),
    ({"class_path": "no_such_module.Flip"}, "there is no no_such_module.Flip"),
    ({"class_path": "RandomRotation"}, "does not name a transform"),
    ({"class_path": "torchvision.transforms.v2.RandomRotation", "args": {}}, "class_path .* and init_args only"),
    ({"class_path": "torchvision.transforms.v2.RandomRotation", "init_args": {"degree": 3}}, "does not accept {'degree': 3}"),
    ("flip", "'flip' is not a transform"),
])
def test_bad_steps_are_named(step, message):
    with pytest.raises(InputError, match=message):
        make_transforms([step])


@pytest.mark.parametrize("change", [{"labels": LABELS[:1]}, {"image": None}, {"boxes": None}])
def test_transforms_that_break_the_sample_are_refused(change):
    with pytest.raises(InputError, match="the transforms must leave"):
        apply(lambda sample: {**sample, **change})


def test_unknown_recipe():
    with pytest.raises(InputError, match="no recipe 'strong'; the recipes are none, default, flips, light"):
        find_recipe("strong")


def global_draws() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]


def noisy(sample: dict) -> dict:
    """A transform that draws from every global generator."""
    shift = random.random() + np.random.rand() + torch.rand(()).item()
    return {**sample, "image": (sample["image"].float() / 255 * shift).clamp(0, 1)}


@pytest.mark.parametrize("augment", ["default", "light", [noisy, v2.RandomPhotometricDistort(p=1.0)]],
                         ids=["default", "light", "own"])
def test_global_generators_are_left_alone(write_roboflow, coco_content, augment):
    dataset = open_dataset(write_roboflow(train=coco_content()), "train", training=True, image_size=(32, 32), augment=augment)
    samples = []
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before = global_draws()
        samples.append(dataset[SampleKey(2, 0, 0, 3)][0])
        assert global_draws() == before
    assert torch.equal(*samples)


def test_float_images_of_own_transforms(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content())
    plain, as_float = (open_dataset(folder, "train", training=True, image_size=(32, 32), augment=augment)
                       for augment in ([], [v2.ToDtype(torch.float32, scale=True)]))
    key = SampleKey(2, 0, 0, 3)
    torch.testing.assert_close(plain[key][0], as_float[key][0])
    assert torch.equal(plain[key][1]["boxes"], plain[2][1]["boxes"])
    torch.testing.assert_close(plain[key][1]["area"], torch.tensor([320.0, 320.0]))
