"""One step's predictions and targets laid out flat: all layers and images go through the same few kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MaskPrediction = Tensor | dict[str, Tensor]  # logits (B, n, h, w), or the factors that they are made of


def at_least_float32(values: Tensor) -> Tensor:
    """Give 16-bit values as float32; losses and costs lose too much in 16 bits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy an array or tensor of the host without waiting for what the device is doing."""
    values = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def layer_sums(values: Tensor, query_counts: Sequence[int]) -> Tensor:
    """Sums (..., L) of each layer's share of (..., N) values a query."""
    if len(set(query_counts)) == 1:
        return values.unflatten(-1, (len(query_counts), -1)).sum(-1)
    return torch.stack([part.sum(-1) for part in values.split(query_counts, dim=-1)], dim=-1)


@dataclass(frozen=True)
class StackedOutputs:
    """Outputs of L layers side by side on the query axis; layers may differ in their number of queries n."""

    logits: Tensor  # (B, N, C), N = sum of query_counts
    boxes: Tensor  # (B, N, 4) cxcywh
    query_counts: list[int]  # n of each layer
    masks: list[MaskPrediction] | None  # of each layer; None where a layer has none

    @classmethod
    def from_layers(cls, layers: Sequence[dict]) -> "StackedOutputs":
        """Join the outputs dicts of the layers."""
        has_masks = all("pred_masks" in layer for layer in layers)
        return cls(
            logits=torch.cat([at_least_float32(layer["pred_logits"]) for layer in layers], dim=1),
            boxes=torch.cat([at_least_float32(layer["pred_boxes"]) for layer in layers], dim=1),
            query_counts=[layer["pred_logits"].shape[1] for layer in layers],
            masks=[layer["pred_masks"] for layer in layers] if has_masks else None,
        )

    @property
    def device(self) -> torch.device:
        return self.logits.device


@dataclass(frozen=True)
class FlatTargets:
    """Targets of a batch, concatenated over its images."""

    boxes: Tensor  # (T, 4) cxcywh
    labels: Tensor  # (T,) int64
    host_labels: np.ndarray | None  # the same where they came from the host
    sizes: list[int]  # objects of each image; T is their sum
    masks: Tensor | None  # (T, h, w) bool
    has_mask: Tensor | None  # (T,) bool; objects without one are matched and measured by class and box alone

    @classmethod
    def from_list(cls, targets: Sequence[dict], stacked: StackedOutputs) -> "FlatTargets":
        """Join the targets of the images and put them where the predictions are."""
        labels = torch.cat([target["labels"] for target in targets])
        _check_labels(labels, num_classes=stacked.logits.shape[-1])
        wants_masks = stacked.masks is not None and all("masks" in target for target in targets)
        masks = has_mask = None
        if wants_masks:
            masks = to_device(_join_masks([target["masks"] for target in targets]), stacked.device)
            has_mask = [target.get("has_mask", torch.ones_like(target["labels"], dtype=torch.bool)) for target in targets]
            has_mask = to_device(torch.cat(has_mask), stacked.device)
        boxes = torch.cat([target["boxes"] for target in targets])
        return cls(
            boxes=to_device(boxes.to(stacked.boxes.dtype), stacked.device),
            labels=to_device(labels, stacked.device),
            host_labels=labels.numpy() if labels.device.type == "cpu" else None,
            sizes=[len(target["labels"]) for target in targets],
            masks=masks,
            has_mask=has_mask,
        )

    @property
    def offsets(self) -> np.ndarray:
        """(B,) index of each image's first object."""
        return np.cumsum([0, *self.sizes[:-1]])


def _check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that the logits cannot hold, where looking costs no wait; a device fails far from the cause."""
    if labels.device.type != "cpu" or not len(labels):
        return
    lowest, highest = labels.numpy().min(), labels.numpy().max()
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"targets have labels {lowest} to {highest}, but pred_logits has room for 0 to {num_classes - 1}; "
            "the model's num_classes does not fit the data's label map"
        )


def _join_masks(masks: list[Tensor]) -> Tensor:
    """[(M, h, w), ...] -> (T, h, w); smaller images are padded at the bottom right as their pixels are."""
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (1, 2))
    padded = [F.pad(mask, (0, width - mask.shape[2], 0, height - mask.shape[1])) for mask in masks]
    return torch.cat(padded)
