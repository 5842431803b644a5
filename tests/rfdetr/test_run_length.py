"""Run lengths are those of pycocotools, byte for byte, and strings are read as it reads them, unless they are broken."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_tools

from rfdetr.evaluation.records import encode_masks
from rfdetr.run_length import read_counts, run_lengths


def pictures():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(12, 7, 11, generator=generator) < 0.5
    masks[0], masks[1] = False, True
    masks[2] = False
    masks[2, 3, 5] = True  # a single pixel
    masks[3, :, :4], masks[3, :, 8:] = False, False
    masks[4], masks[4, 0, 0], masks[4, -1, -1] = False, True, True  # the first and the last pixel
    masks[5], masks[5, -1, 6] = False, True
    return masks


def test_as_pycocotools_encodes():
    masks = pictures()
    found = encode_masks(masks[:, None])
    assert found == [mask_tools.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in masks]


def test_no_masks():
    assert encode_masks(torch.zeros(0, 1, 7, 11, dtype=torch.bool)) == []


def test_strings_and_lists_are_the_same_numbers():
    wide = np.zeros((3000, 900), dtype=np.uint8)  # runs of up to five characters
    wide[1, 1::7] = wide[2990:, 450:455] = 1
    for mask in [*pictures().numpy(), wide]:
        counts = run_lengths(torch.from_numpy(mask)[None])[0]["counts"]
        text = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert read_counts(text).tolist() == read_counts(text.decode()).tolist() == read_counts(counts).tolist() == counts


@pytest.mark.parametrize("text", ["Rc", "o", "~", " 5", "é5", "oooooooo0", "[1, 2]"])
def test_broken_strings_are_refused(text):
    with pytest.raises(ValueError, match="broken"):
        read_counts(text)


@pytest.mark.parametrize("counts, message", [
    ([1, -2], "negative"), ("O", "negative"), ([1, 2.5], "2.5, which is no whole number"), (None, "are None, not a list"),
    ([True], "no whole number"), ([10**400], "no whole number"), ({}, "not a list or a string"),
])
def test_other_values_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        read_counts(counts)


def test_numbers_of_other_types():
    assert read_counts([1.0, "2", " 3 "]).tolist() == [1, 2, 3]
