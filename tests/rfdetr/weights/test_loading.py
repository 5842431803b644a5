"""Weights made for other classes, queries and sizes: the published package's results, and clear refusals."""

import argparse
import dataclasses
import json

import numpy as np
import pytest
import torch

from rfdetr.build import build_model
from rfdetr.config import VARIANTS
from rfdetr.errors import InputError
from rfdetr.weights import load_weights, official_state_dict

POSITIONS = "backbone.0.encoder.encoder.embeddings.position_embeddings"
CASES = ["same", "fewer_classes_5", "more_classes_200", "queries_100_flat_no_args", "queries_100_per_group_args_dict",
         "queries_100_args_only_group", "groups_1_args_namespace", "resolution_512"]


@pytest.fixture(scope="module")
def golden(golden_folder):
    with np.load(golden_folder / "checkpoint_loading.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_published_package(case, golden, nano_weights, blank, tmp_path):
    facts = json.loads(str(golden["meta"]))["cases"][case]
    args = argparse.Namespace(**facts["args"]) if facts["args_type"] == "Namespace" else facts["args"]
    torch.save({"model": nano_weights} | ({} if args is None else {"args": args}), tmp_path / "nano.pth")
    changes = facts["model"] | {"positional_encoding_size": facts["pe"]}
    model = blank(dataclasses.replace(VARIANTS["nano"], **changes))

    report = load_weights(model, tmp_path / "nano.pth", resize_head="num_classes" in changes)

    state = official_state_dict(model)
    stored = {name.removeprefix(f"{case}/"): array for name, array in golden.items() if name.startswith(f"{case}/")}
    table = stored.pop("position_embeddings")
    np.testing.assert_allclose(state[POSITIONS][0, :, : table.shape[1]], table, rtol=0, atol=1e-6)
    for name, array in stored.items():
        mine = state[name] if array.ndim == 1 else state[name][:, : array.shape[1]]
        np.testing.assert_array_equal(mine, array, err_msg=name)
    assert report.missing == []
    resized = {name for name in report.loaded if state[name].shape != nano_weights[name].shape}
    assert set(report.resized) == resized


@pytest.mark.parametrize("variant, changes, args, message", [
    ("seg_nano", {}, None, r"patch size 16 in the file, 12 in the model.*model\.variant"),
    ("nano", {}, {"segmentation_head": True}, "segmentation_head True by the file's args"),
    ("nano", {"num_queries": 400}, None, r"refpoint_embed\.weight has 3900 rows, too few for 400 queries in 13 groups"),
    ("small", {}, None, r"\(nano\).*dec layers 2 in the file, 3 in the model"),
    ("nano", {"num_classes": 5}, None, r"91 logits \(90 classes\).* 6 \(5 classes\).*resize_head"),
    ("pico", {}, None, r"encoder width 384 in the file, 192 in the model"),
])
def test_refusals(variant, changes, args, message, nano_weights, blank):
    model = blank(dataclasses.replace(VARIANTS[variant], **changes))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_weights(model, {"model": nano_weights, "args": args})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_segmentation_file_for_a_detector_and_the_reverse(pico, pico_weights):
    segmenter = build_model(VARIANTS["pico_seg"])
    with pytest.raises(InputError, match=r"\(pico_seg\).*segmentation head True in the file, False in the model"):
        load_weights(pico, {"model": official_state_dict(segmenter)})
    with pytest.raises(InputError, match=r"\(pico\).*segmentation head False in the file, True in the model"):
        load_weights(segmenter, {"model": pico_weights})
    report = load_weights(segmenter, {"model": pico_weights}, allow_partial=True)
    assert report.missing and all(name.startswith("segmentation_head.") for name in report.missing)


def test_names_of_the_classes_are_in_the_refusal(pico, pico_weights):
    classes = [{"label": 0, "category_id": 1, "name": "cat"}, {"label": 1, "category_id": 2, "name": "dog"}]
    small = build_model(dataclasses.replace(VARIANTS["pico"], num_classes=2))
    content = {"model": official_state_dict(small), "label_map": {"kind": "contiguous", "classes": classes}}
    with pytest.raises(InputError, match=r"3 logits \(2 classes, named cat, dog\)"):
        load_weights(pico, content)
    assert load_weights(pico, content, resize_head=True).label_map == content["label_map"]
    assert load_weights(small, {"model": pico_weights}, resize_head=True).label_map is None


@pytest.mark.parametrize("state", [{"conv1.weight": torch.zeros(3, 3)}, {"transformer.decoder.norm.weight": torch.zeros(())}])
def test_another_architecture(pico, state):
    with pytest.raises(InputError, match="not the weights of an RF-DETR detector"):
        load_weights(pico, {"model": state})


def test_a_keypoint_model(pico, pico_weights):
    with pytest.raises(InputError, match="keypoint"):
        load_weights(pico, {"model": {**pico_weights, "transformer.decoder.keypoint_pos_embed": torch.zeros(17, 128)}})


def test_few_tensors_are_an_error_unless_asked_for(pico, pico_weights):
    kept = [name for name in pico_weights if not name.startswith("transformer.enc_out")]
    partial = {"model": {name: pico_weights[name] for name in kept}}
    with pytest.raises(InputError, match=r"fills only \d+ of the model's 260 tensors.*allow_partial"):
        load_weights(pico, partial)
    before = pico.transformer.enc_output[0].weight.clone()
    report = load_weights(pico, partial, allow_partial=True)
    assert set(report.missing) == set(pico_weights) - set(kept)
    assert len(report.loaded) + len(report.missing) == 260
    assert torch.equal(pico.transformer.enc_output[0].weight, before)
    assert torch.equal(pico.class_embed.weight, pico_weights["class_embed.weight"])


def test_a_few_missing_and_foreign_tensors_are_reported(pico, pico_weights, caplog):
    state = {name: tensor for name, tensor in pico_weights.items() if name not in ("refpoint_embed.weight", "_kp_active_mask")}
    key = "backbone.0.encoder.encoder.encoder.layer.2.attention.attention.key.bias"
    own_key = official_state_dict(pico)[key].clone()
    del state[key]
    report = load_weights(pico, {"model": {**state, "extra.weight": torch.zeros(2)}})
    assert sorted(report.missing) == [key, "refpoint_embed.weight"]
    assert report.unexpected == ["extra.weight"]
    assert torch.equal(official_state_dict(pico)[key], own_key)
    assert "2 missing" in caplog.text and "extra.weight" in caplog.text


def test_queries_are_cut_by_the_model_config_of_the_file(pico_weights):
    """Without args, a file that describes its model lets every group keep its first queries."""
    model = build_model(dataclasses.replace(VARIANTS["pico"], num_queries=30, group_detr=3))
    load_weights(model, {"model": pico_weights, "model_config": {"num_queries": 100, "group_detr": 5}})
    expected = pico_weights["query_feat.weight"].unflatten(0, (5, 100))[:3, :30].flatten(0, 1)
    assert torch.equal(model.query_feat.weight, expected)


def test_a_position_table_that_is_no_grid(pico, pico_weights):
    with pytest.raises(InputError, match="position_embeddings has 200 rows"):
        load_weights(pico, {"model": {**pico_weights, POSITIONS: torch.zeros(1, 200, 192)}})


def test_a_tensor_of_another_shape(pico, pico_weights):
    with pytest.raises(InputError, match=r"bbox_embed\.layers\.0\.bias \(64,\), expected \(128,\)"):
        load_weights(pico, {"model": {**pico_weights, "bbox_embed.layers.0.bias": torch.zeros(64)}})
