"""What can be predicted with or evaluated: checkpoints of every kind, and exported ONNX files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rfdetr.build import build_model
from rfdetr.data.label_map import LabelMap
from rfdetr.errors import InputError
from rfdetr.export.exported import ExportedModel, OnnxModel, has_provider
from rfdetr.export.metadata import understand
from rfdetr.weights import checkpoint_classes, load_weights, model_config_from_checkpoint, read_checkpoint

if TYPE_CHECKING:
    from rfdetr.config import ModelConfig


def read_trained(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint (`read_checkpoint`), or an ONNX file that `rfdetr export` wrote.

    Of the latter `model` is an `OnnxModel`, and `args` what it knows of the settings of its run.
    """
    if Path(path).suffix.lower() == ".pt2":
        raise InputError(f"{path}: an exported program is opened with torch.export.load; it may hold code. Export it as onnx, or "
                         "use the checkpoint")
    if Path(path).suffix.lower() != ".onnx":
        return read_checkpoint(path)
    model = OnnxModel(Path(path).expanduser())
    found = understand(model.metadata, str(path))
    size = found["model_config"].input_size
    if model.image_shape != (3, *size):
        raise InputError(f"{path}: takes pictures of {model.image_shape}, its metadata say {size}; export the checkpoint again")
    where = {} if has_provider("cuda") else {"train": {"device": "cpu"}}  # for "auto", which else asks PyTorch
    return {"model": model, **found, "args": {**found["args"], **where}}


def make_model(content: dict[str, Any], *, ema: bool = False) -> tuple[nn.Module, ModelConfig, LabelMap]:
    """Make the model of what `read_trained` returned, with its configuration and its classes.

    Args:
        ema: take the averaged weights, where a file holds both.
    """
    if isinstance(content.get("model"), ExportedModel):
        if ema:
            raise InputError("use_ema: an exported file holds one set of weights; export the averaged ones with --use_ema")
        return content["model"], content["model_config"], content["label_map"]
    architecture = model_config_from_checkpoint(content)
    model = build_model(architecture)
    load_weights(model, content, ema=ema)
    return model, architecture, checkpoint_classes(content)
