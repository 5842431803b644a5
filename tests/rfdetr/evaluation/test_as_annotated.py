"""A data set is evaluated as pycocotools does with its file: boxes beyond the edge, outside, without an area, crowds."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr.data import eval_loader, open_dataset, train_loader
from rfdetr.evaluation import DetectionMetrics, absolute_targets

SIZES = ((60, 80), (75, 50), (64, 64))  # h, w
EXTRA = ([-20, -10, 60, 50], [70, 50, 60, 40], [100, 100, 10, 10], [20, 20, 0, 10], [30, 30, 0, 0], [-1e7, -1e7, 2e7, 2e7],
         [20, 20, 20, -6])


@pytest.fixture
def folder(tmp_path):
    dice = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(12):
        height, width = SIZES[index % 3]
        images.append({"id": index + 1, "file_name": f"{index}.png", "height": height, "width": width})
        places = dice.uniform(-15, 60, (5, 2)).round(2).tolist()
        boxes = [[x, y, *dice.uniform(8, 40, 2).round(2).tolist()] for x, y in places]
        if index % 2:
            boxes += [list(box) for box in EXTRA]
        for box in boxes:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, "category_id": int(dice.choice([3, 7])),
                                "bbox": box, "area": abs(box[2] * box[3]),
                                "iscrowd": int(dice.random() < 0.1)})
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
        for image in images:
            Image.new("RGB", (image["width"], image["height"])).save(tmp_path / split / image["file_name"])
    return tmp_path


def find_something(target: dict, dice: np.random.Generator) -> dict[str, torch.Tensor]:
    """Detections near some of the targets, as they are and as cut at the edge, and some anywhere."""
    boxes = target["boxes"].numpy()
    height, width = 64, 64
    shaken = boxes + dice.normal(0, 2, boxes.shape)
    made = np.concatenate([shaken, shaken.clip(0, [width, height, width, height]), dice.uniform(0, 60, (3, 4))])
    made = made[dice.random(len(made)) < 0.8].astype(np.float32)
    labels, scores = dice.integers(0, 2, len(made)), dice.random(len(made), dtype=np.float32)
    return {"boxes": torch.from_numpy(made), "labels": torch.from_numpy(labels), "scores": torch.from_numpy(scores)}


def evaluate_file(path, results: list[dict], ids: list[int]) -> list[float]:
    """What pycocotools says of the file itself: AP, AP50, AP75, AP of medium objects, AR."""
    rows = [{"image_id": image_id, "category_id": (3, 7)[label], "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
             "score": score}
            for image_id, result in zip(ids, results)
            for box, label, score in zip(result["boxes"].double().tolist(), result["labels"].tolist(), result["scores"].tolist())]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.params.maxDets = [1, 10, 500]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][..., 2], evaluation.eval["recall"][..., 2]
    parts = precision[..., 0], precision[0, ..., 0], precision[5, ..., 0], precision[..., 2], recall[..., 0]
    return [values[values > -1].mean() for values in parts]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_it_equals_pycocotools_on_the_file(folder, num_workers):
    dataset = open_dataset(folder, "val", training=False, image_size=(32, 32))
    dice, metric, found, ids = np.random.default_rng(1), DetectionMetrics(dataset.label_map.names), [], []
    for _, targets in eval_loader(dataset, batch_size=5, num_workers=num_workers):
        results = [find_something(target, dice) for target in absolute_targets(targets)]
        metric.update(results, targets)
        found, ids = found + results, ids + [int(target["image_id"]) for target in targets]
    values = metric.compute()
    expected = evaluate_file(folder / "valid" / "_annotations.coco.json", found, ids)
    names = ("mAP_50_95", "mAP_50", "mAP_75", "mAP_medium", "mAR")
    np.testing.assert_allclose([values[name] for name in names], expected, atol=1e-9, rtol=0)
    assert 0.05 < expected[0] < 0.95
    assert np.isfinite(list(values.values())).all()
    assert metric.confusion().sum() > 0 and all(np.isfinite(curve).all() for curve in metric.pr_curves()["cat"])


def test_training_cuts_at_the_edge(folder):
    dataset = open_dataset(folder, "train", training=True, image_size=(32, 32), augment="none")
    loader = train_loader(dataset, batch_size=4, seed=0, num_workers=0)
    boxes = torch.cat([target["boxes"] for _, targets in loader for target in targets])
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2])
    assert corners.min() > -1e-6 and corners.max() < 1 + 1e-6 and (boxes[:, 2:] > 0).all()
