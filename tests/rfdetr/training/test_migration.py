"""``rfdetr migrate``: settings of the published package become a configuration that trains the same, or are said."""

import contextlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from rfdetr.errors import InputError
from rfdetr.training.commands import migrate as command
from rfdetr.training.config import DetectorConfig, RunConfig
from rfdetr.training.migration import migrate
from rfdetr.training.migration_table import ROWS
from rfdetr.training.sections import DataConfig, EvalConfig, TrainConfig

PUBLISHED = json.loads((Path(__file__).parent / "published_arguments.json").read_text())  # of 1.11.2, with their defaults
TRAIN, MODEL = PUBLISHED["train_config"], PUBLISHED["model_config"]
OF_TRAIN = {"device", "resolution"}  # arguments of train() beside them


@pytest.fixture
def migrated(tmp_path):
    """Return what the configuration says that is made of a training_config.json with changes, and its text."""

    def read(train: dict | None = None, model: dict | None = None, **others) -> tuple[RunConfig, str]:
        path = tmp_path / "training_config.json"
        path.write_text(json.dumps({**PUBLISHED, "train_config": {**TRAIN, **(train or {})}, "model_config": {
            **MODEL, **(model or {})}, **others}))
        return _config(path)

    return read


def _config(path: Path) -> tuple[RunConfig, str]:
    text = migrate(path)
    made = path.parent / "run.yaml"
    made.write_text(text, encoding="utf-8")
    return RunConfig.from_yaml(made), text


def test_every_argument_of_the_published_package_is_in_the_table():
    assert {*TRAIN, *MODEL, *OF_TRAIN} - ROWS.keys() == set()


def test_their_defaults_are_ours_but_for_what_is_written(migrated):
    config, text = migrated()
    assert config == RunConfig(
        model=DetectorConfig(weights="published"), data=DataConfig(dataset_dir="data"),
        train=TrainConfig(output_dir="output_migrated", keep_every_epochs=10), eval=EvalConfig(models="ema", per_class=False))
    assert "Without a counterpart" not in text


def _write(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def _has(config: RunConfig, options: dict) -> None:
    for option, value in options.items():
        section, _, key = option.partition(".")
        assert getattr(getattr(config, section), key) == value, option


@pytest.mark.parametrize("train, model, options", [
    ({"lr": 3e-4, "lr_encoder": 1e-5, "weight_decay": 0.01, "clip_max_norm": 0.5, "seed": 7, "batch_size": 8,
      "grad_accum_steps": 2,
      "eval_batch_size": 3, "num_workers": 0, "prefetch_factor": 4, "amp_dtype": None, "dataset_file": "o365",
      "multi_scale": "off",
      "compute_val_loss": True, "skip_best_epochs": 3, "wandb": True, "project": "cones", "mlflow": True, "progress_bar": "rich",
      "eval_base_model": True, "ema_decay": 0.9, "ema_tau": 0, "ema_update_interval": 2, "drop_path": 0.1},
     {"gradient_checkpointing": True, "freeze_encoder": True, "compile": True, "ia_bce_loss": False,
      "pretrain_weights": "my.pth"},
     {"optim.lr": 3e-4, "optim.lr_encoder": 1e-5, "optim.weight_decay": 0.01, "optim.clip_max_norm": 0.5, "train.seed": 7,
      "data.batch_size": 8, "train.grad_accum_steps": 2, "data.eval_batch_size": 3, "data.num_workers": 0,
      "data.prefetch_factor": 4,
      "train.precision": "fp32", "data.format": "objects365", "data.multi_scale": False, "eval.loss": True,
      "eval.skip_first_epochs": 3, "log.wandb": "cones", "log.mlflow": "cones", "log.progress": True, "eval.models": "both",
      "ema.decay": 0.9, "ema.tau": 0, "ema.update_every": 2, "drop.drop_path": 0.1, "model.gradient_checkpointing": True,
      "model.freeze": ("backbone.encoder",), "train.compile": True, "loss.cls": "focal", "model.weights": "my.pth",
      "model.resize_head": True}),
    ({"batch_size": "auto", "auto_batch_target_effective": 32, "grad_accum_steps": 4, "amp_dtype": "fp8", "accelerator": "gpu",
      "strategy": "ddp_find_unused_parameters_true", "optimizer": "sgd", "optimizer_kwargs": {"momentum": 0.9}},
     {"pretrain_weights": "/home/me/.cache/rf-detr-nano.pth", "resolution": 512, "positional_encoding_size": 32,
      "num_queries": 50,
      "num_select": 50, "group_detr": 3},
     {"data.batch_size": "auto", "train.effective_batch": 32, "train.grad_accum_steps": 1, "train.precision": "bf16",
      "train.device": "cuda", "train.strategy": "ddp", "optim.optimizer": "SGD", "optim.optimizer_args": {"momentum": 0.9},
      "model.weights": "published", "model.resolution": 512, "model.num_queries": 50, "model.group_detr": 3}),
    ({"use_ema": False, "early_stopping": True, "early_stopping_use_ema": True, "epochs": 5, "best_model_metric": "mar"},
     {"amp": False, "pretrain_weights": None},
     {"ema.enabled": False, "eval.models": "both", "early_stopping.use_ema": False, "train.keep_every_epochs": 0,
      "train.precision": "fp32", "model.weights": None, "model.backbone_weights": None, "eval.monitor": "mAR"}),
    ({"strategy": "fsdp"}, {}, {"train.strategy": "fsdp", "ema.enabled": False, "eval.models": "both"}),
])
def test_settings_with_a_counterpart(migrated, train, model, options):
    _has(migrated(train, model)[0], options)


@pytest.mark.parametrize("train, options", [
    ({"lr_scheduler": "cosine", "lr_scheduler_kwargs": {"min_factor": 0.05}, "warmup_epochs": 1.5},
     {"optim.schedule": "cosine", "optim.lr_min_factor": 0.05, "optim.warmup_epochs": 1.5}),
    ({"lr_scheduler_kwargs": {"lr_drop": 60}}, {"optim.schedule": "step", "optim.lr_drop": 60}),
    ({"lr_scheduler": "ReduceLROnPlateau", "lr_scheduler_kwargs": {"factor": 0.5, "threshold": 0.01}},
     {"optim.schedule": "plateau", "optim.schedule_args": {"metric": "val/ema_loss", "factor": 0.5, "min_delta": 0.01},
      "eval.loss": True}),
    ({"lr_scheduler": "torch.optim.lr_scheduler.ExponentialLR", "lr_scheduler_kwargs": {"gamma": 0.9}},
     {"optim.schedule": "torch.optim.lr_scheduler.ExponentialLR", "optim.schedule_args": {"gamma": 0.9}}),
])
def test_schedules(migrated, train, options):
    _has(migrated(train)[0], options)


FLIP = {"HorizontalFlip": {"p": 0.5}}


@pytest.mark.parametrize("train, augment, remark", [
    ({"aug_config": FLIP}, "default", ""), ({"aug_config": {}, "scale_jitter": False}, "none", ""),
    ({"aug_config": {}}, "none", "scale_jitter"),
    ({"scale_jitter": False}, [{"class_path": "torchvision.transforms.v2.RandomHorizontalFlip", "init_args": {"p": 0.5}}], ""),
    ({"aug_config": {**FLIP, "VerticalFlip": {"p": 0.5}, "Rotate": {"limit": [90, 90]}, "RandomBrightnessContrast": {}}},
      "aerial",
     "strengths of its own"),
    ({"aug_config": {"Solarize": {"p": 1}}}, "default", "Solarize"),
])
def test_augmentation(migrated, train, augment, remark):
    config, text = migrated(train)
    assert config.data.augment == augment
    assert remark in " ".join(text.split())


@pytest.mark.parametrize("train, model, said", [
    ({"notes": {"who": "me"}, "smooth_alpha": 0.5, "resume": "last.ckpt", "devices": 4, "accelerator": "tpu", "sync_bn": True,
      "somebodys": 1, "other": 2, "skip_best_epochs": 100, "dataset_file": "coco"}, {"backbone_lora": True, "num_select": 100},
     ["notes: {'who': 'me'}", "smooth_alpha: 0.5: the metric itself decides", "rfdetr fit --resume last.ckpt",
      "torchrun --nproc-per-node N", "'tpu' has no counterpart", "sync_bn: True: the model has no batch norms",
      "not known here: somebodys, other", "no evaluation would count", "data.label_map: coco", "LoRA is not trained here",
      "num_select: 100: as many detections as queries"]),
    ({"lr_scheduler": "StepLR", "lr_scheduler_interval": "epoch", "square_resize_div_64": False, "optimizer": "torch.optim.SGD",
      "optimizer_kwargs": {"lr": 0.1}}, {"sa_nheads": 4, "bbox_reparam": 0.5},
     ["by the steps of an epoch", "{'lr': 0.1} of optimizer_kwargs", "fitted into it and padded",
      "sa_nheads: 4: nano has 8; part of the variant", "bbox_reparam: 0.5: always so here"]),
])
def test_what_has_no_counterpart_is_said(migrated, train, model, said):
    text = " ".join(line.strip().removeprefix("# ").strip() for line in migrated(train, model)[1].splitlines())
    assert [words for words in said if words not in text] == []


def test_a_file_of_their_command_line(tmp_path):
    content = {"seed_everything": 3, "ckpt_path": "last.ckpt", "model": {
        "model_config": {"class_path": "rfdetr.config.RFDETRSegNanoConfig", "init_args": {"pretrain_weights": None}},
        "train_config": {"dataset_dir": "data", "epochs": 7, "lr": "1e-3"}}, "trainer": {
            "max_epochs": 9, "accumulate_grad_batches": 4, "precision": "16-mixed", "gradient_clip_val": None, "devices": 2,
            "callbacks": [{"class_path": "mine.Callback"}]}}
    config, text = _config(_write(tmp_path / "config.yaml", content))
    _has(config, {"model.variant": "seg_nano", "train.epochs": 9, "train.grad_accum_steps": 4, "train.precision": "fp16",
                  "train.seed": 3, "optim.lr": 1e-3, "optim.clip_max_norm": 0.1, "eval.models": "ema"})
    assert "callbacks become hooks" in text and "--resume last.ckpt" in text and "torchrun" in text


def test_plain_arguments_of_train(tmp_path):
    config, text = _config(_write(tmp_path / "train.yml", {"dataset_dir": "data", "epochs": 3, "multi_scale": True}))
    _has(config, {"train.epochs": 3, "data.dataset_dir": "data"})
    assert "set model.variant" in text


SMALL = {**MODEL, "dec_layers": 3, "resolution": 512, "positional_encoding_size": 32, "pretrain_weights": "rf-detr-small.pth"}


@pytest.mark.parametrize("name, content", [
    ("best.pth", {"args": TRAIN, "model_name": "RFDETRSmall", "model_config": SMALL, "rfdetr_version": "1.11.2"}),
    ("last.ckpt", {"hyper_parameters": {"train_config": TRAIN, "model_config": SMALL}, "rfdetr_version": "1.11.2"}),
    ("legacy.pth", {"args": Namespace(**{**SMALL, **TRAIN}), "model": {"a": torch.zeros(1)}}),
])
def test_checkpoints_of_every_kind(tmp_path, name, content):
    torch.save(content, tmp_path / name)
    config, text = _config(tmp_path / name)
    _has(config, {"model.variant": "small", "model.resolution": None, "model.weights": "published", "eval.models": "ema",
                  "data.dataset_dir": "data", "train.output_dir": "output_migrated"})
    assert f"set model.weights: {tmp_path / name}" in " ".join(line.removeprefix("# ") for line in text.splitlines())


def test_arguments_of_before_lightning(tmp_path):
    legacy = {"encoder": "dinov2_windowed_small", "out_feature_indexes": [2, 5, 8, 11], "dec_layers": 3, "patch_size": 14,
              "num_windows": 4, "resolution": 560, "positional_encoding_size": 37, "hidden_dim": 256, "num_queries": 300,
              "num_select": 300, "pretrain_weights": None, "lr_drop": 11, "lr_scheduler": "cosine", "lr_min_factor": 0.1,
              "grad_accum_steps": 4, "batch_size": 4, "set_cost_class": 3, "drop_mode": "early", "drop_schedule": "linear",
              "drop_path": 0.1, "cutoff_epoch": 5, "amp": True, "seed": 42, "dist_url": "env://", "dataset_dir": "data"}
    torch.save({"args": Namespace(**legacy), "model": {"a": torch.zeros(1)}}, tmp_path / "old.pth")
    config, text = _config(tmp_path / "old.pth")
    _has(config, {"model.variant": "base", "model.backbone_weights": "timm", "optim.lr_drop": 11, "optim.lr_min_factor": 0.1,
                  "loss.set_cost_class": 3.0, "drop.mode": "early", "drop.schedule": "linear", "drop.cutoff_epoch": 5,
                  "eval.models": "both", "train.precision": "auto"})
    assert "not known here: dist_url" in text


@pytest.mark.parametrize("name", ["strategy", "lr_scheduler", "aug_config", "trainer.precision", "optimizer_kwargs"])
def test_any_value_is_a_setting_or_one_message(tmp_path, name):
    for value in (None, 3, "x", [1]):
        content = {"trainer": {name.removeprefix("trainer."): value}} if name.startswith("trainer.") else {}
        path = _write(tmp_path / "config.yaml", {**content, "train_config": {"dataset_dir": "data", name: value}})
        try:
            migrate(path)
        except InputError as error:
            assert str(path) in str(error) or name in str(error)


def test_rules_raise_nothing_else():
    for name, row in ROWS.items():
        for value in (None, 3, "x", -1.5, [1], {"a": 1}, True, [], {}):
            with contextlib.suppress(TypeError, ValueError, AttributeError):  # which become one message
                assert isinstance(row.settings(value, {name: value}), dict)


@pytest.mark.parametrize("name, content, message", [
    ("a.yaml", "model: {variant: nano}\noptim: {lr: 1}\ntrain: {epochs: 1}", "of this project already"),
    ("a.yaml", "- 1", "has to hold settings by name, it holds list"), ("a.yaml", "a: [", "not readable as YAML"),
    ("a.json", "{", "not readable as JSON"), ("a.yaml", "colour: red", "holds no settings of a training with rfdetr"),
    ("a.pth", "no weights", "not a readable checkpoint"),
    ("a.json", json.dumps({**PUBLISHED, "model_config_type": "RFDETRKeypointPreviewConfig"}),
      "such a detector is not trained here"),
    ("a.json", json.dumps({**PUBLISHED, "train_config": {"lr": -1.0}}), "named as ours: optim.lr: -1.0 is not possible"),
    ("a.json", json.dumps({**PUBLISHED, "train_config": {"checkpoint_interval": "ten"}}),
      "checkpoint_interval: 'ten' is no value"),
])
def test_files_without_settings_that_are_possible_here(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        migrate(tmp_path / name)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="refused, because it holds"):
        migrate(tmp_path / "evil.pth")
    assert capsys.readouterr().out == ""


def test_from_the_shell(tmp_path, capsys):
    path = tmp_path / "training_config.json"
    path.write_text(json.dumps(PUBLISHED))
    assert command([str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed == migrate(path)
    tool = Path(__file__).parents[3] / "tools" / "migrate.py"
    done = subprocess.run([sys.executable, str(tool), str(tmp_path / "nowhere.pth")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == f"error: {tmp_path / 'nowhere.pth'}: there is no such file"
