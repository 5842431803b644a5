"""What a step's predictions and matched pairs come to in each layer: the part of the loss that is arithmetic alone."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.losses.functional import FOREGROUND, background_factor, background_loss, background_sums, relative_quality
from rfdetr.losses.pairs import pair_losses
from rfdetr.losses.stacked import layer_sums


class LayerSums(nn.Module):
    """Class and box losses, and two figures to watch, of L layers side by side on the query axis (see `StackedOutputs`).

    It never asks what a value is, so `torch.compile` takes it whole.
    """

    def __init__(self, losses: Sequence[str], class_loss: str, alpha: float, class_weights: Tensor | None) -> None:
        super().__init__()
        self.losses, self.class_loss, self.alpha = losses, class_loss, alpha
        self.register_buffer("class_weights", class_weights, persistent=False)

    @property
    def names(self) -> list[str]:
        """Rows of the table."""
        return [*["loss_ce"] * ("labels" in self.losses), *["loss_bbox", "loss_giou"] * ("boxes" in self.losses)]

    def forward(self, logits: Tensor, boxes: Tensor, query_counts: list[int], labels: Tensor, wanted: Tensor, sizes: Tensor,
                queries: Tensor, objects: Tensor, segments: Tensor, layers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum up the layers.

        Args:
            logits, boxes: (B, N, C) and (B, N, 4), N = sum of query_counts.
            labels, wanted, sizes: of the T objects (T,), (T, 4), and how many each image has (B,), float.
            queries, objects, segments: (P,) the pairs, as indices into B * N queries and T objects; segments are L * B.
            layers: (P, L) one where a pair is of a layer, else zero.

        Returns:
            `names` (losses, L); the percentage of the first layer's matched queries whose highest logit is of another class ();
            how far the number of queries with a probability above one half is from the objects, mean over images (L,).
        """
        l1, giou_loss, iou = pair_losses(boxes.flatten(0, 1).index_select(0, queries), wanted.index_select(0, objects))
        labels = labels.index_select(0, objects)
        rows = [l1, giou_loss] if "boxes" in self.losses else []
        if "labels" in self.losses:
            pair_logits = logits.flatten().index_select(0, queries * logits.shape[-1] + labels)
            rows.insert(0, self._class_change(pair_logits, labels, iou, segments, len(query_counts) * len(logits)))
        table = torch.stack(rows) if rows else l1.new_zeros(0, len(l1))
        if "labels" in self.losses:
            background = F.pad(background_sums(logits, query_counts)[None], (0, 0, 0, len(rows) - 1))
            table = torch.addmm(background, table, layers, beta=background_factor(self.class_loss, self.alpha))
        else:
            table = table @ layers
        with torch.no_grad():
            return table, _class_error(logits, queries, labels, layers[:, 0]), _cardinality_error(logits, query_counts, sizes)

    def _class_change(self, logits: Tensor, labels: Tensor, quality: Tensor, segments: Tensor, num_segments: int) -> Tensor:
        """(P,) how far matched logits' losses are from those of background; see `rfdetr.losses.functional`."""
        if self.class_loss == "position_supervised":
            quality = relative_quality(quality, segments, num_segments)
        change = FOREGROUND[self.class_loss](logits, quality, self.alpha)
        if self.class_weights is not None:
            change = change * self.class_weights[labels].to(change.dtype)
        return change.sub(background_loss(logits), alpha=background_factor(self.class_loss, self.alpha))


def _class_error(logits: Tensor, queries: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    is_right = logits.flatten(0, 1).index_select(0, queries).argmax(-1) == labels
    return 100 - 100 * (is_right * counted).sum() / counted.sum().clamp(min=1)


def _cardinality_error(logits: Tensor, query_counts: Sequence[int], sizes: Tensor) -> Tensor:
    confident = logits.amax(-1) > 0
    return (layer_sums(confident, query_counts) - sizes[:, None]).abs().mean(0).to(logits.dtype)
