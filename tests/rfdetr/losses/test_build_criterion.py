"""build_criterion: the published weights by default, and the configuration's values where they belong."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
import torch

from rfdetr.build import build_criterion
from rfdetr.config import VARIANTS
from rfdetr.losses.config import LossConfig
from rfdetr.losses.functional import FOREGROUND


def test_default_weights_of_every_layer():
    criterion = build_criterion(VARIANTS["nano"])
    published = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    assert criterion.weight_dict == {
        name + suffix: weight for suffix in ("", "_0", "_enc") for name, weight in published.items()
    }
    assert criterion.group_detr == 13 and criterion.class_loss == "ia_bce"
    assert (criterion.matcher.cost_class, criterion.matcher.cost_bbox, criterion.matcher.cost_giou) == (2.0, 5.0, 2.0)


def test_segmentation_variants_get_mask_losses():
    criterion = build_criterion(VARIANTS["seg_nano"], LossConfig(mask_dice_loss_coef=7.0, mask_point_sample_ratio=4))
    assert "masks" in criterion.losses
    assert criterion.weight_dict["loss_mask_dice_2"] == criterion.matcher.cost_mask_dice == 7.0
    assert criterion.mask_point_sample_ratio == criterion.matcher.mask_point_sample_ratio == 4


@pytest.mark.parametrize("cls", get_args(get_type_hints(LossConfig)["cls"]))
def test_every_classification_loss_of_the_configuration(cls):
    config = dataclasses.replace(VARIANTS["pico"], group_detr=2, num_classes=3)
    criterion = build_criterion(config, LossConfig(cls=cls))
    assert criterion.class_loss in FOREGROUND and criterion.class_loss.startswith(cls)
    outputs = {"pred_logits": torch.randn(1, 8, 4), "pred_boxes": torch.rand(1, 8, 4)}
    losses = criterion(outputs, [{"boxes": torch.rand(1, 4), "labels": torch.tensor([3])}])
    assert losses["loss_ce"] > 0
