"""Detections on pictures, without a data set: from images to COCO's results."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rfdetr.data.images import preprocess, read_image
from rfdetr.data.label_map import LabelMap
from rfdetr.errors import InputError
from rfdetr.evaluation.coco_engine import encode_masks

Picture = str | Path | Image.Image | np.ndarray | Tensor

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def predict(
    model: nn.Module, postprocess: Callable, images: Sequence[Picture], *, size: tuple[int, int], threshold: float = 0.5,
    precision: str = "fp32", antialias: bool = True,
) -> list[dict[str, Tensor]]:
    """Detect objects on one batch of pictures; where the model is, the work is done.

    Args:
        images: paths (turned as EXIF says), PIL images, or RGB uint8 as arrays (h, w, 3) or tensors (3, h, w); of any sizes.
        size: (H, W) of the model's input, as in `ModelConfig.input_size`.
        threshold: only detections that score higher are returned.
        precision: "fp32", "bf16" or "fp16", of the forward pass.
        antialias: see `preprocess`.

    Returns:
        What `PostProcess` returns for each picture, on the CPU: scores (k,), labels (k,), boxes (k, 4) xyxy in pixels of the
        picture, and for segmentation models masks (k, 1, h, w) bool; best first.
    """
    if precision not in _AUTOCAST:
        raise InputError(f"predict: precision {precision!r} is not one of {', '.join(_AUTOCAST)}")
    device = next(model.parameters()).device
    pictures = [read_image(Path(image)) if isinstance(image, (str, Path)) else image for image in images]
    if not pictures:
        return []
    samples = torch.stack([preprocess(picture, size, antialias=antialias) for picture in pictures]).to(device)
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, dtype=_AUTOCAST[precision], enabled=precision != "fp32"):
            outputs = model(samples)
    finally:
        model.train(was_training)
    results = []
    for index, picture in enumerate(pictures):  # one at a time: masks are as large as the pictures
        one = {name: value[index : index + 1] for name, value in outputs.items() if name.startswith("pred_")}
        result = postprocess(one, torch.tensor([_size_of(picture)], device=device), threshold)[0]
        results.append({name: value.cpu() for name, value in result.items()})
    return results


def coco_results(
    result: dict[str, Tensor], label_map: LabelMap, *, image_id: int, file_name: str
) -> list[dict[str, Any]]:
    """Turn what was found on a picture into rows of a COCO results file, with names for people to read.

    Detections whose label stands for no category are left out (`LabelMap.category_of`).
    """
    corners = result["boxes"].double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    masks = encode_masks(result["masks"]) if "masks" in result else [None] * len(boxes)
    rows = []
    for label, score, box, mask in zip(result["labels"].tolist(), result["scores"].tolist(), boxes, masks):
        category_id = label_map.category_of(label)
        if category_id is None:
            continue
        row = {"image_id": image_id, "file_name": file_name, "category_id": category_id,
               "category_name": label_map.names[label], "bbox": box, "score": score}
        if mask is not None:
            row["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        rows.append(row)
    return rows


def _size_of(picture: Image.Image | np.ndarray | Tensor) -> tuple[int, int]:
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    return tuple(picture.shape[-2:] if isinstance(picture, Tensor) else picture.shape[:2])
