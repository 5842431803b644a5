"""Run lengths are those of pycocotools, byte for byte."""

import numpy as np
import torch
from pycocotools import mask as mask_tools

from rfdetr.evaluation.coco_engine import encode_masks


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
