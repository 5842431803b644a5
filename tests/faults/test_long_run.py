"""A long run stays flat: memory, open files, threads and processes. ``RFDETR_LONG_STEPS`` sets its length."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hooks import Hook
from rfdetr.training import RunConfig, train
from rfdetr.training.config import DataConfig, DetectorConfig, LogConfig, TrainConfig

STEPS = int(os.environ.get("RFDETR_LONG_STEPS", "2000"))
IMAGES = 200
BATCH = 2


class Meter(Hook):
    """Measures this process and its loader processes every so many steps."""

    def __init__(self) -> None:
        self.rows = []

    def after_step(self, trainer):
        if trainer.step % (STEPS // 20) == 0:
            pids = [int(pid) for pid in Path("/proc/self/task").glob("*/children") for pid in pid.read_text().split()]
            memory = sum(rss(pid) for pid in ("self", *pids))
            self.rows.append((memory, len(os.listdir("/proc/self/fd")), threading.active_count(), len(pids)))


def rss(pid: int | str) -> float:
    """MB that belong to a process alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks /proc")
def test_many_steps_with_four_workers_are_flat(tmp_path):
    generator = np.random.default_rng(0)
    for split, num_images in (("train", IMAGES), ("valid", 2)):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        for number in range(num_images):
            Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        content = {"images": [{"id": number, "file_name": f"{number}.png", "height": 64, "width": 64}
                              for number in range(num_images)],
                   "annotations": [{"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 40, 40], "area": 1600}
                                   for number in range(num_images)],
                   "categories": [{"id": 1, "name": "thing"}]}
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    config = RunConfig(
        model=DetectorConfig(variant="pico", resolution=64, num_queries=10, group_detr=2),
        data=DataConfig(dataset_dir=str(tmp_path / "data"), batch_size=BATCH, num_workers=4),
        train=TrainConfig(epochs=STEPS * BATCH // IMAGES, device="cpu", output_dir=str(tmp_path / "run")),
        log=LogConfig(tensorboard=False, plots=False, progress=False),
    )
    meter = Meter()
    train(config, [meter])
    settled = meter.rows[len(meter.rows) // 4 :]
    memory, files, threads, processes = zip(*settled)
    assert max(memory[-5:]) < 1.03 * max(memory[:5]) + 10, memory
    assert len(set(files)) == len(set(threads)) == len(set(processes)) == 1, settled
