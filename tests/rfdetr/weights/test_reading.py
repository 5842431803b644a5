"""Checkpoints of all known writers, and files that must not be read."""

import argparse
import os
import types

import pytest
import torch

from rfdetr.build import build_model
from rfdetr.config import VARIANTS
from rfdetr.errors import InputError
from rfdetr.weights import load_weights, official_state_dict, read_checkpoint
from rfdetr.weights.reading import normalise


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def without_kp(state):
    return {name: tensor for name, tensor in state.items() if name != "_kp_active_mask"}


def legacy_args():
    return argparse.Namespace(num_queries=100, group_detr=5, resolution=256, class_names=["a"], nested=types.SimpleNamespace(x=1))


LAYOUTS = {
    "model alone": lambda state: {"model": state},
    "bare state dict": without_kp,
    "legacy engine": lambda state: {"model": without_kp(state), "optimizer": {"state": {}, "param_groups": []}, "epoch": 3,
                                    "args": legacy_args()},
    "1.11.2 best file": lambda state: {"model": state, "state_dict": prefixed(state, "model."), "epoch": 3, "args": {"lr": 1e-4},
                                       "model_name": "RFDETRNano", "optimizer_states": [], "callbacks": {}},
    "Lightning": lambda state: {"state_dict": {**prefixed(state, "model."), "model._extra_state": None}, "global_step": 5,
                                "hyper_parameters": {"lr": 1e-4}},
    "Lightning, compiled": lambda state: {"state_dict": prefixed(state, "model._orig_mod.")},
    "DDP": lambda state: {"model": prefixed(state, "module.")},
    "converted legacy": lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": legacy_args(), "epoch": 3,
                                       "legacy_checkpoint_format": True, "legacy_ema_state_dict": prefixed(state, "module.")},
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_every_writer(make, pico, pico_weights, tmp_path):
    torch.save(make(pico_weights), tmp_path / "file.pth")
    report = load_weights(pico, tmp_path / "file.pth")
    state = official_state_dict(pico)
    assert len(report.loaded) == 260 and not (report.missing or report.unexpected or report.resized)
    assert all(torch.equal(state[name], pico_weights[name]) for name in report.loaded)


def test_our_own_resume_file(pico, tmp_path):
    """checkpoint.pth holds our names, and the average beside the trained weights."""
    average = build_model(VARIANTS["pico"])
    content = {"model": pico.state_dict(), "ema_model": average.state_dict(), "epoch": 2, "step": 9}
    torch.save(content, tmp_path / "checkpoint.pth")
    content = read_checkpoint(tmp_path / "checkpoint.pth")
    assert (content["epoch"], content["step"]) == (2, 9)
    for ema, expected in ((False, pico), (True, average)):
        loaded = build_model(VARIANTS["pico"])
        assert load_weights(loaded, content, ema=ema).missing == []
        assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in loaded.state_dict().items())


EMA_LAYOUTS = {
    "legacy engine": lambda state: {"ema_model": state},
    "legacy engine, DDP": lambda state: {"ema_model": prefixed(state, "module.")},
    "wrapped": lambda state: {"ema_model": {"updates": 4, "model": state}},
    "converted legacy": lambda state: {"legacy_ema_state_dict": state},
    "1.11.2 callback": lambda state: {"callbacks": {"EMA": {"latest_update_step": 3,
                                                            "average_model_state_dict": prefixed(state, "module.model.")}}},
}


@pytest.mark.parametrize("make", EMA_LAYOUTS.values(), ids=EMA_LAYOUTS)
def test_averaged_weights_on_request(make, pico, pico_weights):
    content = {"model": official_state_dict(build_model(VARIANTS["pico"])), **make(pico_weights)}
    load_weights(pico, content)
    assert not torch.equal(pico.query_feat.weight, pico_weights["query_feat.weight"])
    load_weights(pico, content, ema=True)
    assert torch.equal(pico.query_feat.weight, pico_weights["query_feat.weight"])


@pytest.mark.parametrize("content, epoch, step", [
    ({"epoch": 3, "global_step": 70}, 3, 70), ({"epoch": 3, "step": 9}, 3, 9), ({"epoch": "x", "step": -1}, None, None),
    ({"loops": {"fit_loop": {"epoch_progress": {"current": {"completed": 4}}}}}, 4, None),
    ({"loops": {"fit_loop": 1}}, None, None),
])
def test_epoch_of_every_writer(content, epoch, step, pico_weights):
    """Stripped Lightning files keep it in the state of their loops."""
    found = normalise({"state_dict": pico_weights, **content}, "the file")
    assert (found["epoch"], found["step"]) == (epoch, step)


def test_no_averaged_weights(pico, pico_weights):
    with pytest.raises(InputError, match=r"no averaged \(EMA\) weights.*checkpoint_best_ema\.pth"):
        load_weights(pico, {"model": pico_weights}, ema=True)


def test_plain_content(pico_weights, tmp_path):
    label_map = {"kind": "contiguous", "classes": [{"label": 0, "category_id": 7, "name": "cell"}]}
    torch.save({"model": pico_weights, "args": legacy_args(), "epoch": 4, "metrics": {"val/mAP_50_95": 0.5},
                "label_map": label_map, "model_name": "RFDETRPico"}, tmp_path / "file.pth")
    content = read_checkpoint(tmp_path / "file.pth")
    assert content["args"]["resolution"] == 256 and content["class_names"] == {0: "a"}
    assert (content["epoch"], content["metrics"], content["label_map"], content["model_name"]) == (
        4, {"val/mAP_50_95": 0.5}, label_map, "RFDETRPico")
    assert content["model_config"] is None and content["ema_model"] is None


class RunsCode:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code(zipped, pico, tmp_path):
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    torch.save({"model": {"a": torch.zeros(1)}, "x": RunsCode(f"touch {proof}")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"evil\.pth: refused, because it holds '\w+\.system'.*could run code"):
        load_weights(pico, path)
    assert not proof.exists()


def test_a_foreign_class(pico, tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"refused.*torch\.nn\.modules\.linear\.Linear"):
        load_weights(pico, tmp_path / "whole.pth")


def saved_bytes(path):
    torch.save({"model": {"a": torch.zeros(10_000)}}, path)
    return bytearray(path.read_bytes())


def half(data):
    return data[: len(data) // 2]


def flipped(data):
    data[5_000] ^= 0xFF
    return data


@pytest.mark.parametrize("damage, message", [
    (half, "truncated"),
    (flipped, "damaged"),
    (lambda data: b"", "empty"),
    (lambda data: b"<html>not found</html>", "not a readable"),
])
def test_damaged_files(damage, message, pico, tmp_path):
    path = tmp_path / "damaged.pth"
    path.write_bytes(damage(saved_bytes(path)))
    with pytest.raises(InputError, match=rf"damaged\.pth: .*{message}"):
        load_weights(pico, path)


@pytest.mark.parametrize("content, message", [
    ([1, 2], "holds a list"), ({"epoch": 3}, r"no weights in it \(its keys: epoch\)"), ({"model": {}}, "no weights in it"),
])
def test_files_without_weights(content, message, pico, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        load_weights(pico, tmp_path / "file.pth")


def test_no_file(pico, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_weights(pico, tmp_path / "absent.pth")
    with pytest.raises(InputError, match="is a folder"):
        load_weights(pico, tmp_path)


def test_lora(pico, pico_weights):
    adapters = {"backbone.0.encoder.base_model.model.encoder.layer.0.lora_A.default.weight": torch.zeros(16, 192)}
    with pytest.raises(InputError, match="LoRA.*merge_and_unload"):
        load_weights(pico, {"model": {**pico_weights, **adapters}})
