"""Detections and targets to evaluate: the goldens, COCO's published example, and made-up ones."""

import json
import os
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_tools
import torch

GOLDENS = Path(__file__).parents[2] / "goldens" / "training"
DATA = Path(os.environ.get("RFDETR_TEST_DATA", "/nonexistent")) / "coco_eval_pair"
SUMMARY = "mAP_50_95 mAP_50 mAP_75 mAP_small mAP_medium mAP_large mAR_1 mAR_10 mAR mAR_small mAR_medium mAR_large".split()

CASES = json.loads((GOLDENS / "eval.json").read_text())


def golden_arrays():
    return np.load(GOLDENS / "eval.npz")


def golden_images(case):
    """Return results and targets of a golden case."""
    arrays, key = golden_arrays(), case["key"]
    fields = {"pred": ("boxes", "scores", "labels", "masks"), "gt": ("boxes", "labels", "iscrowd", "masks")}
    images = {}
    for side, names in fields.items():
        split = {
            name: torch.from_numpy(arrays[f"{key}{side}_{name}"]).split(arrays[f"{key}n_{side}"].tolist())
            for name in names
            if f"{key}{side}_{name}" in arrays
        }
        images[side] = [dict(zip(split, values)) for values in zip(*split.values())]
    return images["pred"], images["gt"]


def pair_images(truth_name, found_name, iou_type):
    """Return results and targets of COCO's example, in ascending image id."""
    truth, found = (json.loads((DATA / name).read_text()) for name in (truth_name, found_name))
    found = found["annotations"] if isinstance(found, dict) else found
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results, targets = [], []
    for image_id, size in sorted(sizes.items()):
        objects, detections = ([a for a in some if a["image_id"] == image_id] for some in (truth["annotations"], found))
        targets.append({**_instances(objects, size, iou_type), "image_id": torch.tensor([image_id])})
        targets[-1]["iscrowd"] = torch.tensor([a.get("iscrowd", 0) for a in objects])
        targets[-1]["area"] = torch.tensor([a["area"] for a in objects], dtype=torch.float64)
        scores = torch.tensor([a["score"] for a in detections], dtype=torch.float64)
        results.append({**_instances(detections, size, iou_type), "scores": scores})
    return results, targets


def _instances(annotations, size, iou_type):
    boxes = torch.tensor([a.get("bbox", [0, 0, 0, 0]) for a in annotations], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
    if iou_type == "bbox":
        return {"boxes": boxes, "labels": labels}
    masks = [torch.from_numpy(_decode(a["segmentation"], size)) for a in annotations]
    return {"boxes": boxes, "labels": labels, "masks": torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)}


def _decode(segmentation, size):
    if isinstance(segmentation, list):
        segmentation = mask_tools.merge(mask_tools.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_tools.frPyObjects(segmentation, *size)
    return mask_tools.decode([segmentation])[..., 0].astype(bool)


def made_up_images(num_images, seed=0, num_classes=3, num_objects=4, num_found=8):
    """Return results and targets in the loader's form: normalised boxes, images of 100 x 200 pixels."""
    generator = torch.Generator().manual_seed(seed)
    results, targets = [], []
    for image_id in range(num_images):
        boxes = torch.rand(num_objects, 4, generator=generator) * 0.3 + 0.2
        labels = torch.randint(num_classes, (num_objects,), generator=generator)
        crowd = torch.zeros(num_objects, dtype=torch.int64)
        size = torch.tensor([100, 200])
        targets.append(
            {"boxes": boxes, "labels": labels, "iscrowd": crowd, "orig_size": size, "image_id": torch.tensor([image_id])}
        )
        rows = torch.randint(num_objects, (num_found,), generator=generator)
        found = boxes[rows] + torch.randn(num_found, 4, generator=generator) * 0.02
        corners = torch.cat([found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2], dim=1)
        scores = torch.rand(num_found, generator=generator)
        results.append({"boxes": corners * torch.tensor([200, 100, 200, 100]), "labels": labels[rows], "scores": scores})
    return results, targets
