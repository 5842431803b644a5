"""The data of a run: the data set that its configuration names, or somebody's own, and the loaders."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from engine.distributed import is_main_process, rank, world_size
from rfdetr.config import ModelConfig
from rfdetr.data import (
    DetectionDataset,
    DetectionLoader,
    LabelMap,
    available_splits,
    eval_loader,
    multi_scale_sizes,
    open_dataset,
    train_loader,
)
from rfdetr.data.annotations import RawSplit
from rfdetr.data.class_matching import find_names
from rfdetr.data.mixing import Mixing
from rfdetr.data.shards import is_address
from rfdetr.datacheck import DatasetCheck, check_dataset, to_dict
from rfdetr.errors import InputError
from rfdetr.losses.config import LossConfig
from rfdetr.shapes.dataset import make_shapes
from rfdetr.training.command_line import bad_input
from rfdetr.training.config import RunConfig
from rfdetr.training.own_data import OwnDataset
from rfdetr.training.sections import MIXED, DataConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """The two data sets of a training, and what they say about the model."""

    train_set: Dataset
    val_set: Dataset
    architecture: ModelConfig  # with as many classes as there are
    facts: dict[str, Any] | None = None  # what the check says of the data, as plain values, on the main process

    @property
    def label_map(self) -> LabelMap:
        """The classes, as the training split numbers them."""
        return self.train_set.label_map


def open_run_data(config: RunConfig, train_set: Dataset | None = None, val_set: Dataset | None = None) -> RunData:
    """Open the splits train and val, once they are checked; somebody's own data sets take their place."""
    architecture = config.model.architecture()
    splits: dict[str, RawSplit] = {}
    facts = None
    if train_set is None:
        check = check_splits(config) if is_main_process() else None
        splits = {} if check is None else {name: split.raw for name, split in check.splits.items()}
        facts = None if check is None else to_dict(check)
        train_set = open_split(config.data, architecture, "train", raw=splits.get("train"), mixing=_mixing(config))
    else:
        _refuse_own_data(config, is_opened=isinstance(train_set, DetectionDataset))
        train_set = OwnDataset.of(train_set, architecture, training=True, num_classes=config.model.num_classes,
                                  letterbox=letterbox_cell(config.data, architecture))
    architecture = architecture_for(config, train_set.label_map)
    if val_set is None:
        data = replace(config.data, white_level=getattr(train_set, "white_level", None))  # one for all splits
        val_set = open_split(data, architecture, "val", train_set.label_map, raw=splits.get("val"))
    else:
        val_set = OwnDataset.of(val_set, architecture, training=False, label_map=train_set.label_map,
                                letterbox=letterbox_cell(config.data, architecture))
    return RunData(train_set, val_set, architecture, facts)


def _refuse_own_data(config: RunConfig, *, is_opened: bool) -> None:
    """Refuse settings that cannot act on a train_set of one's own."""
    data = config.data
    of_opening = {"data.classes": data.classes is not None, "data.single_class": data.single_class,
                  "data.fraction": data.fraction < 1, **{f"data.{name}": getattr(data, name) > 0 for name in MIXED}}
    of_annotations = {"data.sampling": data.sampling == "repeat_factor",
                      "loss.class_weights": config.loss.class_weights == "balanced"}  # which a DetectionDataset knows
    if found := [name for name, is_set in (of_opening | ({} if is_opened else of_annotations)).items() if is_set]:
        raise InputError(f"train_set: {', '.join(found)} cannot act on a data set of one's own; leave it out, or name a "
                         "folder by data.dataset_dir")


def open_split(
    config: DataConfig, architecture: ModelConfig, split: str, label_map: LabelMap | None = None, *, raw: RawSplit | None = None,
    training: bool | None = None, mixing: Mixing | None = None,
) -> Dataset:
    """Open the split "train", "val" or "test" for a model of this input size.

    Args:
        label_map: of the training split or of a checkpoint; without it, it is made from the train split.
        raw: the split as `check_splits` has read it.
        training: give augmented samples (default: of "train"); `mixing` of them, see `DetectionDataset`.
    """
    folder, format = data_folder(config)
    kind = "coco" if config.label_map == "coco" else None
    training = split == "train" if training is None else training
    return open_dataset(
        folder, split, image_size=architecture.input_size, training=training, format=format, paths=config.splits,
        label_map=label_map or kind, with_masks=architecture.segmentation_head, augment=config.augment,
        on_bad_image=config.on_bad_image, exif=config.exif, cache=config.cache, raw=raw,
        classes=config.classes, single_class=config.single_class, fraction=config.fraction, mixing=mixing,
        letterbox=letterbox_cell(config, architecture), **_reading(config),
    )


def _mixing(config: RunConfig) -> Mixing | None:
    """Return how training samples are mixed; None: they are not."""
    chances = {"mosaic": config.data.mosaic, "copy_paste": config.data.copy_paste, "mixup": config.data.mixup}
    return Mixing(**chances, end_epoch=config.train.epochs - config.data.mix_off_epochs) if any(chances.values()) else None


def _end_mixing(config: RunConfig, dataset: DetectionDataset, steps_per_epoch: int) -> None:
    """Say until when samples are mixed, which is earlier where `train.max_steps` ends the run."""
    off, epochs = config.data.mix_off_epochs, config.train.epochs
    if config.train.max_steps is not None:
        epochs = min(epochs, math.ceil(config.train.max_steps / steps_per_epoch))
    if off >= epochs:
        raise InputError(f"data.mix_off_epochs: with {off} of {epochs} epochs (train.max_steps {config.train.max_steps} at "
                         f"{steps_per_epoch} steps an epoch) nothing is mixed; make it smaller")
    dataset.mixing = replace(dataset.mixing, end_epoch=epochs - off)
    chances = ", ".join(f"{name} {getattr(config.data, name):g}" for name in MIXED)
    logger.info("mixed samples: %s; until epoch %d of %d", chances, epochs - off, epochs)


def letterbox_cell(config: DataConfig, architecture: ModelConfig) -> int | None:
    """Return what `DetectionDataset` and `predict` take as `letterbox`."""
    return architecture.cell_size if config.resize == "letterbox" else None


def check_splits(config: RunConfig) -> DatasetCheck:
    """Refuse data that would break or falsify the run, say what it will be evaluated on, and return the check with the splits."""
    check = _check_quickly(config.data, config.model.architecture())
    for split, when in {"val": "during training", "test": "at the end"}.items():
        if split == "val" or config.eval.run_test:
            numbers = check.statistics[split]
            logger.info("evaluated %s: the %s split, %d images with %d boxes, of %s", when, split, numbers.images, numbers.boxes,
                        check.splits[split].raw.source)
    return check


def _check_quickly(config: DataConfig, architecture: ModelConfig, split: str | None = None) -> DatasetCheck:
    """Check a data set, and refuse it for errors that this run cannot do with; or one split of it, as one of eval.sets."""
    check = check_data(config, architecture.input_size, architecture.num_queries, quick=True,
                       with_masks=architecture.segmentation_head)
    but = ["same_image"]  # training on the images of the evaluation is a way to see whether a model learns at all
    but += ["other_classes"] if config.single_class or split is not None else []
    but += ["missing_image", "no_image_size"] if config.on_bad_image == "skip" else []
    check.findings.refuse_errors(config.dataset_dir, but=but, split=split)
    return check


def check_data(config: DataConfig, input_size: tuple[int, int], num_queries: int, **options: bool) -> DatasetCheck:
    """Check the data set of a run, for a model of this input (H, W) and number of queries; options of `check_dataset`."""
    folder, format = data_folder(config)
    return check_dataset(folder, format=format, paths=config.splits, input_size=input_size, num_queries=num_queries,
                         letterbox=config.resize == "letterbox", **_reading(config), **options)


def open_eval_sets(config: RunConfig, data: RunData, device: torch.device) -> dict[str, DetectionLoader]:
    """Make the loader of each of eval.sets, whose classes are matched with those of the training."""
    loaders = {}
    for name in config.eval.sets:
        found, split = eval_set(config, name)
        found = replace(found, white_level=getattr(data.train_set, "white_level", None))  # one for all splits
        logger.info("eval.sets: %s: evaluated is the %s split of %s", name, split, found.dataset_dir)
        with bad_input(f"eval.sets: {name}: "):
            raw = None
            if is_main_process():  # what would break or falsify an evaluation later is refused now
                raw = _check_quickly(found, data.architecture, split).splits[split].raw
            dataset = open_split(found, data.architecture, split, data.label_map, raw=raw, training=False)
        loaders[name] = build_eval_loader(config.data, dataset, data.architecture, device)
    return loaders


def eval_set(config: RunConfig, name: str) -> tuple[DataConfig, str]:
    """Return where one of eval.sets is, and which split of it is evaluated: the first that it has of val, test and train."""
    found = replace(config.data, dataset_dir=config.eval.sets[name], format="auto", splits=None)
    with bad_input(f"eval.sets: {name}: "):
        splits = data_splits(found)
    return found, next(split for split in ("val", "test", "train") if split in splits)


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
    repeats = _repeats(config.data, data.train_set) if config.data.sampling == "repeat_factor" else None
    loader = train_loader(
        data.train_set, batch_size=config.data.batch_size, seed=config.train.seed, grad_accum_steps=config.train.grad_accum_steps,
        sizes=train_sizes(config.data, data.architecture), repeats=repeats,
        **_loader_options(config.data, data.architecture, device),
    )
    if _mixing(config):
        _end_mixing(config, data.train_set, len(loader) // config.train.grad_accum_steps)
    sampler = loader.batch_sampler
    if sampler.draws_again:
        logger.info("%d samples are few for batches of %d: images are drawn with replacement, %d steps an epoch",
                    sampler.epoch_length, sampler.samples_per_step, sampler.steps_per_epoch)
    return loader


def build_eval_loader(config: DataConfig, dataset: Dataset, architecture: ModelConfig, device: torch.device) -> DetectionLoader:
    """Make the loader of this rank's share of a split, every image once and in order."""
    found = DataConfig.batch_size if config.batch_size == "auto" else config.batch_size  # auto is for training
    return eval_loader(dataset, batch_size=config.eval_batch_size or found,
                       **_loader_options(config, architecture, device))


def _repeats(config: DataConfig, dataset: DetectionDataset) -> np.ndarray:
    """Return how often an epoch shows each image, and say so."""
    repeats = dataset.repeat_factors(config.repeat_threshold)
    if repeats.max() == 1:
        logger.warning("data.sampling: repeat_factor repeats nothing, since each class is on %.3g of the images or more "
                       "(data.repeat_threshold)", config.repeat_threshold)
    else:
        logger.info("data.sampling: repeat_factor shows %d of the %d images more than once an epoch, up to %.1f times; it has %d "
                    "samples", (repeats > 1).sum(), len(repeats), repeats.max(), repeats.sum())
    return repeats


def class_weights(config: LossConfig, data: RunData) -> list[float] | None:
    """Return the weight of each of the model's logits in the classification loss of objects, and say so; None: all alike."""
    if config.class_weights is None:
        return None
    names, weights = data.label_map.names, np.ones(data.architecture.num_classes + 1)
    if config.class_weights == "balanced":
        counts = data.train_set.class_counts()
        present = np.flatnonzero(counts)
        weights[present] = counts.sum() / (len(present) * counts[present])
    else:
        places = {name: find_names("loss.class_weights", [name], names) for name in config.class_weights}
        if twice := [name for name in places if sum(places[name] == others for others in places.values()) > 1]:
            raise InputError(f"loss.class_weights: {', '.join(twice)} are one class; give it one weight")
        for name, weight in config.class_weights.items():
            weights[places[name]] = weight
    logger.info("loss.class_weights: %s", ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights)))
    return weights.tolist()


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
