"""Targets in pixels of the original image, the published names, and the confusion matrix."""

import numpy as np
import pytest
import torch
from eval_cases import SUMMARY, made_up_images

from rfdetr.evaluation import DetectionMetrics, absolute_targets


def loader_target(boxes, labels, crowd=None, **extra):
    crowd = [0] * len(labels) if crowd is None else crowd
    target = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}
    return {**target, "iscrowd": torch.tensor(crowd), "orig_size": torch.tensor([100, 200]), **extra}


def result(boxes, labels, scores, **extra):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels), "scores": torch.tensor(scores), **extra}


def test_absolute_targets():
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[:, :2] = True
    target = loader_target([[0.5, 0.5, 0.2, 0.4]], [3], [1], area=torch.tensor([7.0]), image_id=torch.tensor([9]), masks=masks)
    (absolute,) = absolute_targets([target])
    assert absolute["boxes"].tolist() == pytest.approx(np.array([[80.0, 30.0, 120.0, 70.0]]))
    assert [absolute[key].tolist() for key in ("labels", "iscrowd", "area", "image_id")] == [[3], [1], [7.0], [9]]
    assert absolute["masks"].shape == (1, 100, 200) and absolute["masks"].float().mean() == 0.5
    assert target["boxes"][0, 0] == 0.5 and "orig_size" not in absolute


def test_absolute_targets_of_an_image_without_objects():
    (absolute,) = absolute_targets([loader_target([], [], masks=torch.zeros(0, 4, 4, dtype=torch.bool))])
    assert absolute["boxes"].shape == (0, 4) and absolute["masks"].shape == (0, 100, 200)


def test_published_names():
    metric = DetectionMetrics(["cat", "dog", "bird", "fish"])
    metric.update(*made_up_images(6))
    values = metric.compute()
    assert set(values) == {*SUMMARY, "F1", "precision", "recall", "F1_threshold", "AP/cat", "AP/dog", "AP/bird"}
    assert all(type(value) is float for value in values.values())
    assert values["mAP_50_95"] == pytest.approx(np.mean([values[f"AP/{name}"] for name in ("cat", "dog", "bird")]))
    assert set(metric.pr_curves()) == {"cat", "dog", "bird"}
    metric.reset()
    assert metric.compute()["mAP_50_95"] == -1


def test_masks_add_names_and_give_f1():
    mask = torch.zeros(1, 100, 200, dtype=torch.bool)
    mask[:, 30:70, 80:120] = True
    metric = DetectionMetrics(["cat"], iou_types=("bbox", "segm"))
    shifted = result([[0.0, 0.0, 10.0, 10.0]], [0], [0.9], masks=mask[:, None])  # a good mask with a wrong box
    metric.update([shifted], [loader_target([[0.5, 0.5, 0.2, 0.4]], [0], masks=mask)])
    values = metric.compute()
    assert (values["mAP_50_95"], values["segm_mAP_50_95"]) == pytest.approx((0.0, 1.0))
    assert (values["AP/cat"], values["segm_AP/cat"], values["F1"]) == pytest.approx((0.0, 1.0, 1.0))
    assert metric.confusion().tolist() == [[1, 0], [0, 0]]


def test_confusion_matrix():
    target = loader_target([[0.25, 0.25, 0.1, 0.2], [0.75, 0.75, 0.1, 0.2], [0.2, 0.8, 0.3, 0.3]], [0, 1, 0], [0, 0, 1])
    hit, swapped = [40.0, 15.0, 60.0, 35.0], [140.0, 65.0, 160.0, 85.0]
    in_crowd, nowhere = [20.0, 70.0, 30.0, 80.0], [180.0, 0.0, 199.0, 10.0]
    found = result([hit, swapped, in_crowd, nowhere, nowhere], [0, 0, 0, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.1])
    metric = DetectionMetrics(["cat", "dog"])
    metric.update([found], [target])
    #                                        found: cat dog missed
    assert metric.confusion(0.5).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert metric.confusion(0.85).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_a_label_without_a_name_is_shown_as_it_is():
    metric = DetectionMetrics(["cat"])
    metric.update([result([[80.0, 30.0, 120.0, 70.0]], [5], [0.9])], [loader_target([[0.5, 0.5, 0.2, 0.4]], [5])])
    assert metric.compute()["AP/5"] == pytest.approx(1.0)
    assert not metric.confusion().any()
