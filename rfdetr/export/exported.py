"""Exported files in the place of the model: what takes an `RFDETR` to predict or to evaluate takes one of these."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rfdetr.errors import InputError
from rfdetr.export.graph import RAW, SELECTED
from rfdetr.export.writing import import_onnx
from rfdetr.models.two_stage import valid_share
from rfdetr.nested_tensor import NestedTensor

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}  # of ONNX Runtime, by type of device


class ExportedModel(nn.Module):
    """A model whose forward is somebody else's.

    Args:
        inputs, outputs: names of what the graph takes and gives.
        batch_size: pictures that it takes at a time; None: any number.
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str], batch_size: int | None) -> None:
        super().__init__()
        self.inputs, self.outputs, self.graph_batch_size = tuple(inputs), tuple(outputs), batch_size
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # its device is the model's

    def run(self, feeds: dict[str, Tensor]) -> Sequence[Tensor]:
        """Give the outputs for the inputs, in their order."""
        raise NotImplementedError

    def forward(self, samples: NestedTensor | Tensor) -> dict[str, Tensor]:
        """Return what `RFDETR` returns, without the auxiliary outputs; of a graph with the selection inside see `PostProcess`."""
        images, mask = (samples, None) if isinstance(samples, Tensor) else (samples.tensors, samples.mask)
        feeds = {"input": images.float()}
        if "mask" in self.inputs:
            feeds["mask"] = images.new_zeros(len(images), *images.shape[2:], dtype=torch.bool) if mask is None else mask
        elif mask is not None and samples.has_padding:
            raise InputError("data.resize: this exported model takes pictures that fill its input; it cannot be letterbox")
        if "target_sizes" in self.inputs:  # then the boxes are in shares of the picture, as those of the other graphs are
            feeds["target_sizes"] = torch.ones(len(images), 2, dtype=torch.int64, device=images.device)
        names = RAW if "dets" in self.outputs else SELECTED
        found = {names[name]: values for name, values in zip(self.outputs, self._run_in_batches(feeds))}
        return found | ({} if mask is None else {"valid_extent": valid_share(mask)})

    def _run_in_batches(self, feeds: dict[str, Tensor]) -> list[Tensor]:
        """Run as many pictures at a time as the graph takes; the last are repeated where there are too few."""
        total = len(feeds["input"])
        size = self.graph_batch_size or total
        rows = torch.arange(-(-total // size) * size, device=feeds["input"].device).clamp(max=total - 1)
        parts = [self.run({name: values[some] for name, values in feeds.items()}) for some in rows.split(size)]
        return [torch.cat(part)[:total] for part in zip(*parts)]


class OnnxModel(ExportedModel):
    """An ONNX file in ONNX Runtime, on the device that the model is moved to."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        session = _open_session(self._path, "cpu")
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        names = [[value.name for value in values] for values in (inputs, outputs)]
        if names[0][:1] != ["input"] or set(names[1]) - {"masks"} not in ({"dets", "labels"}, {"boxes", "scores", "labels"}):
            raise InputError(f"{path}: has the inputs {', '.join(names[0])} and the outputs {', '.join(names[1])}; this is no "
                             "detector that rfdetr export has written")
        batch = inputs[0].shape[0]
        super().__init__(*names, batch if isinstance(batch, int) else None)
        self.image_shape = tuple(inputs[0].shape[1:])
        self._sessions = {"cpu": session}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnnxModel:
        super()._apply(fn, recurse)
        device = self.place.device
        with self._lock:
            if str(device) not in self._sessions:
                self._sessions = {str(device): _open_session(self._path, device)}
        return self

    def run(self, feeds: dict[str, Tensor]) -> list[Tensor]:
        device = feeds["input"].device
        session = self._sessions[str(self.place.device)]
        found = session.run(self.outputs, {name: np.ascontiguousarray(values.cpu().numpy()) for name, values in feeds.items()})
        return [torch.from_numpy(values).to(device) for values in found]


class ProgramModel(ExportedModel):
    """An `ExportedProgram` in PyTorch."""

    def __init__(self, program: torch.export.ExportedProgram, outputs: Sequence[str], batch_size: int | None) -> None:
        super().__init__(program.graph_signature.user_inputs, outputs, batch_size)
        self.module = program.module()

    def run(self, feeds: dict[str, Tensor]) -> Sequence[Tensor]:
        return self.module(feeds.pop("input"), **feeds)

    def train(self, mode: bool = True) -> ProgramModel:
        """Do nothing: what is exported has one mode, and PyTorch refuses to be asked for another."""
        return self


def has_provider(device: str) -> bool:
    """Tell whether ONNX Runtime can use this type of device."""
    return PROVIDERS.get(device) in import_onnx("onnxruntime").get_available_providers()


def _open_session(path: Path, device: torch.device | str) -> Any:
    runtime, device = import_onnx("onnxruntime"), torch.device(device)
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    if not has_provider(device.type):
        known = ", ".join(kind for kind in PROVIDERS if has_provider(kind))
        raise InputError(f"device: this ONNX Runtime cannot use {device}, only {known}" +
                         ("; for NVIDIA's GPUs install the package onnxruntime-gpu" if device.type == "cuda" else ""))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    settings = {"device_id": device.index or 0} if device.type == "cuda" else {}
    try:
        return runtime.InferenceSession(path.as_posix(), options, providers=[(PROVIDERS[device.type], settings)])
    except Exception as error:  # ONNX Runtime has errors of its own for bytes of unknown origin
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: ONNX Runtime cannot open it ({reason}); export it again, with a newer PyTorch") from error
