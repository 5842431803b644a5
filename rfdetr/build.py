"""Make a detector, its loss and its post-processing from their configurations."""

from collections.abc import Sequence

from rfdetr.config import ENCODERS, ModelConfig
from rfdetr.losses import HungarianMatcher, SetCriterion
from rfdetr.losses.config import LossConfig
from rfdetr.models.backbone import Backbone, WindowedViT
from rfdetr.models.detector import RFDETR
from rfdetr.models.postprocess import PostProcess
from rfdetr.models.projector import Projector
from rfdetr.models.segmentation import SegmentationHead
from rfdetr.models.transformer import Transformer


def build_model(config: ModelConfig, *, gradient_checkpointing: bool = False) -> RFDETR:
    """Make a detector with random weights; no file and no network is touched.

    Args:
        gradient_checkpointing: recompute the ViT blocks in backward, which trades time for memory.
    """
    num_logits = config.num_classes + 1
    transformer = Transformer(
        config.hidden_dim, num_layers=config.dec_layers, sa_heads=config.sa_nheads, ca_heads=config.ca_nheads,
        num_levels=len(config.projector_scale), num_points=config.dec_n_points, ffn_width=config.dim_feedforward,
        num_queries=config.num_queries, num_groups=config.group_detr, num_logits=num_logits,
    )
    segmentation_head = None
    if config.segmentation_head:
        segmentation_head = SegmentationHead(config.hidden_dim, config.dec_layers, config.mask_downsample_ratio)
    return RFDETR(
        _build_backbone(config, gradient_checkpointing), transformer, width=config.hidden_dim,
        num_queries=config.num_queries, num_groups=config.group_detr, num_logits=num_logits,
        segmentation_head=segmentation_head,
    )


def _build_backbone(config: ModelConfig, gradient_checkpointing: bool) -> Backbone:
    size = ENCODERS[config.encoder]
    encoder = WindowedViT(
        width=size.width, depth=size.depth, num_heads=size.num_heads, patch_size=config.patch_size,
        grid_size=config.positional_encoding_size, num_windows=config.num_windows, taps=config.out_feature_indexes,
        checkpoint_blocks=gradient_checkpointing,
    )
    projector = Projector(size.width, len(config.out_feature_indexes), config.hidden_dim, config.projector_scale)
    return Backbone(encoder, projector)


def build_postprocess(config: ModelConfig) -> PostProcess:
    """Make what turns the model's outputs into detections in pixels."""
    return PostProcess(config.num_select)


def build_criterion(
    config: ModelConfig, loss: LossConfig = LossConfig(), class_weights: Sequence[float] | None = None
) -> SetCriterion:
    """Make the training loss of a detector, with the same weights for every layer that it returns.

    Args:
        class_weights: of each logit (`SetCriterion`); ``loss.class_weights`` has names, which only data can resolve.
    """
    has_masks = config.segmentation_head
    matcher = HungarianMatcher(
        loss.set_cost_class, loss.set_cost_bbox, loss.set_cost_giou, focal_alpha=loss.focal_alpha,
        cost_mask_ce=loss.mask_ce_loss_coef, cost_mask_dice=loss.mask_dice_loss_coef,
        mask_point_sample_ratio=loss.mask_point_sample_ratio,
    )
    weights = {"loss_ce": loss.cls_loss_coef, "loss_bbox": loss.bbox_loss_coef, "loss_giou": loss.giou_loss_coef}
    if has_masks:
        weights |= {"loss_mask_ce": loss.mask_ce_loss_coef, "loss_mask_dice": loss.mask_dice_loss_coef}
    suffixes = ("", *(f"_{layer}" for layer in range(config.dec_layers - 1)), "_enc")
    return SetCriterion(
        matcher,
        {name + suffix: weight for suffix in suffixes for name, weight in weights.items()},
        losses=("labels", "boxes", "cardinality", "masks") if has_masks else ("labels", "boxes", "cardinality"),
        class_loss="position_supervised" if loss.cls == "position" else loss.cls,
        focal_alpha=loss.focal_alpha,
        group_detr=config.group_detr,
        sum_group_losses=loss.sum_group_losses,
        mask_point_sample_ratio=loss.mask_point_sample_ratio,
        class_weights=class_weights,
    )
