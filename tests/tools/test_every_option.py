"""Every option acts: changing any field of the configuration changes what a run does, or is refused where it cannot act."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import observers as see
import pytest
import torch
from PIL import ExifTags, Image

from rfdetr import VARIANTS, build_model
from rfdetr.errors import InputError
from rfdetr.training.config import RunConfig

SECTIONS = {section.name: type(section.default) for section in fields(RunConfig) if is_dataclass(section.default)}
OPTIONS = [f"{name}.{option.name}" for name, section in SECTIONS.items() for option in fields(section)] + ["hooks"]

TINY = {
    "model.variant": "pico", "model.resolution": 64, "model.num_queries": 10, "model.group_detr": 4,
    "data.dataset_dir": "data", "data.batch_size": 2, "data.num_workers": 0, "data.multi_scale": False, "data.augment": "none",
    "train.epochs": 1, "train.device": "cpu", "log.tensorboard": False, "log.plots": False,
}  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """What shows that an option acts: `observe` says something else, or the value is refused with a message, once it is changed.

    `settings` are those that make it matter, beside TINY; the option's own value before the change may be among them.
    """

    observe: Callable[[RunConfig], Any]
    changed: Any
    settings: dict[str, Any] = field(default_factory=dict)
    refused: str = ""  # the message


MASKS = {"model.variant": "pico_seg"}
START = {"model.weights": "start/checkpoint.pth", "data.dataset_dir": "learned"}
EARLY_STOPPING = {"early_stopping.enabled": True}
DROP = {"drop.drop_path": 0.5}
WORKER = {"data.num_workers": 1}
BAD_IMAGES = {"data.dataset_dir": "broken", "data.on_bad_image": "skip", "data.max_bad_images": 0.5}

EFFECTS = {
    "model.variant": Effect(see.parameters, "nano"),
    "model.num_classes": Effect(see.parameters, 7),
    "model.resolution": Effect(see.batch_shapes, 96),
    "model.num_queries": Effect(see.parameters, 20),
    "model.group_detr": Effect(see.parameters, 3),
    "model.weights": Effect(see.first_weights, "start/checkpoint.pth"),
    "model.ema_weights": Effect(see.first_weights, True, START),
    "model.resize_head": Effect(see.parameters, False, {**START, "data.dataset_dir": "renamed", "model.resize_head": True},
                                refused="only in"),
    "model.backbone_weights": Effect(see.first_weights, "dinov2.pth"),
    "model.freeze": Effect(see.learned, ("backbone.encoder",)),
    "model.gradient_checkpointing": Effect(see.block_calls, True),

    "data.dataset_dir": Effect(see.pixels, "learned"),
    "data.format": Effect(see.pixels, "yolo", refused="no data set found"),
    "data.batch_size": Effect(see.batch_shapes, 3),
    "data.eval_batch_size": Effect(see.batch_shapes, 1),
    "data.num_workers": Effect(see.workers, 2),
    "data.augment": Effect(see.pixels, "flips"),
    "data.mosaic": Effect(see.pixels, 1.0),
    "data.copy_paste": Effect(see.pixels, 1.0),
    "data.mixup": Effect(see.pixels, 1.0),
    "data.mix_off_epochs": Effect(see.weights, 1, {"data.mosaic": 1.0, "train.epochs": 2}),
    "data.resize": Effect(see.pixels, "letterbox", {"data.dataset_dir": "wide"}),
    "data.multi_scale": Effect(see.batch_shapes, True),
    "data.expanded_scales": Effect(see.batch_shapes, False, {"data.multi_scale": True}),
    "data.classes": Effect(see.labels, ("dark",)),
    "data.single_class": Effect(see.labels, True),
    "data.fraction": Effect(see.batch_shapes, 0.5, {"data.dataset_dir": "learned"}),
    "data.sampling": Effect(see.pixels, "repeat_factor", {"data.repeat_threshold": 1.0}),
    "data.repeat_threshold": Effect(see.batch_shapes, 1.0, {"data.sampling": "repeat_factor", "data.dataset_dir": "learned"}),
    "data.label_map": Effect(see.labels, "coco"),
    "data.splits": Effect(see.pixels, {split: {"annotations": "valid/_annotations.coco.json", "images": "valid"}
                                       for split in ("train", "val")}),
    "data.val_fraction": Effect(see.batch_shapes, 0.9, {"data.dataset_dir": "lone"}),
    "data.allow_outside": Effect(see.pixels, False, {"data.dataset_dir": "outside", "data.allow_outside": True},
                                 refused="leads out of the folder"),
    "data.on_bad_image": Effect(see.pixels, "fail", BAD_IMAGES, refused=r"0\.png"),
    "data.max_bad_images": Effect(see.pixels, 0.0, BAD_IMAGES, refused=r"data\.max_bad_images"),
    "data.max_pixels": Effect(see.pixels, 1000, refused=r"data\.max_pixels"),
    "data.white_level": Effect(see.pixels, 4095, {"data.dataset_dir": "deep"}),
    "data.timeout_seconds": Effect(see.loader_timeout, 5.0, WORKER),
    "data.exif": Effect(see.pixels, "refuse", {"data.dataset_dir": "turned"}, refused=r"0\.png.*EXIF"),
    "data.cache": Effect(see.pixels_without_files, "none", {"data.cache": "ram"}, refused=r"train/\d\.png"),
    "data.prefetch_factor": Effect(see.batches_drawn_at_first, 3, WORKER),
    "data.persistent_workers": Effect(see.workers, False, WORKER),
    "data.start_method": Effect(see.start_method, "forkserver", WORKER),

    "loss.cls": Effect(see.loss, "varifocal"),
    "loss.cls_loss_coef": Effect(see.loss, 3.0),
    "loss.bbox_loss_coef": Effect(see.loss, 3.0),
    "loss.giou_loss_coef": Effect(see.loss, 3.0),
    "loss.mask_ce_loss_coef": Effect(see.loss, 3.0, MASKS),
    "loss.mask_dice_loss_coef": Effect(see.loss, 3.0, MASKS),
    "loss.set_cost_class": Effect(see.loss, 30.0),
    "loss.set_cost_bbox": Effect(see.loss, 0.1),
    "loss.set_cost_giou": Effect(see.loss, 30.0),
    "loss.focal_alpha": Effect(see.loss, 0.5),
    "loss.mask_point_sample_ratio": Effect(see.loss, 4, MASKS),
    "loss.class_weights": Effect(see.weights, {"bright": 5.0}),
    "loss.normalize": Effect(see.weights, "window", {"train.grad_accum_steps": 2}),
    "loss.sum_group_losses": Effect(see.loss, True),

    "optim.lr": Effect(see.learning_rates, 2e-4),
    "optim.lr_encoder": Effect(see.learning_rates, 2e-4),
    "optim.weight_decay": Effect(see.weights, 0.1),
    "optim.lr_vit_layer_decay": Effect(see.learning_rates, 0.5),
    "optim.lr_component_decay": Effect(see.learning_rates, 0.5),
    "optim.optimizer": Effect(see.weights, "SGD"),
    "optim.optimizer_args": Effect(see.weights, {"betas": [0.5, 0.9]}),
    "optim.schedule": Effect(see.learning_rates, "cosine"),
    "optim.schedule_args": Effect(see.learning_rates, {"gamma": 0.5},
                                  {"optim.schedule": "ExponentialLR", "optim.schedule_args": {"gamma": 0.9}}),
    "optim.warmup_epochs": Effect(see.learning_rates, 0.5),
    "optim.lr_drop": Effect(see.learning_rates, 2),
    "optim.lr_min_factor": Effect(see.learning_rates, 0.1, {"optim.schedule": "cosine"}),
    "optim.clip_max_norm": Effect(see.weights, 0.0),
    "optim.groups": Effect(see.learning_rates, [{"match": "*.bias", "lr_scale": 2.0}]),

    "train.epochs": Effect(see.num_steps, 2),
    "train.max_steps": Effect(see.num_steps, 2),
    "train.effective_batch": Effect(see.weights, 4),
    "train.preflight": Effect(see.steps_tried, True),
    "train.grad_accum_steps": Effect(see.weights, 2),
    "train.precision": Effect(see.weights, "bf16", {"train.precision": "fp32"}),
    "train.seed": Effect(see.first_weights, 43),
    "train.deterministic": Effect(see.is_deterministic, True),
    "train.device": Effect(see.first_weights, "cuda:63", refused="cuda:63"),
    "train.output_dir": Effect(see.files, "elsewhere"),
    "train.save_every_steps": Effect(see.files, 2, {"train.keep": 9}),
    "train.keep": Effect(see.files, 0),
    "train.keep_every_epochs": Effect(see.files, 1),
    "train.keep_top": Effect(see.files, 2, {"train.epochs": 2}),
    "train.max_bad_steps": Effect(see.weights, 2, {"optim.lr": 1e30}, refused="2 updates in a row"),
    "train.on_bad_steps": Effect(see.rollbacks, "rollback",
                                 {"optim.lr": 1e30, "train.max_bad_steps": 1, "train.save_every_steps": 1}),
    "train.timeout_minutes": Effect(see.watch_limit, 5.0),
    "train.max_hours": Effect(see.results, 1e-9),
    "train.compile": Effect(see.compiled_blocks, True),
    "train.sync_bn": Effect(see.first_weights, True, refused="no batch norm"),
    "train.strategy": Effect(see.first_weights, "fsdp", {"ema.enabled": False}, refused="several processes"),

    "ema.enabled": Effect(see.files, False),
    "ema.decay": Effect(see.averaged_weights, 0.9),
    "ema.tau": Effect(see.averaged_weights, 0.0),
    "ema.update_every": Effect(see.averaged_weights, 2),
    "ema.use_buffers": Effect(see.averaged_buffer, False, {"ema.tau": 0.0}),

    "drop.drop_path": Effect(see.weights, 0.5),
    "drop.dropout": Effect(see.weights, 0.5),
    "drop.mode": Effect(see.weights, "early", DROP),
    "drop.schedule": Effect(see.weights, "linear", {**DROP, "drop.mode": "early", "drop.cutoff_epoch": 1}),
    "drop.cutoff_epoch": Effect(see.weights, 1, {**DROP, "drop.mode": "early"}),

    "early_stopping.enabled": Effect(see.stopping, True),
    "early_stopping.patience": Effect(see.stopping, 3, EARLY_STOPPING),
    "early_stopping.min_delta": Effect(see.stopping, 0.0, EARLY_STOPPING),
    "early_stopping.use_ema": Effect(see.stopping, True, EARLY_STOPPING),
    "early_stopping.check_finite": Effect(see.stopping_at_nan, False, EARLY_STOPPING),
    "early_stopping.stopping_threshold": Effect(see.stopping, 0.25, EARLY_STOPPING),
    "early_stopping.divergence_threshold": Effect(see.stopping, 0.35, EARLY_STOPPING),
    "early_stopping.verbose": Effect(see.stopping, True, EARLY_STOPPING),

    "eval.every_epochs": Effect(see.evaluated_epochs, 2, {"train.epochs": 2}),
    "eval.max_dets": Effect(see.recall_of_two_objects, 1),
    "eval.per_class": Effect(see.metrics, False, START),
    "eval.models": Effect(see.metrics, "regular", START),
    "eval.precision": Effect(see.metrics, "bf16", {**START, "eval.loss": True}),
    "eval.sets": Effect(see.metrics, {"night": "wide"}, START),
    "eval.loss": Effect(see.metrics, True, START),
    "eval.run_test": Effect(see.results, True),
    "eval.monitor": Effect(see.best_epoch, "F1"),
    "eval.skip_first_epochs": Effect(see.best_epoch, 1, {"train.epochs": 3}),

    "log.every_steps": Effect(see.logged_steps, 2),
    "log.tensorboard": Effect(see.files, True),
    "log.csv": Effect(see.files, True),
    "log.wandb": Effect(see.without_trackers, "mine", refused="wandb.* not installed"),
    "log.mlflow": Effect(see.without_trackers, "mine", refused="mlflow.* not installed"),
    "log.progress": Effect(see.has_progress_bar, False),
    "log.plots": Effect(see.files, True),
    "log.report": Effect(see.files, True),

    "hooks": Effect(see.runs_with_hooks, ({"class_path": "hooks.ProgressHook", "init_args": {"enabled": True}},),
                    {"log.progress": False}),
}  # fmt: skip
EXEMPT: dict[str, str] = {}  # option -> why its effect cannot be shown here


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, dataset_dir, finished_run) -> Path:
    """A folder with data sets, and weights to start from."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("data", "broken", "turned", "outside", "deep"):
        for split, num_images in (("train", 6), ("valid", 3), ("test", 2)):
            write_split(folder / name / split, num_images)
    (folder / "broken" / "train" / "0.png").write_bytes(b"no picture")
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 3
    picture = folder / "turned" / "train" / "0.png"
    Image.open(picture).save(picture, exif=orientation)
    write_split(folder / "lone" / "images", 8)  # one file for all, beside the folder of the images
    shutil.copytree(folder / "data", folder / "renamed")
    shutil.copytree(folder / "data", folder / "wide")
    for path in (folder / "wide").rglob("*.png"):
        Image.open(path).crop((0, 0, 64, 32)).save(path)
    for path in (folder / "wide").rglob("*.json"):
        path.write_text(path.read_text().replace('"height": 64', '"height": 32'))
    for path in (folder / "renamed").rglob("*.json"):
        path.write_text(path.read_text().replace('"dark"', '"dim"'))
    (folder / "lone" / "images" / "_annotations.coco.json").rename(folder / "lone" / "annotations.json")
    (folder / "outside" / "train" / "0.png").unlink()
    outside = folder / "outside" / "train" / "_annotations.coco.json"
    outside.write_text(outside.read_text().replace('"0.png"', '"../../data/train/0.png"'))
    for path in (folder / "deep").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 64).save(path)
    (folder / "learned").symlink_to(dataset_dir)
    (folder / "start").symlink_to(finished_run)
    dinov2 = replace(VARIANTS["pico"], patch_size=14, resolution=518, positional_encoding_size=37)
    torch.save(build_model(dinov2).backbone.encoder.state_dict(), folder / "dinov2.pth")
    return folder


def write_split(folder: Path, num_images: int) -> None:
    """Write pictures with one to three rectangles of two classes, in Roboflow's layout."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(num_images)
    images, annotations = [], []
    for number in range(num_images):
        pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
        for index in range(1 + number % 3):
            (x, y), (w, h) = generator.integers(0, 30, 2).tolist(), generator.integers(16, 34, 2).tolist()
            pixels[y : y + h, x : x + w] = (240, 20)[index % 2]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 1 + index % 2, "bbox": [x, y, w, h],
                                "area": w * h, "iscrowd": 0})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
    categories = [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def surroundings(workplace, monkeypatch):
    """Work in that folder, and put back what runs set for their process."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    torch.use_deterministic_algorithms(False)


def run_config(settings: dict[str, Any]) -> RunConfig:
    values: dict[str, Any] = {name: {} for name in SECTIONS}
    for option, value in settings.items():
        section, _, key = option.partition(".")
        if key:
            values[section][key] = value
    return RunConfig(**{name: SECTIONS[name](**values[name]) for name in SECTIONS}, hooks=settings.get("hooks", ()))


@pytest.mark.parametrize("option", OPTIONS)
def test_changing_an_option_has_an_effect(option):
    if option in EXEMPT:
        pytest.skip(EXEMPT[option])
    assert option in EFFECTS, f"{option}: is new; show in EFFECTS what changing it does, or say in EXEMPT why that is impossible"
    effect = EFFECTS[option]
    observe, settings = see.once(effect.observe), {**TINY, **effect.settings}
    before = observe(run_config(settings))
    changed = {**settings, option: effect.changed}
    if effect.refused:
        with pytest.raises((InputError, FloatingPointError), match=effect.refused):
            observe(run_config(changed))
    else:
        assert observe(run_config(changed)) != before


def test_observations_repeat():
    """Else the differences above could be chance."""
    effects = {effect.observe: effect for effect in EFFECTS.values()}.values()
    observed = []
    for _ in range(2):
        observed.append([see.once(effect.observe)(run_config({**TINY, **effect.settings})) for effect in effects])
        see.forget()
    assert observed[0] == observed[1]


def test_the_table_is_of_options_that_exist():
    assert {*EFFECTS, *EXEMPT} <= set(OPTIONS)
    assert not EFFECTS.keys() & EXEMPT.keys()
