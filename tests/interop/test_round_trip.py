"""What is saved here opens in the published package and detects the same.

Needs a Python with rfdetr 1.11.2 from PyPI: ``RFDETR_INTEROP_PYTHON=/path/to/its/python pytest tests/interop``.
Whole models are compared in float64, since in float32 rounding decides which queries are chosen; `predict` runs in
float32 on models with few queries and a picture for which the choice is clear.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rfdetr.build import build_model, build_postprocess
from rfdetr.config import VARIANTS
from rfdetr.data.label_map import LabelMap
from rfdetr.weights import checkpoint_payload, load_weights, official_state_dict
from rfdetr.weights.payload import MODEL_NAMES

PYTHON = os.environ.get("RFDETR_INTEROP_PYTHON")
HERE = Path(__file__).parent
CLASSES = LabelMap((2, 5, 9), ("cat", "dog", "owl"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="RFDETR_INTEROP_PYTHON names no Python with the published package"),
    pytest.mark.timeout(1800),
]


def _formula():
    spec = importlib.util.spec_from_file_location("golden_formula", HERE.parent / "goldens" / "detector" / "formula.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORMULA = _formula()


def filled(config):
    model = build_model(config).eval()
    state = {
        name: torch.from_numpy(FORMULA.fill(name, tensor.shape))
        for name, tensor in official_state_dict(model).items() if name != "_kp_active_mask"
    }
    load_weights(model, {"model": state})
    return model


def ask_stock(jobs, folder):
    (folder / "job.json").write_text(json.dumps(jobs))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [PYTHON, HERE / "stock_package.py", folder]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


def test_every_layout_is_the_published_one(tmp_path):
    variants = [name for name in VARIANTS if not name.startswith("pico")]
    # with the table of 37 x 37 the two older variants would ask the network for DINOv2
    tables = {name: {"positional_encoding_size": 40} if "base" in name or "deprecated" in name else {} for name in variants}
    jobs = [{"class": MODEL_NAMES[name], "keywords": {"pretrain_weights": None, **tables[name]}} for name in variants]
    for name, answer in zip(variants, ask_stock(jobs, tmp_path)):
        with torch.device("meta"):
            state = official_state_dict(build_model(dataclasses.replace(VARIANTS[name], **tables[name])))
        assert {key: list(tensor.shape) for key, tensor in state.items()} == answer["layout"], name


@pytest.mark.parametrize("variant", ["nano", "small", "medium", "base", "large", "seg_nano", "seg_small"])
def test_best_files_open_and_give_the_same_outputs(variant, tmp_path):
    config = dataclasses.replace(VARIANTS[variant], num_classes=3)
    model = filled(config)
    payload = checkpoint_payload(model, config, args={"train": {"epochs": 3}}, label_map=CLASSES)
    torch.save({**payload, "epoch": 3, "metrics": {"val/mAP_50_95": 0.5}}, tmp_path / "best.pth")
    side = -(-320 // config.size_divisor) * config.size_divisor
    batch = np.random.default_rng(0).standard_normal((1, 3, side, side + config.size_divisor))
    np.save(tmp_path / "input.npy", batch)

    answer, = ask_stock([{"class": MODEL_NAMES[variant], "keywords": {"pretrain_weights": str(tmp_path / "best.pth")},
                          "input": "input.npy", "output": "output.npz", "reopen": True}], tmp_path)

    assert answer["reopened"] == MODEL_NAMES[variant]
    assert answer["class_names"] == ["cat", "dog", "owl"]
    with torch.no_grad():
        outputs = model.double()(torch.from_numpy(batch))
    with np.load(tmp_path / "output.npz") as theirs:
        assert set(theirs.files) >= {"pred_logits", "pred_boxes"} | ({"pred_masks"} if config.segmentation_head else set())
        for name in theirs.files:
            # the published package resamples the position table in float32 also for a float64 model; ours does not
            tolerance = 3e-6 * max(1, abs(theirs[name]).max())
            np.testing.assert_allclose(outputs[name].numpy(), theirs[name], atol=tolerance, rtol=0, err_msg=name)


def detect(model, config, image, precision):
    """The published `predict` on our model: square resize without antialiasing."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    pixels = F.interpolate(pixels, size=config.input_size, mode="bilinear", align_corners=False)
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        outputs = model.to(precision)(pixels.to(precision))
        return build_postprocess(config)(outputs, torch.tensor([image.shape[:2]]))[0]


def clear_picture(model, config):
    """A picture for which rounding changes nothing: float32 and float64 find the same queries in the same order."""
    for seed in range(50):
        image = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        single, double = (detect(model, config, image, precision) for precision in (torch.float32, torch.float64))
        gaps = -double["scores"].diff()
        same_boxes = torch.allclose(single["boxes"].double(), double["boxes"], atol=1e-2)
        if same_boxes and torch.equal(single["labels"], double["labels"]) and gaps.min() > 2e-5:
            return image, double
    raise AssertionError("no picture with clear gaps")


@pytest.mark.parametrize("variant", ["nano", "seg_nano"])
def test_predictions_are_the_same(variant, tmp_path):
    config = dataclasses.replace(VARIANTS[variant], num_classes=3, num_queries=16, num_select=16)
    model = filled(config)
    torch.save({**checkpoint_payload(model, config, label_map=CLASSES), "epoch": 3}, tmp_path / "best.pth")
    image, ours = clear_picture(model, config)
    np.save(tmp_path / "image.npy", image)
    keywords = {"pretrain_weights": str(tmp_path / "best.pth"), "num_queries": 16, "num_select": 16}
    ask_stock([{"class": MODEL_NAMES[variant], "keywords": keywords, "image": "image.npy", "threshold": 0.0,
                "output": "output.npz"}], tmp_path)
    with np.load(tmp_path / "output.npz") as theirs:
        assert len(theirs["confidence"]) == 16
        np.testing.assert_array_equal(ours["labels"], theirs["class_id"])
        np.testing.assert_allclose(ours["scores"], theirs["confidence"], atol=1e-5)
        np.testing.assert_allclose(ours["boxes"], theirs["xyxy"], atol=2e-2)
        if config.segmentation_head:
            assert (ours["masks"][:, 0].numpy() != theirs["mask"]).mean() < 1e-4


def test_what_stock_writes_opens_here(tmp_path):
    """The other direction: its weights, taken over by name, give its outputs."""
    code = ("import sys, torch, numpy as np, rfdetr\n"
            "module = rfdetr.RFDETRNano(pretrain_weights=None, device='cpu').model.model\n"
            "torch.save({'model': module.state_dict()}, 'stock.pth')\n"
            "with torch.no_grad(): outputs = module.double().eval()(torch.from_numpy(np.load('input.npy')))\n"
            "np.savez('output.npz', pred_logits=outputs['pred_logits'].numpy(), pred_boxes=outputs['pred_boxes'].numpy())\n")
    batch = np.random.default_rng(1).standard_normal((1, 3, 384, 384))
    np.save(tmp_path / "input.npy", batch)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([PYTHON, "-c", code], check=True, cwd=tmp_path, env=environment, capture_output=True)
    model = build_model(VARIANTS["nano"]).eval()
    report = load_weights(model, tmp_path / "stock.pth")
    assert not (report.missing or report.unexpected or report.resized)
    with torch.no_grad():
        outputs = model.double()(torch.from_numpy(batch))
    with np.load(tmp_path / "output.npz") as theirs:
        for name in theirs.files:
            np.testing.assert_allclose(outputs[name].numpy(), theirs[name], atol=1e-7, rtol=1e-7, err_msg=name)
