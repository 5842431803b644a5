"""Batches of images of different size."""

import pytest
import torch

from rfdetr.data import preprocess
from rfdetr.data.loader import PixelBatch
from rfdetr.errors import InputError
from rfdetr.nested_tensor import NestedTensor, collate


def test_images_are_padded_at_the_bottom_and_right():
    images = [torch.ones(3, 4, 6), torch.full((3, 5, 3), 2.0)]
    targets = [{"image_id": 1}, {"image_id": 2}]
    samples, returned = collate(list(zip(images, targets)))
    assert returned == targets
    assert samples.shape == (2, 3, 5, 6) and len(samples) == 2
    for index, image in enumerate(images):
        h, w = image.shape[-2:]
        assert torch.equal(samples.tensors[index, :, :h, :w], image)
        assert samples.tensors[index].sum() == image.sum()
        assert not samples.mask[index, :h, :w].any()
        assert samples.mask[index].sum() == 30 - h * w
    assert samples.has_padding


def test_the_size_is_rounded_up_to_the_divisor():
    samples, _ = collate([(torch.ones(3, 30, 33), {})], size_divisor=32)
    assert samples.shape == (1, 3, 32, 64)
    assert samples.has_padding
    assert samples.mask.sum() == 32 * 64 - 30 * 33


def test_equal_sizes_need_no_padding():
    samples, _ = collate([(torch.randn(3, 32, 64), {})] * 2, size_divisor=32)
    assert samples.shape == (2, 3, 32, 64)
    assert not samples.has_padding and samples.mask is None


def test_to_converts_images_only_and_keeps_the_promise():
    samples, _ = collate([(torch.randn(3, 8, 8), {})])
    moved = samples.to("cpu", non_blocking=True, dtype=torch.float64)
    assert moved.dtype == torch.float64 and moved.device.type == "cpu" and not moved.has_padding
    padded = NestedTensor(samples.tensors, torch.ones(1, 8, 8, dtype=torch.bool)).to("cpu", dtype=torch.float64)
    assert padded.has_padding and padded.mask.dtype == torch.bool


def test_bytes_are_normalised_where_they_arrive():
    pixels = torch.randint(256, (2, 3, 8, 6), dtype=torch.uint8)
    mask = torch.zeros(2, 8, 6, dtype=torch.bool)
    mask[1, 5:] = True
    batch = PixelBatch(pixels, mask)
    moved = batch.to("cpu")
    assert type(moved) is NestedTensor and moved.dtype == torch.float32 and batch.dtype == torch.uint8
    expected = torch.stack([preprocess(image, (8, 6)) for image in pixels])
    assert torch.equal(moved.tensors, expected.masked_fill(mask[:, None], 0)) and moved.has_padding
    assert type(batch[:1]) is PixelBatch


def test_no_mask_is_no_padding():
    assert not NestedTensor(torch.zeros(1, 3, 8, 8)).to("cpu").has_padding


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"mask \(1, 4, 8\)"):
        NestedTensor(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, dtype=torch.bool))


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match="empty list"):
        collate([])
