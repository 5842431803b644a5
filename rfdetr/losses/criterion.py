"""The training loss: match every layer's queries with the objects, then measure classes, boxes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rfdetr.losses.functional import FOREGROUND
from rfdetr.losses.masks import mask_losses, matched_mask_logits
from rfdetr.losses.matcher import HungarianMatcher, Pairs
from rfdetr.losses.stacked import FlatTargets, StackedOutputs, to_device
from rfdetr.losses.sums import LayerSums

LOSSES = ("labels", "boxes", "cardinality", "masks")


class SetCriterion(nn.Module):
    """Losses of a detector's outputs, of every layer that it returns.

    The total loss is the sum of ``weight_dict[name] * losses[name]`` over the names in both.
    """

    host_targets = True  # a batch's targets are copied in two pieces, and not in several for each image

    def __init__(
        self,
        matcher: HungarianMatcher,
        weight_dict: dict[str, float],
        *,
        losses: Sequence[str] = ("labels", "boxes", "cardinality"),
        class_loss: str = "ia_bce",
        focal_alpha: float = 0.25,
        group_detr: int = 1,
        sum_group_losses: bool = False,
        mask_point_sample_ratio: int = 16,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        """Take plain values: ``group_detr`` is the number of query groups in training (one otherwise);
        ``sum_group_losses`` counts an object once, and not once a group, when losses are divided by the objects;
        ``class_weights`` (C,) are factors on the classification loss of matched queries, by the class of their object."""
        super().__init__()
        if class_loss not in FOREGROUND:
            raise ValueError(f"unknown class_loss {class_loss!r}; known: {', '.join(FOREGROUND)}")
        if unknown := [name for name in losses if name not in LOSSES]:
            raise ValueError(f"unknown losses {unknown}; known: {', '.join(LOSSES)}")
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.losses = tuple(losses)
        self.class_loss = class_loss
        self.group_detr = group_detr
        self.sum_group_losses = sum_group_losses
        self.mask_point_sample_ratio = mask_point_sample_ratio
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.sums = LayerSums(losses, class_loss, focal_alpha, weights)

    def forward(
        self, outputs: dict, targets: Sequence[dict], num_boxes: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the unweighted losses; aux layers are marked ``_0``, ``_1``, ..., the encoder's outputs ``_enc``.

        ``num_boxes`` is what they are divided by; default: the objects of this batch, averaged over the processes.
        """
        device = outputs["pred_logits"].device
        if num_boxes is None:
            num_boxes = self._average_boxes(targets, device)
        layers = {"": outputs}
        layers |= {f"_{index}": layer for index, layer in enumerate(outputs.get("aux_outputs", ()))}
        if "enc_outputs" in outputs:
            layers["_enc"] = outputs["enc_outputs"]
        with torch.autocast(device.type, enabled=False):  # everything below is float32, or float64 if the outputs are
            return self._losses(layers, targets, num_boxes)

    def count_boxes(self, targets: Sequence[dict]) -> int:
        """Count the objects of this process's batch, once for each group that is trained on them."""
        return sum(len(target["labels"]) for target in targets) * (1 if self.sum_group_losses else self._num_groups)

    @property
    def compile_units(self) -> list[nn.Module]:
        """What `torch.compile` takes whole; between them the host solves the assignments, and masks are measured."""
        return [*self.matcher.compile_units, self.sums]

    @property
    def _num_groups(self) -> int:
        return self.group_detr if self.training else 1

    def _average_boxes(self, targets: Sequence[dict], device: torch.device) -> float | Tensor:
        count = float(self.count_boxes(targets))
        if not (dist.is_available() and dist.is_initialized()):
            return max(count, 1.0)
        total = torch.full((), count, device=device)
        dist.all_reduce(total)
        return (total / dist.get_world_size()).clamp(min=1)

    def _losses(self, layers: dict[str, dict], targets: Sequence[dict], num_boxes: float | Tensor) -> dict[str, Tensor]:
        stacked = StackedOutputs.from_layers(list(layers.values()))
        flat = FlatTargets.from_list(targets, stacked)
        matched = _Matched.from_pairs(self.matcher.match(stacked, flat, self._num_groups), stacked, flat)
        table, class_error, cardinality_error = self.sums(
            stacked.logits, stacked.boxes, stacked.query_counts, flat.labels, flat.boxes,
            to_device(np.array(flat.sizes, np.float32), stacked.device),
            matched.queries, matched.objects, matched.segments, matched.layers)
        names, results = self.sums.names, {}
        if "labels" in self.losses:
            results["class_error"] = class_error
        if "masks" in self.losses:
            names += ["loss_mask_ce", "loss_mask_dice"]
            table = torch.cat((table, self._mask_sums(stacked, flat, matched)))
        results |= zip([name + suffix for name in names for suffix in layers], (table / num_boxes).flatten().unbind())
        if "cardinality" in self.losses:
            results |= zip([f"cardinality_error{suffix}" for suffix in layers], cardinality_error.unbind())
        return results

    def _mask_sums(self, stacked: StackedOutputs, flat: FlatTargets, matched: "_Matched") -> Tensor:
        """(2, L) cross entropy and dice losses of the matched masks; objects without a mask teach the others alone."""
        if stacked.masks is None or flat.masks is None:
            raise ValueError("mask losses need 'pred_masks' in the outputs of every layer and 'masks' in every target")
        sums = []
        rows, objects = matched.rows.split(matched.lengths), matched.objects.split(matched.layer_counts)
        for layer, masks in enumerate(stacked.masks):
            first = layer * len(flat.sizes)
            logits = matched_mask_logits(masks, rows[first : first + len(flat.sizes)])
            sums.append(torch.stack(mask_losses(logits, flat.masks, objects[layer], self.mask_point_sample_ratio,
                                                counted=flat.has_mask[objects[layer]])))
        return torch.stack(sums, dim=1)


@dataclass(frozen=True)
class _Matched:
    """All P matched pairs of a step, layer after layer, image after image; a segment is an image in a layer."""

    queries: Tensor  # (P,) index into the B * N queries of the stacked outputs
    rows: Tensor  # (P,) index into the queries of the image and layer
    objects: Tensor  # (P,) index into the T objects
    segments: Tensor  # (P,) layer * B + image
    layers: Tensor  # (P, L) one where a pair is of a layer, else zero
    lengths: list[int]  # pairs of each segment
    layer_counts: list[int]  # pairs of each layer

    @classmethod
    def from_pairs(cls, pairs: list[list[Pairs]], stacked: StackedOutputs, flat: FlatTargets) -> "_Matched":
        batch_size, num_queries = stacked.logits.shape[:2]
        lengths = [len(queries) for layer in pairs for queries, _ in layer]
        segments = np.repeat(np.arange(len(lengths)), lengths)
        layers, images = np.divmod(segments, batch_size)
        rows = np.concatenate([queries for layer in pairs for queries, _ in layer])
        starts = np.cumsum([0, *stacked.query_counts[:-1]])
        queries = images * num_queries + starts[layers] + rows
        objects = np.concatenate([objects for layer in pairs for _, objects in layer]) + flat.offsets[images]
        indices = to_device(np.stack([queries, rows, objects, segments]), stacked.device)
        layer_counts = np.bincount(layers, minlength=len(pairs)).tolist()
        of_layer = to_device(layers[:, None] == np.arange(len(pairs)), stacked.device).to(stacked.boxes.dtype)
        return cls(*indices.unbind(), layers=of_layer, lengths=lengths, layer_counts=layer_counts)
