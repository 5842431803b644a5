"""Evaluating masks: 300 of them on a large picture must not take more than 1.5 GB."""

import subprocess
import sys

import pytest

SCRIPT = """
import threading, time
from pathlib import Path
import torch
from dataclasses import replace
from engine import evaluate
from rfdetr import VARIANTS, NestedTensor, build_postprocess
from rfdetr.evaluation import DetectionMetrics

HEIGHT, WIDTH = 1500, 2000

def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e9

class Predictions(torch.nn.Module):
    def forward(self, samples):
        torch.manual_seed(0)
        blobs = torch.nn.functional.interpolate(torch.randn(1, 300, 6, 6), size=(108, 108), mode="bilinear")
        boxes = torch.rand(2, 300, 4) * 0.3 + 0.3
        return {"pred_logits": torch.randn(2, 300, 4), "pred_boxes": boxes, "pred_masks": blobs.expand(2, -1, -1, -1)}

masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
masks[:, 200:600, 300:900] = True
target = {"boxes": torch.full((3, 4), 0.3), "labels": torch.tensor([0, 1, 2]), "masks": masks,
          "orig_size": torch.tensor([HEIGHT, WIDTH]), "iscrowd": torch.zeros(3, dtype=torch.int64)}
batch = NestedTensor(torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)), [target, target]
metric = DetectionMetrics(["a", "b", "c"], iou_types=("bbox", "segm"))
postprocess = build_postprocess(replace(VARIANTS["pico_seg"], num_queries=300, num_select=300))
before, peak, done = resident(), [0.0], threading.Event()

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], resident())

watcher = threading.Thread(target=watch)
watcher.start()
metrics = evaluate(Predictions(), [batch], postprocess, metric, device="cpu")
done.set()
watcher.join()
assert "segm_mAP_50" in metrics
print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_three_hundred_large_masks_fit_in_memory():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < 1.5
