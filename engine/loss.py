"""From a criterion's losses to the one that is differentiated, and the number of boxes that they are divided by."""

from typing import Any

import torch
from torch import Tensor, nn

from engine.distributed import all_reduce_sum, world_size


def total_loss(criterion: nn.Module, losses: dict[str, Tensor]) -> Tensor:
    """Return the sum of the losses, with the weights of ``criterion.weight_dict`` where there is one."""
    weights = getattr(criterion, "weight_dict", None)
    if weights is None:
        return sum(losses.values())  # type: ignore[return-value]  # a criterion returns at least one
    values = torch.stack([value.reshape(()) for name, value in losses.items() if name in weights])
    factors = torch.tensor([weights[name] for name in losses if name in weights], dtype=values.dtype)
    return values @ factors.to(values.device, non_blocking=True)


def window_normalizer(criterion: Any, batches: list, device: torch.device) -> dict[str, Any]:
    """Return the argument for a criterion that makes it divide by the mean number of boxes a batch, over a window and all ranks.

    The loss of each batch is divided by the number of batches and DDP averages gradients over ranks, so dividing by this mean
    gives the sum over all boxes by the number of all boxes.
    """
    count = sum(criterion.count_boxes(targets) for _, targets in batches)
    dtype = torch.float32 if device.type == "mps" else torch.float64
    total = all_reduce_sum(torch.full((), count, dtype=dtype, device=device))
    return {"num_boxes": total.clamp(min=1) / (len(batches) * world_size())}
