"""Validation losses of a real detector: what the criterion gives for the whole split."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hooks import COCOEvalHook
from rfdetr.data import open_dataset
from rfdetr.nested_tensor import collate
from rfdetr.training import EvalConfig, build_trainer


def crowded(data: str, folder: Path) -> str:
    """Copy the data with a crowd and a box beyond the edge."""
    shutil.copytree(data, folder)
    for split in ("train", "valid"):
        path = folder / split / "_annotations.coco.json"
        content = json.loads(path.read_text())
        runs = {"counts": [0, 64 * 64], "size": [64, 64]}
        content["annotations"] += [{"id": 98, "image_id": 1, "category_id": 1, "bbox": [0, 0, 64, 64], "area": 4096, "iscrowd": 1,
                                    "segmentation": runs},
                                   {"id": 99, "image_id": 2, "category_id": 1, "bbox": [40, 40, 60, 60], "area": 3600,
                                    "segmentation": [[40, 40, 64, 40, 64, 64, 40, 64]]}]
        path.write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("variant", ["pico", "pico_seg"])
def test_it_is_the_criterion_of_the_whole_split_whatever_the_batches(small, data, tmp_path, variant):
    data = crowded(data, tmp_path / "crowded")
    found = []
    for batch_size in (1, 3):
        config = small(eval=EvalConfig(loss=True, monitor="loss"))
        config = replace(config, data=replace(config.data, dataset_dir=data, eval_batch_size=batch_size),
                         model=replace(config.model, variant=variant))
        trainer = build_trainer(config)
        coco_eval = next(hook for hook in trainer.hooks if isinstance(hook, COCOEvalHook))
        before = torch.get_rng_state()
        found.append(coco_eval.evaluate_and_publish(trainer))
        assert torch.equal(before, torch.get_rng_state()) and trainer.criterion.training
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-6)

    model, criterion = trainer.unwrapped_model.eval(), trainer.criterion.eval()
    # as training has it: without the crowd, with the box cut at the edge
    dataset = open_dataset(data, "val", image_size=(64, 64), training=True, augment="none", with_masks=variant == "pico_seg")
    samples, targets = collate([dataset[index] for index in range(4)])
    assert sum(len(target["boxes"]) for target in targets) == 5
    with torch.no_grad():
        losses = criterion(model(samples), targets)
    tolerance = 1e-5 if variant == "pico" else 0.5  # the few points of so small masks are drawn, also for matching
    for name in criterion.weight_dict:
        assert found[0][f"val/{name}"] == pytest.approx(losses[name].item(), rel=tolerance), name
    total = sum(weight * found[0][f"val/{name}"] for name, weight in criterion.weight_dict.items())
    assert found[0]["val/loss"] == pytest.approx(total, rel=1e-5)
