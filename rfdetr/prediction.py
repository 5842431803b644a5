"""Detections on pictures, without a data set: from images to COCO's results."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from rfdetr.data.images import MAX_PIXELS, fit_size, preprocess, read_image, to_rgb
from rfdetr.data.label_map import LabelMap
from rfdetr.errors import InputError
from rfdetr.evaluation.records import encode_masks
from rfdetr.nested_tensor import pad_images
from rfdetr.plots.pictures import draw_detections

Picture = str | Path | Image.Image | np.ndarray | Tensor

SAVED_AS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF",
            ".tiff": "TIFF"}  # extensions that drawn pictures keep
QUALITY = 90  # of JPEG and WebP

logger = logging.getLogger(__name__)

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def predict(
    model: nn.Module, postprocess: Callable, images: Sequence[Picture], *, size: tuple[int, int], threshold: float = 0.5,
    precision: str = "fp32", antialias: bool = True, white_level: int | None = None, max_pixels: int = MAX_PIXELS,
    letterbox: int | None = None,
) -> list[dict[str, Tensor]]:
    """Detect objects on one batch of pictures; where the model is, the work is done.

    Args:
        images: paths (turned as EXIF says), PIL images, or RGB uint8 as arrays (h, w, 3) or tensors (3, h, w); of any sizes.
        size: (H, W) of the model's input, as in `ModelConfig.input_size`.
        threshold: only detections that score higher are returned.
        precision: "fp32", "bf16" or "fp16", of the forward pass.
        antialias: see `preprocess`.
        white_level, max_pixels: see `read_image`; the white level is that which the model was trained with.
        letterbox: pictures keep their shape, as in `fit_size`; None: they fill the input.

    Returns:
        What `PostProcess` returns for each picture, on the CPU: scores (k,), labels (k,), boxes (k, 4) xyxy in pixels of the
        picture, and for segmentation models masks (k, 1, h, w) bool; best first.
    """
    if precision not in _AUTOCAST:
        raise InputError(f"predict: precision {precision!r} is not one of {', '.join(_AUTOCAST)}")
    device = next(model.parameters()).device
    pictures = [_open(image, white_level, max_pixels) for image in images]
    if not pictures:
        return []
    shown = [fit_size(*_size_of(picture), size, letterbox) for picture in pictures]
    samples = pad_images([preprocess(picture, fitted, antialias=antialias) for picture, fitted in zip(pictures, shown)],
                         min_size=size).to(device)
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, dtype=_AUTOCAST[precision], enabled=precision != "fp32"):
            outputs = model(samples)
    finally:
        model.train(was_training)
    results = []
    for index, picture in enumerate(pictures):  # one at a time: masks are as large as the pictures
        one = {name: value[index : index + 1] for name, value in outputs.items() if isinstance(value, Tensor)}
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


def drawn_paths(folder: Path, names: Sequence[str]) -> list[Path]:
    """Choose a file of its own below `folder` for the drawing of each picture, under the picture's name where that can be kept.

    A name whose extension is none of `SAVED_AS` gets .png behind it, and a number before that where another has the name.
    """
    kept = [_inside(name) for name in names]
    taken = {path for path in kept if path.suffix.lower() in SAVED_AS}
    paths, seen = [], set()
    for path in kept:
        chosen, number = path if path in taken else path.with_name(f"{path.name}.png"), 1
        while chosen in seen or (chosen in taken and chosen != path):
            number += 1
            chosen = path.with_name(f"{path.name}-{number}.png")
        seen.add(chosen)
        paths.append(folder / chosen)
    return paths


def save_drawing(path: Path, picture: Tensor, result: dict[str, Tensor], label_map: LabelMap) -> bool:
    """Write a picture (3, h, w) with the detections that have a class; what cannot be drawn or saved is logged and left out."""
    try:
        is_known = [label_map.category_of(label) is not None for label in result["labels"].tolist()]
        found = {name: value[is_known] for name, value in result.items()}
        drawn = draw_detections(picture, found["boxes"], found["labels"], class_names=label_map.names, scores=found["scores"],
                                masks=found.get("masks"))
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(drawn).save(path, format=SAVED_AS[path.suffix.lower()], quality=QUALITY)
    except Exception as error:  # encoders have errors and limits of their own; the results are worth more than one drawing
        logger.warning("%s: the picture cannot be drawn (%s: %s); its results are kept", path, type(error).__name__, error)
        return False
    return True


def _inside(name: str) -> Path:
    """Return a name as a path that stays in its folder."""
    path = PurePath(name)
    return Path(*[part for part in path.parts if part not in (path.anchor, "..")] or ["picture"])


def _open(image: Picture, white_level: int | None, max_pixels: int) -> Image.Image | np.ndarray | Tensor:
    if isinstance(image, (str, Path)):
        return read_image(Path(image), white_level=white_level, max_pixels=max_pixels)
    return to_rgb(image, white_level) if isinstance(image, Image.Image) else image


def _size_of(picture: Image.Image | np.ndarray | Tensor) -> tuple[int, int]:
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    return tuple(picture.shape[-2:] if isinstance(picture, Tensor) else picture.shape[:2])
