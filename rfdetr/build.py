"""Make the parts of a run from its configuration. Only this file and tools/ read config objects."""

from pathlib import Path

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import rfdetr.optim as optim
from rfdetr.config import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from rfdetr.data import (
    CocoDetection,
    DetectionLoader,
    LabelMap,
    available_splits,
    eval_loader,
    multi_scale_sizes,
    open_dataset,
    train_loader,
)
from rfdetr.data.annotations import RawSplit
from rfdetr.data.check import DatasetCheck, check_dataset
from rfdetr.data.recipes import find_recipe
from rfdetr.data.shapes import make_shapes
from rfdetr.data.shards import is_address
from rfdetr.data.transforms import make_transforms
from rfdetr.encoders import ENCODERS
from rfdetr.errors import InputError
from rfdetr.losses import HungarianMatcher, SetCriterion
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


def build_criterion(model: ModelConfig, loss: LossConfig = LossConfig()) -> SetCriterion:
    """Make the training loss of a detector, with the same weights for every layer that it returns."""
    has_masks = model.segmentation_head
    matcher = HungarianMatcher(
        loss.set_cost_class, loss.set_cost_bbox, loss.set_cost_giou, focal_alpha=loss.focal_alpha,
        cost_mask_ce=loss.mask_ce_loss_coef, cost_mask_dice=loss.mask_dice_loss_coef,
        mask_point_sample_ratio=loss.mask_point_sample_ratio,
    )
    weights = {"loss_ce": loss.cls_loss_coef, "loss_bbox": loss.bbox_loss_coef, "loss_giou": loss.giou_loss_coef}
    if has_masks:
        weights |= {"loss_mask_ce": loss.mask_ce_loss_coef, "loss_mask_dice": loss.mask_dice_loss_coef}
    suffixes = ("", *(f"_{layer}" for layer in range(model.dec_layers - 1)), "_enc")
    return SetCriterion(
        matcher,
        {name + suffix: weight for suffix in suffixes for name, weight in weights.items()},
        losses=("labels", "boxes", "cardinality", "masks") if has_masks else ("labels", "boxes", "cardinality"),
        class_loss="position_supervised" if loss.cls == "position" else loss.cls,
        focal_alpha=loss.focal_alpha,
        group_detr=model.group_detr,
        sum_group_losses=loss.sum_group_losses,
        mask_point_sample_ratio=loss.mask_point_sample_ratio,
    )


def build_dataset(
    config: DataConfig, model: ModelConfig, split: str, label_map: LabelMap | None = None, *, raw: RawSplit | None = None
) -> CocoDetection:
    """Open the split "train", "val" or "test" for a model of this input size; only "train" is augmented.

    Args:
        label_map: of the training split or of a checkpoint; without it, it is made from the train split.
        raw: the split as `check_data` has read it.
    """
    folder, format = _data_folder(config)
    kind = "coco" if config.label_map == "coco" else None
    return open_dataset(
        folder, split, image_size=model.input_size, training=split == "train", format=format, paths=config.splits,
        label_map=label_map or kind, with_masks=model.segmentation_head, augment=config.augment,
        on_bad_image=config.on_bad_image, exif=config.exif, cache=config.cache, raw=raw,
    )


def data_splits(config: DataConfig) -> tuple[str, ...]:
    """Return which of train, val and test the data set has."""
    folder, format = _data_folder(config)
    return available_splits(folder, format, config.splits)


def check_data(
    config: DataConfig, input_size: tuple[int, int], num_queries: int, **options: bool
) -> DatasetCheck:
    """Check the data set of a run, for a model of this input (H, W) and number of queries; options of `check_dataset`."""
    folder, format = _data_folder(config)
    return check_dataset(folder, format=format, paths=config.splits, input_size=input_size, num_queries=num_queries, **options)


def build_loader(
    dataset: CocoDetection, config: DataConfig, model: ModelConfig, *, train: TrainConfig | None = None,
    rank: int = 0, world_size: int = 1, pin_memory: bool = False,
) -> DetectionLoader:
    """Make a loader of this rank's share: for training if `train` is given, else every image once and in order."""
    shared = {"size_divisor": model.size_divisor, "rank": rank, "world_size": world_size, "num_workers": config.num_workers,
              "pin_memory": pin_memory, "prefetch_factor": config.prefetch_factor,
              "persistent_workers": config.persistent_workers,
              "start_method": None if config.start_method == "auto" else config.start_method}
    if train is None:
        return eval_loader(dataset, batch_size=config.eval_batch_size or config.batch_size, **shared)
    sizes = _train_sizes(model, config.expanded_scales) if config.multi_scale else None
    return train_loader(dataset, batch_size=config.batch_size, seed=train.seed, grad_accum_steps=train.grad_accum_steps,
                        sizes=sizes, **shared)


def check_names(data: DataConfig, optimizer: OptimConfig) -> None:
    """Refuse a recipe, transform, optimizer or schedule that is not there, which takes no data to find out."""
    if isinstance(data.augment, str):
        find_recipe(data.augment)
    else:
        make_transforms(data.augment)
    optim.optimizer_class(optimizer.optimizer)
    if optimizer.schedule not in ("step", "cosine"):
        optim.scheduler_class(optimizer.schedule)


def _train_sizes(model: ModelConfig, expanded: bool) -> list[tuple[int, int]]:
    """Return the (H, W) of multi-scale training; an input that is not square keeps about its shape."""
    height, width = model.input_size
    heights = multi_scale_sizes(height, model.patch_size, model.num_windows, expanded)
    divisor = model.size_divisor
    return [(side, max(1, round(side * width / height / divisor)) * divisor) for side in heights]


def _data_folder(config: DataConfig) -> tuple[Path | str, str]:
    """Return the folder or address of the data set and its format; the embedded data set is made if it is not there."""
    if config.dataset_dir is None:
        raise InputError("data.dataset_dir: is not set; name the folder of the data set")
    if is_address(config.dataset_dir):
        return config.dataset_dir, config.format
    folder = Path(config.dataset_dir).expanduser()
    return (make_shapes(folder), "roboflow") if config.format == "shapes" else (folder, config.format)


def build_optimizer(config: OptimConfig, model: RFDETR) -> Optimizer:
    """Make the optimizer on parameter groups with layer-wise learning rates; the model is on its device already."""
    groups = optim.param_groups(
        model, lr=config.lr, lr_encoder=config.lr_encoder, lr_vit_layer_decay=config.lr_vit_layer_decay,
        lr_component_decay=config.lr_component_decay, weight_decay=config.weight_decay,
    )
    return optim.build_optimizer(groups, config.optimizer, init_args=config.optimizer_args)


def build_lr_scheduler(config: OptimConfig, optimizer: Optimizer, *, epochs: int, steps_per_epoch: int) -> LRScheduler:
    """Make the learning rate schedule, which advances with every optimizer step."""
    return optim.build_lr_scheduler(
        optimizer, config.schedule, total_steps=epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch,
        warmup_epochs=config.warmup_epochs, lr_drop=config.lr_drop, min_factor=config.lr_min_factor,
        init_args=config.schedule_args,
    )
