"""Names of the weights: the published layout on one side, the modules of `rfdetr.models` on the other.

Only the ViT differs. Ours has timm's names and one fused qkv matrix a block; the published files keep query, key and
value apart and carry a mask token that nothing reads. Everything else has the published names already.
"""

import re

import torch
from torch import Tensor, nn

OFFICIAL_ENCODER = "backbone.0.encoder.encoder."
_NATIVE_ENCODER = "backbone.encoder."
_ENCODER_STEMS = {  # ours -> published, outside the blocks
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
}
_BLOCK_STEMS = {  # ours -> published, inside a block
    "blocks": "encoder.layer", "attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_FUSED = re.compile(r"(blocks\.\d+\.)attn\.qkv\.(weight|bias)")

MASK_TOKEN = OFFICIAL_ENCODER + "embeddings.mask_token"
KEYPOINT_MASK = "_kp_active_mask"
POSITION_TABLE = OFFICIAL_ENCODER + "embeddings.position_embeddings"
PATCH_KERNEL = OFFICIAL_ENCODER + "embeddings.patch_embeddings.projection.weight"
CLS_TOKEN = OFFICIAL_ENCODER + "embeddings.cls_token"
UNUSED = (MASK_TOKEN, KEYPOINT_MASK)  # part of the published layout, without effect on a detector


def official_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's weights under the published names; the tensors share the model's memory."""
    return to_official({strip_wrappers(name): tensor.detach() for name, tensor in model.state_dict().items()})


def strip_wrappers(name: str) -> str:
    """Remove what torch.compile and DistributedDataParallel add to a weight's name."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def is_native(names: list[str]) -> bool:
    """Tell whether these are names of `rfdetr.models`, not of a published file."""
    return any(name.startswith(_NATIVE_ENCODER) for name in names)


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our weights to the published layout, qkv split and the two unused entries added."""
    official: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = published_names(name)
        official |= zip(names, tensor.chunk(3) if len(names) == 3 else [tensor])
    if CLS_TOKEN in official:
        official[MASK_TOKEN] = torch.zeros_like(official[CLS_TOKEN][0])  # (1, C)
        official[KEYPOINT_MASK] = torch.zeros((0, 0), dtype=torch.bool)
    return official


def to_native(name: str, official: dict[str, Tensor]) -> Tensor:
    """Return what one of our weights is in a state under the published names."""
    parts = [official[published] for published in published_names(name)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def published_names(name: str) -> list[str]:
    """Return the published name of one of our weights, of a fused qkv matrix the three."""
    if not name.startswith(_NATIVE_ENCODER):
        return [name.replace("backbone.", "backbone.0.", 1) if name.startswith("backbone.") else name]
    stem = name.removeprefix(_NATIVE_ENCODER)
    fused = _FUSED.fullmatch(stem)
    stems = [f"{fused[1]}attention.attention.{part}.{fused[2]}" for part in ("query", "key", "value")] if fused else [stem]
    renamed = _BLOCK_STEMS if stem.startswith("blocks.") else _ENCODER_STEMS
    for ours, theirs in renamed.items():
        stems = [stem.replace(ours, theirs, 1) for stem in stems]
    return [OFFICIAL_ENCODER + stem for stem in stems]
