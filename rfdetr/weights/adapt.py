"""Make a checkpoint's tensors fit a detector: the query rows, the position table.

States are dicts under the published names. What fits stays the very tensor of the file.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfdetr.errors import InputError
from rfdetr.weights.names import POSITION_TABLE

CLASS_BIAS = "class_embed.bias"
QUERY_TABLES = ("refpoint_embed.weight", "query_feat.weight")


def count_groups(state: dict[str, Tensor]) -> int:
    """Return the number of query groups that a state was made for."""
    return sum(name.startswith("transformer.enc_output.") and name.endswith(".bias") for name in state)


def query_table(name: str, tensor: Tensor, rows: int, groups: int, layout: tuple[int, int] | None, origin: str) -> Tensor:
    """Cut one query table (n, ...) -> (rows, ...) for a model with ``groups`` groups.

    Args:
        layout: (queries, groups) of the file where it is known; then every group keeps its first queries. Otherwise the cut
            is flat, which leaves only the first group as it was where the number of queries shrinks.
    """
    if layout is not None and layout[0] * layout[1] == tensor.shape[0]:
        per_group = tensor.unflatten(0, (layout[1], layout[0]))
        cut = per_group[: min(groups, layout[1]), : min(rows // groups, layout[0])].flatten(0, 1)
    else:
        cut = tensor[:rows]
    if cut.shape[0] != rows:
        raise InputError(
            f"{origin}: {name} has {tensor.shape[0]} rows, too few for {rows // groups} queries in {groups} groups; "
            "lower num_queries or group_detr"
        )
    return cut


def query_layout(args: dict[str, Any], model_config: dict[str, Any] | None, rows: int) -> tuple[int, int] | None:
    """Return (queries a group, groups) of a file whose tables have so many rows, if it says so; one number is enough."""
    for source in (args, model_config or {}):
        queries, groups = (value if type(value) is int and value > 0 else None for value in
                           (source.get("num_queries"), source.get("group_detr")))
        if queries is None and groups and rows % groups == 0:
            queries = rows // groups
        if groups is None and queries and rows % queries == 0:
            groups = rows // queries
        if queries and groups and queries * groups == rows:
            return queries, groups
    return None


def position_table(tensor: Tensor, length: int, origin: str) -> Tensor:
    """Resample a position table (1, 1 + g*g, C) -> (1, length, C), as the model does for an input of another size.

    Bicubic with antialiasing in float32; the slot of the CLS token, the first, is kept.
    """
    if tensor.ndim != 3:
        raise InputError(f"{origin}: {POSITION_TABLE} has the shape {tuple(tensor.shape)}, not (1, rows, channels)")
    here, there = _side(tensor.shape[1], origin), _side(length, "the model")
    if here == there:
        return tensor
    grid = tensor[:, 1:].float().unflatten(1, (here, here)).permute(0, 3, 1, 2)  # (1, C, g, g)
    grid = F.interpolate(grid, size=(there, there), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([tensor[:, :1], grid.flatten(2).transpose(1, 2).to(tensor.dtype)], dim=1)


def _side(length: int, origin: str) -> int:
    side = round((length - 1) ** 0.5)
    if side < 1 or side * side != length - 1:
        raise InputError(f"{origin}: {POSITION_TABLE} has {length} rows, which is not a square grid and the CLS token")
    return side
