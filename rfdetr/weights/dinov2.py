"""Start a detector's ViT from DINOv2, whose patches have 14 pixels, at the variant's own patch size and position grid."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file
from timm import create_model
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from rfdetr.errors import InputError
from rfdetr.weights.adapt import position_table
from rfdetr.weights.names import OFFICIAL_ENCODER, to_native
from rfdetr.weights.reading import open_plain

logger = logging.getLogger(__name__)

TIMM_MODELS = {384: "vit_small_patch14_dinov2.lvd142m", 768: "vit_base_patch14_dinov2.lvd142m"}  # by width
_ENCODER = "backbone.encoder."


def load_backbone_weights(model: nn.Module, source: str | os.PathLike) -> None:
    """Fill the model's ViT from DINOv2 and leave the rest as it is.

    Args:
        source: "timm" for the weights that timm downloads, or a file with the names of timm, of the original DINOv2 or of
            Hugging Face (.safetensors, or torch.save's format).

    Raises:
        InputError: the weights cannot be had, or are of another size.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(_ENCODER)}
    width = own[_ENCODER + "cls_token"].shape[-1]
    origin = TIMM_MODELS.get(width, f"a DINOv2 of width {width}") if str(source) == "timm" else str(source)
    state = _from_timm(width) if str(source) == "timm" else _from_file(Path(source))
    state = _timm_names(state, own, origin)
    _check(state, own, origin)
    kernel, table = _ENCODER + "patch_embed.proj.weight", _ENCODER + "pos_embed"
    size = list(own[kernel].shape[-2:])
    if list(state[kernel].shape[-2:]) != size:
        state[kernel] = resample_patch_embed(state[kernel].float(), size)
    state[table] = position_table(state[table], own[table].shape[1], origin)
    model.load_state_dict({name: state[name] for name in own}, strict=False)
    logger.info("ViT started from %s", origin)


def _from_timm(width: int) -> dict[str, Tensor]:
    """Let timm fetch its weights, or take them from its cache."""
    if width not in TIMM_MODELS:
        raise InputError(f"backbone_weights timm: there is no DINOv2 of width {width}; leave it out to start at random")
    name = TIMM_MODELS[width]
    try:
        return create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # the hub's client raises errors of several libraries
        address = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
        raise InputError(f"backbone_weights timm: cannot get {name} ({type(error).__name__}: {str(error)[:150]}). Without a "
                         f"network, download {address} elsewhere and set backbone_weights to that file") from error


def _from_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        content = open_plain(path)
        inner = content.get("model", content.get("state_dict")) if isinstance(content, dict) else None
        state = inner if isinstance(inner, dict) else content
        if not isinstance(state, dict):
            raise InputError(f"backbone_weights {path}: holds a {type(state).__name__}, not a dict of tensors")
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not path.is_file():
        raise InputError(f"backbone_weights {path}: no such file")
    try:
        return load_file(path)
    except Exception as error:  # of the format's own error types
        raise InputError(f"backbone_weights {path}: not a readable safetensors file ({error}); get it again") from error


def _timm_names(state: dict[str, Tensor], own: Iterable[str], origin: str) -> dict[str, Tensor]:
    """Bring names of Hugging Face's DINOv2 to timm's, which are also those of the original, and so to our `own`."""
    state = {name.removeprefix("dinov2."): tensor for name, tensor in state.items()}
    if not any(name.startswith("embeddings.") for name in state):
        return {_ENCODER + name: tensor for name, tensor in state.items()}
    state = {OFFICIAL_ENCODER + name: tensor for name, tensor in state.items()}
    try:
        return {name: to_native(name, state) for name in own}
    except KeyError as error:
        raise InputError(f"backbone_weights {origin}: lacks {error}") from None


def _check(state: dict[str, Tensor], own: dict[str, Tensor], origin: str) -> None:
    """Refuse weights that lack something or have another size; patch kernel and position table are resampled."""
    missing = [name.removeprefix(_ENCODER) for name in own if name not in state]
    if missing:
        raise InputError(f"backbone_weights {origin}: lacks {len(missing)} of the ViT's {len(own)} tensors, the first: "
                         f"{missing[0]}; expected DINOv2 weights under the names of timm")
    for name, tensor in own.items():
        free = 2 if name.endswith("patch_embed.proj.weight") else 0  # trailing axes that are resampled
        theirs, ours = list(state[name].shape), list(tensor.shape)
        if name.endswith("pos_embed"):
            theirs, ours = theirs[::2], ours[::2]
        if len(state[name].shape) != tensor.ndim or theirs[: len(theirs) - free] != ours[: len(ours) - free]:
            raise InputError(f"backbone_weights {origin}: {name.removeprefix(_ENCODER)} has the shape "
                             f"{tuple(state[name].shape)}, the model's {tuple(tensor.shape)}; choose the DINOv2 of the same "
                             "size (small, for all variants but large_deprecated)")
