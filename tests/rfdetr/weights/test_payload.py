"""A checkpoint alone is enough to build its model again."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rfdetr.build import build_model
from rfdetr.config import VARIANTS
from rfdetr.data.label_map import LabelMap
from rfdetr.errors import InputError
from rfdetr.weights import checkpoint_payload, load_weights, model_config_from_checkpoint, official_state_dict, read_checkpoint

NAMES = {"nano": "RFDETRNano", "base": "RFDETRBase", "large": "RFDETRLarge", "large_deprecated": "RFDETRLargeDeprecated",
         "seg_nano": "RFDETRSegNano", "seg_small": "RFDETRSegSmall", "seg_preview": "RFDETRSegPreview",
         "seg_2xlarge": "RFDETRSeg2XLarge", "medium": "RFDETRMedium", "seg_large": "RFDETRSegLarge"}


def on_meta(config):
    with torch.device("meta"):
        return build_model(config)


def test_what_a_best_file_holds(pico, tmp_path):
    config = dataclasses.replace(VARIANTS["pico"], resolution=(128, 192))
    args = {"train": {"lr": np.float64(1e-4), "output_dir": Path("out")}, "model": {"variant": "pico"}}
    label_map = LabelMap((3, 7), ("cat", "dog"))
    payload = checkpoint_payload(pico, config, args=args, label_map=label_map)
    torch.save(payload, tmp_path / "best.pth")
    content = torch.load(tmp_path / "best.pth", weights_only=True)
    assert set(content) == {"model", "args", "model_name", "model_config", "label_map"}
    expected = {"train": {"lr": 1e-4, "output_dir": "out"}, "model": {"variant": "pico"}, "class_names": ["cat", "dog"]}
    assert content["args"] == expected
    assert content["model_config"]["resolution"] == [128, 192] and content["model_name"] == "RFDETRPico"
    assert LabelMap.from_dict(content["label_map"]) == label_map
    assert model_config_from_checkpoint(read_checkpoint(tmp_path / "best.pth")) == config
    assert checkpoint_payload(pico, config)["args"] == {} and checkpoint_payload(pico, config)["label_map"] is None


@pytest.mark.parametrize("variant", NAMES)
def test_published_class_names(variant):
    config = VARIANTS[variant]
    assert checkpoint_payload(torch.nn.Module(), config)["model_name"] == NAMES[variant]
    tuned = dataclasses.replace(config, num_classes=3, resolution=config.size_divisor * 8)
    assert checkpoint_payload(torch.nn.Module(), tuned)["model_name"] == NAMES[variant]


def test_a_model_of_no_variant_has_no_name():
    assert checkpoint_payload(torch.nn.Module(), dataclasses.replace(VARIANTS["nano"], dec_layers=1))["model_name"] is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_alone_tell_the_variant(variant):
    state = official_state_dict(on_meta(VARIANTS[variant]))
    assert model_config_from_checkpoint({"model": state}) == VARIANTS[variant]


def test_changed_models_are_rebuilt_from_what_the_file_says():
    config = dataclasses.replace(VARIANTS["seg_small"], num_classes=3, num_queries=40, num_select=20, group_detr=2,
                                 resolution=(240, 480), positional_encoding_size=26)
    payload = checkpoint_payload(on_meta(config), config)
    assert model_config_from_checkpoint(payload) == config


def test_custom_models_are_rebuilt():
    config = dataclasses.replace(VARIANTS["pico"], dec_layers=1, projector_scale=("P3", "P4"), ca_nheads=4)
    assert model_config_from_checkpoint(checkpoint_payload(on_meta(config), config)) == config
    with pytest.raises(InputError, match="no known variant"):
        model_config_from_checkpoint({"model": official_state_dict(on_meta(config))})


def test_legacy_arguments_tell_the_sizes():
    config = dataclasses.replace(VARIANTS["base"], num_classes=4, resolution=672)
    args = argparse.Namespace(resolution=672, num_queries=300, group_detr=13, num_classes=90, lr=1e-4, num_select=300)
    assert model_config_from_checkpoint({"model": official_state_dict(on_meta(config)), "args": args}) == config


def test_a_larger_position_table_means_a_larger_input():
    config = dataclasses.replace(VARIANTS["nano"], positional_encoding_size=32)
    found = model_config_from_checkpoint({"model": official_state_dict(on_meta(config)), "model_name": "RFDETRNano"})
    assert found == dataclasses.replace(config, resolution=512)


@pytest.mark.parametrize("model_config", [{"num_windows": 5}, {"resolution": "big"}, {"sa_nheads": None, "ca_nheads": 7}])
def test_a_model_config_that_makes_no_sense(model_config, pico):
    with pytest.raises(InputError, match="does not describe a model"):
        model_config_from_checkpoint({"model": official_state_dict(pico), "model_config": model_config})


def test_rebuilt_model_gives_the_same_outputs(pico, tmp_path):
    torch.save(checkpoint_payload(pico, VARIANTS["pico"]), tmp_path / "best.pth")
    content = read_checkpoint(tmp_path / "best.pth")
    again = build_model(model_config_from_checkpoint(content))
    load_weights(again, content)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(pico.eval()(image)["pred_logits"], again.eval()(image)["pred_logits"])
