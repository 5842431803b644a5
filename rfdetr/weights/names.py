"""Names of the weights: the published layout on one side, the modules of `rfdetr.models` on the other.

Only the ViT differs. Ours has timm's names and one fused qkv matrix a block; the published files keep query, key and
value apart and carry a mask token that nothing reads. Everything else has the published names already.
"""

import re

import torch
from torch import Tensor, nn

OFFICIAL_ENCODER = "backbone.0.encoder.encoder."
_NATIVE_ENCODER = "backbone.encoder."
_OFFICIAL_BLOCK = "encoder.layer."
_NATIVE_BLOCK = "blocks."

_ENCODER_STEMS = {  # official -> native, outside the blocks
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_BLOCK_STEMS = {  # official -> native, inside a block
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = ("query", "key", "value")  # the order of the rows in the fused matrix
_OFFICIAL_QKV = re.compile(r"(encoder\.layer\.\d+\.)attention\.attention\.(query|key|value)\.(weight|bias)")
_NATIVE_QKV = re.compile(r"(blocks\.\d+\.)attn\.qkv\.(weight|bias)")

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
        if not name.startswith(_NATIVE_ENCODER):
            official[name.replace("backbone.", "backbone.0.", 1) if name.startswith("backbone.") else name] = tensor
            continue
        stem = name.removeprefix(_NATIVE_ENCODER)
        if fused := _NATIVE_QKV.fullmatch(stem):
            block = OFFICIAL_ENCODER + fused[1].replace(_NATIVE_BLOCK, _OFFICIAL_BLOCK)
            for part, rows in zip(_QKV, tensor.chunk(3)):
                official[f"{block}attention.attention.{part}.{fused[2]}"] = rows
        else:
            official[OFFICIAL_ENCODER + _rename(stem, _NATIVE_BLOCK, _OFFICIAL_BLOCK, inverse=True)] = tensor
    if CLS_TOKEN in official:
        official[MASK_TOKEN] = torch.zeros_like(official[CLS_TOKEN][0])  # (1, C)
        official[KEYPOINT_MASK] = torch.zeros((0, 0), dtype=torch.bool)
    return official


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename published weights to ours; the names of a qkv triple must be complete."""
    native: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in UNUSED:
            continue
        if not name.startswith(OFFICIAL_ENCODER):
            native[name.replace("backbone.0.", "backbone.", 1) if name.startswith("backbone.0.") else name] = tensor
            continue
        stem = name.removeprefix(OFFICIAL_ENCODER)
        part = _OFFICIAL_QKV.fullmatch(stem)
        if part is None:
            native[_NATIVE_ENCODER + _rename(stem, _OFFICIAL_BLOCK, _NATIVE_BLOCK)] = tensor
        elif part[2] == _QKV[0]:
            triple = [state[f"{OFFICIAL_ENCODER}{part[1]}attention.attention.{other}.{part[3]}"] for other in _QKV]
            block = part[1].replace(_OFFICIAL_BLOCK, _NATIVE_BLOCK)
            native[f"{_NATIVE_ENCODER}{block}attn.qkv.{part[3]}"] = torch.cat(triple)
    return native


def _rename(stem: str, block_from: str, block_to: str, *, inverse: bool = False) -> str:
    """Rename one ViT weight that is neither q, k nor v; an unknown name comes back as it is."""
    index = ""
    stems, here, there = _ENCODER_STEMS, "", ""
    if stem.startswith(block_from):
        index, stem = stem.removeprefix(block_from).split(".", 1)
        stems, here, there = _BLOCK_STEMS, f"{block_from}{index}.", f"{block_to}{index}."
    for official, native in stems.items():
        source, target = (native, official) if inverse else (official, native)
        if stem == source or stem.startswith(source + "."):
            return there + target + stem.removeprefix(source)
    return here + stem
