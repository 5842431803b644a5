"""Export a checkpoint: traced, written, checked on pictures against PyTorch, and only then put in its place."""

import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from engine.files import replacing
from rfdetr.config import ModelConfig
from rfdetr.data.formats import read_split
from rfdetr.data.images import locate, read_image
from rfdetr.detector import Detector, load
from rfdetr.errors import InputError
from rfdetr.export.check import TOLERANCES, Parity, compare
from rfdetr.export.exported import ExportedModel, OnnxModel, ProgramModel
from rfdetr.export.graph import output_names, trace
from rfdetr.export.metadata import describe
from rfdetr.export.writing import OPSET, import_onnx, write_onnx, write_program
from rfdetr.prediction import to_pixels
from rfdetr.shapes.scenes import draw_scene
from rfdetr.sources import find_pictures
from rfdetr.trained import read_trained
from rfdetr.training.config import RunConfig
from rfdetr.training.data import data_folder
from rfdetr.training.evaluation import config_of

SUFFIXES = {"onnx": ".onnx", "program": ".pt2"}  # by format
NUM_PICTURES = 16  # of the check
LONGEST_SIDE = 1024  # of its pictures, since all masks of one are held at a time

logger = logging.getLogger(__name__)


class Exported(NamedTuple):
    """What `export` did; the file was written if `parity.is_equal`."""

    path: Path
    parity: Parity
    tensorrt: str  # the command that makes an engine of it


def export(
    checkpoint: str | os.PathLike | dict[str, Any], output: str | os.PathLike, *, format: str = "onnx",
    batch_size: int | None = 1, precision: str = "fp32", postprocess: str = "none", opset: int = OPSET,
    images: str | os.PathLike | None = None, use_ema: bool = False,
) -> Exported:
    """Write a checkpoint, ours or a published one, as a file for other programs; all that ``rfdetr export`` does.

    Args:
        checkpoint: a path, a published name, or what `read_checkpoint` returned.
        format: "onnx", or "program" for PyTorch's own.
        batch_size: pictures at a time; None: any number.
        precision, postprocess: see `rfdetr.export.graph.trace`.
        images: a picture or a folder to check with; None takes those of the run's val split, or else made-up ones.
        use_ema: the averaged weights, where a file holds both.

    Raises:
        InputError: the checkpoint, the pictures or what is installed are not what they should be.
    """
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            import_onnx(package)
    content = checkpoint if isinstance(checkpoint, dict) else read_trained(checkpoint)
    reference = load(content, "cpu", use_ema=use_ema)
    if isinstance(reference.model, ExportedModel):
        raise InputError(f"{checkpoint}: is an exported file already; give the checkpoint it was made of")
    pictures = _pictures(config_of(content, {}), reference, images)
    architecture, names = reference.architecture, output_names(reference.architecture, postprocess)
    facts = describe(architecture, reference.label_map, content["args"], precision=precision, postprocess=postprocess)
    program = trace(reference.model, architecture, batch_size=batch_size, precision=precision, postprocess=postprocess,
                    letterbox=reference.resize == "letterbox")
    output = Path(output).expanduser()
    try:
        with replacing(output) as temporary:
            if format == "onnx":
                write_onnx(program, temporary, names, facts, opset=opset)
                model: ExportedModel = OnnxModel(temporary)
            else:
                write_program(program, temporary, facts)
                model = ProgramModel(torch.export.load(temporary), names, batch_size)
            exported = load({"model": model, "model_config": architecture, "label_map": reference.label_map,
                             "args": content["args"]}, "cpu")
            parity = compare(reference, exported, pictures, TOLERANCES[precision])
            if not parity.is_equal:
                raise _Differs
    except _Differs:
        pass
    return Exported(output, parity, trtexec_command(output, model.inputs, architecture, batch_size, precision))


class _Differs(Exception):
    """Leaves the file that was there in its place."""


def trtexec_command(
    path: Path, inputs: tuple[str, ...], architecture: ModelConfig, batch_size: int | None, precision: str
) -> str:
    """Return the command that makes a TensorRT engine of an ONNX file.

    Files in fp16 say themselves what is computed in fp32, which a strongly typed engine respects.
    """
    words = ["trtexec", f"--onnx={path}", f"--saveEngine={path.with_suffix('.engine')}"]
    if precision == "fp16":
        words.append("--stronglyTyped")
    if batch_size is None:
        height, width = architecture.input_size
        shapes = {"input": f"3x{height}x{width}", "mask": f"{height}x{width}", "target_sizes": "2"}
        for name, number in (("min", 1), ("opt", 4), ("max", 16)):
            words.append(f"--{name}Shapes=" + ",".join(f"{key}:{number}x{shapes[key]}" for key in inputs))
    return shlex.join(words)


def _pictures(config: RunConfig, detector: Detector, images: str | os.PathLike | None) -> list[Tensor]:
    """Return pictures (3, h, w) uint8 to check with, and say in the log which."""
    if images is not None:
        found, source = [path for _, path in find_pictures(Path(images))], str(images)
        pictures = [to_pixels(path, **detector.reading) for path in _some(found)]
    else:
        pictures, source = _val_pictures(config, detector.reading)
    logger.info("checked with %d pictures: %s", len(pictures), source)
    return [_shrunk(picture) for picture in pictures]


def _val_pictures(config: RunConfig, reading: Mapping[str, Any]) -> tuple[list[Tensor], str]:
    """Return pictures of the run's val split with its source, or else of made-up scenes."""
    data = config.data
    try:
        folder, format = data_folder(data)
        raw = read_split(folder, "val", format=format, paths=data.splits, val_fraction=data.val_fraction,
                         allow_outside=data.allow_outside)
        files = [locate(raw, int(index)) for index in _some(range(len(raw.file_names)))]
        return [read_image(path, file=file, **reading) for path, file in files], str(raw.source)
    except (InputError, OSError) as error:
        logger.warning("the check has made-up pictures, since those of the run are not to be had (%s); --images FOLDER names "
                       "others", error)
    return [torch.from_numpy(draw_scene(320, number).image).permute(2, 0, 1) for number in range(NUM_PICTURES)], "made up"


def _some(found: Any) -> list[Any]:
    """Choose at most `NUM_PICTURES`, evenly spread."""
    return [found[index] for index in np.unique(np.linspace(0, len(found) - 1, NUM_PICTURES).round().astype(int))]


def _shrunk(picture: Tensor) -> Tensor:
    longest = max(picture.shape[1:])
    if longest <= LONGEST_SIDE:
        return picture
    return F.resize(picture, [max(1, round(side * LONGEST_SIDE / longest)) for side in picture.shape[1:]], antialias=True)
