"""Settings of the loss; `rfdetr.build_criterion` makes the criterion of them."""

from dataclasses import dataclass
from typing import Literal

from rfdetr.errors import InputError
from rfdetr.fields import check_choices, check_fields, is_count, is_fraction, is_not_negative, is_positive


def _are_weights(value: dict[str, float] | str | None) -> bool:
    return value in (None, "balanced") or isinstance(value, dict) and bool(value) and all(map(is_positive, value.values()))


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Loss terms, and the costs by which predictions are matched to objects."""

    cls: Literal["ia_bce", "varifocal", "position", "focal"] = "ia_bce"
    """Classification loss; "ia_bce" is the published one."""
    cls_loss_coef: float = 1.0
    """Weight of the classification loss."""
    bbox_loss_coef: float = 5.0
    """Weight of the L1 box loss."""
    giou_loss_coef: float = 2.0
    """Weight of the generalized IoU loss."""
    mask_ce_loss_coef: float = 5.0
    """Weight of the masks' cross entropy, in the loss and in the matching (segmentation variants)."""
    mask_dice_loss_coef: float = 5.0
    """Weight of the masks' dice loss, in the loss and in the matching (segmentation variants)."""
    set_cost_class: float = 2.0
    """Weight of the class in the matching."""
    set_cost_bbox: float = 5.0
    """Weight of the L1 box distance in the matching."""
    set_cost_giou: float = 2.0
    """Weight of the generalized IoU in the matching."""
    focal_alpha: float = 0.25
    """Balance of positive and negative examples in the classification loss and the matching, 0 to 1."""
    class_weights: dict[str, float] | Literal["balanced"] | None = None
    """How much the classification loss of an object counts by its class: {name: weight}, 1 for the others, or "balanced": objects
    / (classes x objects of the class), with which each class counts alike (default: all objects count alike)."""
    mask_point_sample_ratio: int = 16
    """One point is sampled for so many mask pixels (segmentation variants)."""
    normalize: Literal["batch", "window"] = "batch"
    """Divide losses by the objects of a batch, or of the whole accumulation window (then accumulation equals a big batch)."""
    sum_group_losses: bool = False
    """Sum the losses of the query groups; the default averages them."""

    def __post_init__(self) -> None:
        check_choices(self, "loss")
        check_fields(self, "loss", "0 or more", is_not_negative, "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef",
                     "mask_ce_loss_coef", "mask_dice_loss_coef", "set_cost_class", "set_cost_bbox", "set_cost_giou")
        check_fields(self, "loss", "between 0 and 1", is_fraction, "focal_alpha")
        check_fields(self, "loss", "1 or more", is_count, "mask_point_sample_ratio")
        check_fields(self, "loss", '{name of a class: weight above 0}, or "balanced"', _are_weights, "class_weights")
        if self.set_cost_class == self.set_cost_bbox == self.set_cost_giou == 0:
            raise InputError("loss.set_cost_class, set_cost_bbox, set_cost_giou: all are 0; the matching needs one above 0")
