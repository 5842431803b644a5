"""The data of a run: the data set that its configuration names, or somebody's own, and the loaders."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from engine.distributed import is_main_process, rank, world_size
from rfdetr.config import ModelConfig
from rfdetr.data import DetectionLoader, LabelMap, available_splits, eval_loader, multi_scale_sizes, open_dataset, train_loader
from rfdetr.data.annotations import RawSplit
from rfdetr.data.shards import is_address
from rfdetr.datacheck import DatasetCheck, check_dataset
from rfdetr.errors import InputError
from rfdetr.shapes.dataset import make_shapes
from rfdetr.training.config import RunConfig
from rfdetr.training.own_data import OwnDataset
from rfdetr.training.sections import DataConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """The two data sets of a training, and what they say about the model."""

    train_set: Dataset
    val_set: Dataset
    architecture: ModelConfig  # with as many classes as there are

    @property
    def label_map(self) -> LabelMap:
        """The classes, as the training split numbers them."""
        return self.train_set.label_map


def open_run_data(config: RunConfig, train_set: Dataset | None = None, val_set: Dataset | None = None) -> RunData:
    """Open the splits train and val, once they are checked; somebody's own data sets take their place."""
    architecture = config.model.architecture()
    splits: dict[str, RawSplit] = {}
    if train_set is None:
        splits = check_splits(config) if is_main_process() else {}
        train_set = open_split(config.data, architecture, "train", raw=splits.get("train"))
    else:
        train_set = OwnDataset.of(train_set, architecture, training=True, num_classes=config.model.num_classes)
    architecture = architecture_for(config, train_set.label_map)
    if val_set is None:
        data = replace(config.data, white_level=getattr(train_set, "white_level", None))  # one for all splits
        val_set = open_split(data, architecture, "val", train_set.label_map, raw=splits.get("val"))
    else:
        val_set = OwnDataset.of(val_set, architecture, training=False, label_map=train_set.label_map)
    return RunData(train_set, val_set, architecture)


def open_split(
    config: DataConfig, architecture: ModelConfig, split: str, label_map: LabelMap | None = None, *, raw: RawSplit | None = None
) -> Dataset:
    """Open the split "train", "val" or "test" for a model of this input size; only "train" is augmented.

    Args:
        label_map: of the training split or of a checkpoint; without it, it is made from the train split.
        raw: the split as `check_splits` has read it.
    """
    folder, format = data_folder(config)
    kind = "coco" if config.label_map == "coco" else None
    return open_dataset(
        folder, split, image_size=architecture.input_size, training=split == "train", format=format, paths=config.splits,
        label_map=label_map or kind, with_masks=architecture.segmentation_head, augment=config.augment,
        on_bad_image=config.on_bad_image, exif=config.exif, cache=config.cache, raw=raw, **_reading(config),
    )


def check_splits(config: RunConfig) -> dict[str, RawSplit]:
    """Refuse data that would break or falsify the run, say what it will be evaluated on, and return the splits as read."""
    architecture = config.model.architecture()
    check = check_data(config.data, architecture.input_size, architecture.num_queries, quick=True,
                       with_masks=architecture.segmentation_head)
    tolerated = ["same_image"]  # training on the images of the evaluation is a way to see whether a model learns at all
    tolerated += ["missing_image", "no_image_size"] if config.data.on_bad_image == "skip" else []
    check.findings.refuse_errors(config.data.dataset_dir, but=tolerated)
    for split, when in {"val": "during training", "test": "at the end"}.items():
        if split == "val" or config.eval.run_test:
            numbers = check.statistics[split]
            logger.info("evaluated %s: the %s split, %d images with %d boxes, of %s", when, split, numbers.images, numbers.boxes,
                        check.splits[split].raw.source)
    return {name: split.raw for name, split in check.splits.items()}


def check_data(config: DataConfig, input_size: tuple[int, int], num_queries: int, **options: bool) -> DatasetCheck:
    """Check the data set of a run, for a model of this input (H, W) and number of queries; options of `check_dataset`."""
    folder, format = data_folder(config)
    return check_dataset(folder, format=format, paths=config.splits, input_size=input_size, num_queries=num_queries,
                         **_reading(config), **options)


def _reading(config: DataConfig) -> dict[str, Any]:
    return {"white_level": config.white_level, "max_pixels": config.max_pixels, "val_fraction": config.val_fraction,
            "allow_outside": config.allow_outside}


def data_splits(config: DataConfig) -> tuple[str, ...]:
    """Return which of train, val and test the data set has."""
    folder, format = data_folder(config)
    return available_splits(folder, format, config.splits)


def architecture_for(config: RunConfig, label_map: LabelMap) -> ModelConfig:
    """Return the model's architecture, with as many classes as the data have unless the configuration asks for more."""
    architecture = config.model.architecture(label_map.num_classes)
    if architecture.num_classes < label_map.num_classes:
        raise InputError(
            f"model.num_classes: {architecture.num_classes} are too few, the data set has {label_map.num_classes} "
            f"({', '.join(label_map.names)}); leave it out, or make it larger"
        )
    return architecture


def build_train_loader(config: RunConfig, data: RunData, device: torch.device) -> DetectionLoader:
    """Make the loader of this rank's share of the training batches."""
    return train_loader(
        data.train_set, batch_size=config.data.batch_size, seed=config.train.seed, grad_accum_steps=config.train.grad_accum_steps,
        sizes=train_sizes(config.data, data.architecture), **_loader_options(config.data, data.architecture, device),
    )


def build_eval_loader(config: DataConfig, dataset: Dataset, architecture: ModelConfig, device: torch.device) -> DetectionLoader:
    """Make the loader of this rank's share of a split, every image once and in order."""
    found = DataConfig.batch_size if config.batch_size == "auto" else config.batch_size  # auto is for training
    return eval_loader(dataset, batch_size=config.eval_batch_size or found,
                       **_loader_options(config, architecture, device))


def _loader_options(config: DataConfig, architecture: ModelConfig, device: torch.device) -> dict[str, Any]:
    return {
        "size_divisor": architecture.size_divisor, "rank": rank(), "world_size": world_size(), "num_workers": config.num_workers,
        "pin_memory": device.type == "cuda", "prefetch_factor": config.prefetch_factor,
        "persistent_workers": config.persistent_workers,
        "start_method": None if config.start_method == "auto" else config.start_method,
        "timeout_seconds": config.timeout_seconds, "max_bad_images": config.max_bad_images,
    }


def train_sizes(config: DataConfig, architecture: ModelConfig) -> list[tuple[int, int]] | None:
    """Return the (H, W) of multi-scale training, None without; an input that is not square keeps about its shape."""
    if not config.multi_scale:
        return None
    height, width = architecture.input_size
    heights = multi_scale_sizes(height, architecture.patch_size, architecture.num_windows, config.expanded_scales)
    divisor = architecture.size_divisor
    return [(side, max(1, round(side * width / height / divisor)) * divisor) for side in heights]


def data_folder(config: DataConfig) -> tuple[Path | str, str]:
    """Return the folder or address of the data set and its format; the made-up data set is drawn if it is not there."""
    if config.dataset_dir is None:
        raise InputError("data.dataset_dir: is not set; name the folder of the data set")
    if is_address(config.dataset_dir):
        return config.dataset_dir, config.format
    folder = Path(config.dataset_dir).expanduser()
    return (make_shapes(folder), "roboflow") if config.format == "shapes" else (folder, config.format)
