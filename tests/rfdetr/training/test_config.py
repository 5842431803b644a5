"""Sections of the configuration: defaults, refused values, and the model section's way to a ModelConfig."""

import ast
import inspect
from dataclasses import fields, is_dataclass

import pytest

from rfdetr.config import VARIANTS
from rfdetr.errors import InputError
from rfdetr.losses.config import LossConfig
from rfdetr.training.config import DetectorConfig, RunConfig
from rfdetr.training.sections import (
    DataConfig,
    DropConfig,
    EarlyStoppingConfig,
    EvalConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
)

SECTIONS = {section.name: type(section.default) for section in fields(RunConfig) if is_dataclass(section.default)}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_field_is_documented_where_it_is_declared(name):
    (body,) = ast.parse(inspect.getsource(SECTIONS[name])).body
    documented = [
        before.target.id
        for before, after in zip(body.body, body.body[1:])
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    ]
    assert documented == [field.name for field in fields(SECTIONS[name])]
    assert len(documented) <= 32


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (LossConfig, {"cls": "quality"}, r"loss\.cls: 'quality' is not possible; it must be one of ia_bce, varifocal"),
        (LossConfig, {"focal_alpha": 1.5}, r"loss\.focal_alpha: 1\.5 .* between 0 and 1"),
        (LossConfig, {"set_cost_giou": float("nan")}, r"loss\.set_cost_giou: nan"),
        (LossConfig, {"set_cost_class": 0, "set_cost_bbox": 0, "set_cost_giou": 0}, "all are 0"),
        (OptimConfig, {"lr": 0.0}, r"optim\.lr: 0\.0 .* above 0"),
        (OptimConfig, {"clip_max_norm": -1.0}, r"optim\.clip_max_norm"),
        (DataConfig, {"batch_size": 0}, r"data\.batch_size: 0 .* 1 or more"),
        (DataConfig, {"eval_batch_size": 0}, r"data\.eval_batch_size"),
        (DataConfig, {"prefetch_factor": 0}, r"data\.prefetch_factor: 0 .* 1 or more"),
        (DataConfig, {"on_bad_image": "blank"}, r"data\.on_bad_image: 'blank' .* fail, skip"),
        (DataConfig, {"cache": "disk"}, r"data\.cache: 'disk' .* none, ram"),
        (DataConfig, {"exif": "ignore"}, r"data\.exif: 'ignore' .* apply, refuse"),
        (DataConfig, {"start_method": "thread"}, r"data\.start_method"),
        (DataConfig, {"splits": {"valid": {"annotations": "a", "images": "b"}}}, r"data\.splits: .*for train, val and test"),
        (DataConfig, {"splits": {"val": {"annotations": "a"}}}, r"data\.splits"),
        (TrainConfig, {"epochs": 0}, r"train\.epochs"),
        (TrainConfig, {"max_hours": -1.0}, r"train\.max_hours"),
        (DropConfig, {"drop_path": 1.0}, r"drop\.drop_path: 1\.0 .* below 1"),
        (DropConfig, {"mode": "late", "schedule": "linear"}, r"drop\.schedule"),
        (EarlyStoppingConfig, {"patience": 0}, r"early_stopping\.patience"),
        (EvalConfig, {"every_epochs": 0}, r"eval\.every_epochs"),
        (LogConfig, {"every_steps": 0}, r"log\.every_steps"),
        (DetectorConfig, {"variant": "nono"}, r"model\.variant: 'nono' .* one of nano"),
        (DetectorConfig, {"variant": "2xlarge"}, "licence"),
        (DetectorConfig, {"resolution": 400}, r"model\.resolution: 400 .* nearest valid side is 384"),
        (DetectorConfig, {"num_queries": 0}, r"model\.num_queries"),
        (DetectorConfig, {"resize_head": True}, r"model\.resize_head"),
    ],
)
def test_a_refused_value_is_named_with_what_is_allowed(section, values, message):
    with pytest.raises(InputError, match=message):
        section(**values)


def test_a_variant_is_taken_as_it_is():
    assert DetectorConfig(variant="base").architecture(num_classes=90) == VARIANTS["base"]


def test_classes_come_from_the_data_unless_given():
    assert DetectorConfig().architecture(num_classes=3).num_classes == 3
    assert DetectorConfig(num_classes=7).architecture(num_classes=3).num_classes == 7


def test_the_number_of_queries_is_also_the_number_of_detections():
    model = DetectorConfig(num_queries=500).architecture(num_classes=3)
    assert (model.num_queries, model.num_select) == (500, 500)


@pytest.mark.parametrize(
    ("variant", "resolution", "grid"),
    [("nano", 416, 26), ("nano", (320, 448), 28), ("base", 448, 37), ("seg_nano", 384, 32)],
)
def test_a_position_table_as_large_as_the_input_follows_the_resolution(variant, resolution, grid):
    model = DetectorConfig(variant=variant, resolution=resolution).architecture(num_classes=3)
    assert model.resolution == resolution
    assert model.positional_encoding_size == grid
