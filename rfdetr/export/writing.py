"""Exported programs into files: ONNX, or PyTorch's own."""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from rfdetr.errors import InputError
from rfdetr.extras import import_extra

OPSET = 18  # what PyTorch's exporter writes itself; GridSample needs 16, LayerNormalization 17
METADATA_FILE = "metadata.json"  # within a program's file
NOISY = ("onnxscript", "onnx_ir", "torch.onnx")  # they log each thing that they could not simplify


def import_onnx(package: str) -> ModuleType:
    """Import a package of the extra `onnx`."""
    return import_extra(package, "onnx", f"the package {package}, which ONNX files need,")


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, outputs: Sequence[str], metadata: dict[str, str], *, opset: int = OPSET
) -> None:
    """Write a program as an ONNX file, with the metadata in its ``metadata_props``.

    Raises:
        InputError: this PyTorch cannot, as 2.6 with any number of pictures.
    """
    for package in ("onnx", "onnxscript"):
        import_onnx(package)
    try:
        with _quiet():
            made = torch.onnx.export(program, input_names=list(program.graph_signature.user_inputs), output_names=list(outputs),
                                     opset_version=opset, dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise InputError(f"PyTorch {torch.__version__} cannot write this model as ONNX ({reason}); update torch and torchvision, "
                         "or take a fixed batch_size and fp32") from error
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        if not isinstance(value.shape[0], int):
            value.shape[0] = "batch"
    made.model.metadata_props.update(metadata)
    made.save(str(path), external_data=False)


def write_program(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Write a program as PyTorch's .pt2 file, with the metadata as its extra file metadata.json."""
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
