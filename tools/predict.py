"""Find objects on pictures: ``python tools/predict.py --checkpoint FILE --input IMAGE|FOLDER [--output DIR] [--threshold 0.5]``.

Model, classes and input size come out of the checkpoint, ours or a published one. The output folder gets predictions.json
(COCO's results, with names) and the pictures with what was found drawn on them. A picture that cannot be read is reported and
left out; the exit code is 2 only if that leaves none.
"""

# isort: off
import installation  # noqa: F401  first: explains a torchvision that does not fit torch, before anything imports it
# isort: on
import json
import logging
import os
import re
import sys
from argparse import SUPPRESS
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from command_line import ExitCode, bad_input, parse, run_tool
from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from engine.device import resolve_device
from engine.precision import resolve_precision
from rfdetr.build import build_model, build_postprocess
from rfdetr.data import LabelMap, read_image
from rfdetr.data.images import IMAGE_SUFFIXES
from rfdetr.errors import InputError
from rfdetr.plots.pictures import draw_detections
from rfdetr.prediction import checkpoint_classes, coco_results, predict
from rfdetr.weights import load_weights, model_config_from_checkpoint, read_checkpoint

logger = logging.getLogger(__name__)

RESULTS, PICTURES = "predictions.json", "images"  # in the output folder


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Read the command line, predict, and say how much was found."""
    arguments = parse(make_parser(), sys.argv[1:] if argv is None else argv)
    for name in ("checkpoint", "input"):
        if name not in arguments:
            raise InputError(f"--{name}: is missing; see --help")
    if arguments.batch_size < 1:
        raise InputError(f"--batch_size: {arguments.batch_size} is not possible; it must be 1 or more")
    if not 0 <= arguments.threshold <= 1:
        raise InputError(f"--threshold: {arguments.threshold} is not possible; scores are between 0 and 1")
    paths = find_pictures(Path(arguments.input))
    output = Path(arguments.output)
    check_output(output, [path for _, path in paths], overwrite=arguments.overwrite)
    with bad_input("--"):
        device = resolve_device(arguments.device)
        precision = resolve_precision(arguments.precision, device)
    checkpoint = read_checkpoint(arguments.checkpoint)
    architecture = model_config_from_checkpoint(checkpoint)
    model = build_model(architecture)
    load_weights(model, checkpoint, ema=arguments.use_ema)
    label_map = checkpoint_classes(checkpoint, architecture.num_classes)
    options = {"size": architecture.input_size, "threshold": arguments.threshold, "precision": precision}
    predict_all(model.to(device), build_postprocess(architecture), label_map, paths, output, arguments, **options)
    return ExitCode.DONE


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Find objects on pictures.", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", default=SUPPRESS, help="the weights, ours or published ones (required)")
    parser.add_argument("--input", default=SUPPRESS, help="an image, or a folder of images or of a video's frames (required)")
    parser.add_argument("--output", default="output/predictions", help="a new folder for predictions.json and the pictures")
    parser.add_argument("--threshold", type=float, default=0.5, help="keep what scores higher than this, 0 to 1")
    parser.add_argument("--batch_size", type=int, default=4, help="images at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--precision", type=Literal["auto", "bf16", "fp16", "fp32"], default="fp32", help="of the forward pass")
    parser.add_argument("--use_ema", action="store_true", help="the averaged weights, where a file holds both (checkpoint.pth)")
    parser.add_argument("--json_only", action="store_true", help="draw no pictures")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    return parser


def find_pictures(source: Path) -> list[tuple[str, Path]]:
    """Return names relative to `source` and paths, folders within folders included, frame 2 before frame 10."""
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        raise InputError(f"--input: {source}: there is no such file or folder")
    paths = [path for path in source.rglob("*") if path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")]
    if not paths:
        raise InputError(f"--input: {source}: no images in it ({', '.join(IMAGE_SUFFIXES)}); write out the frames of a video "
                         "first: ffmpeg -i video.mp4 frames/%06d.jpg")
    named = [(path.relative_to(source).as_posix(), path) for path in paths]
    return sorted(named, key=lambda pair: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", pair[0])])


def image_ids(names: Sequence[str]) -> list[int]:
    """Return the numbers that the names are, as in COCO's files, or 1, 2, … where they are no numbers of their own."""
    stems = [Path(name).stem for name in names]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return numbers if len(set(numbers)) == len(names) else list(range(1, len(names) + 1))


def check_output(folder: Path, paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to write over anything that was not meant."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"--output: {folder} is not empty; choose another folder, or write into it by --overwrite")
    drawn = (folder / PICTURES).resolve()
    if any(drawn in path.resolve().parents for path in paths):
        raise InputError(f"--output: the pictures in {folder / PICTURES} are among the --input; choose a folder elsewhere")


def predict_all(
    model: nn.Module, postprocess: Callable, label_map: LabelMap, named: Sequence[tuple[str, Path]], output: Path,
    arguments: Namespace, **options: Any,
) -> None:
    """Predict batch by batch, so that any number of pictures fits into memory, and write as they come."""
    ids = dict(zip((name for name, _ in named), image_ids([name for name, _ in named])))
    counts, num_read = Counter(), 0
    output.mkdir(parents=True, exist_ok=True)
    with json_list(output / RESULTS) as write, tqdm(total=len(named), unit="image", disable=None) as bar:
        for start in range(0, len(named), arguments.batch_size):
            batch = named[start : start + arguments.batch_size]
            pictures = dict(read_all(batch))
            results = predict(model, postprocess, list(pictures.values()), **options)
            for (name, picture), result in zip(pictures.items(), results):
                rows = coco_results(result, label_map, image_id=ids[name], file_name=name)
                counts.update(row["category_name"] for row in rows)
                write(rows)
                if not arguments.json_only:
                    draw(output / PICTURES / name, picture, result, label_map)
            num_read += len(pictures)
            bar.update(len(batch))
        if num_read == 0:
            raise InputError(f"--input: {arguments.input}: none of the {len(named)} images could be read")
    if num_read < len(named):
        logger.warning("%d of %d images could not be read and were left out, see above", len(named) - num_read, len(named))
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common(10)) or "nothing"
    logger.info("found on %d images: %s%s; everything is in %s", num_read, found, ", ..." if len(counts) > 10 else "", output)


def read_all(batch: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, Tensor]]:
    """Read the pictures that can be read."""
    for name, path in batch:
        try:
            yield name, read_image(path)
        except InputError as error:
            logger.warning("left out: %s", error)


def draw(path: Path, picture: Tensor, result: dict[str, Tensor], label_map: LabelMap) -> None:
    """Write a picture with the detections that have a class."""
    is_known = [label_map.category_of(label) is not None for label in result["labels"].tolist()]
    kept = {name: value[is_known] for name, value in result.items()}
    drawn = draw_detections(
        picture, kept["boxes"], kept["labels"], class_names=label_map.names, scores=kept["scores"], masks=kept.get("masks")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    image: Image.Image = to_pil_image(drawn)
    image.save(path, **({"quality": 90} if path.suffix.lower() in (".jpg", ".jpeg", ".jfif", ".webp") else {}))


@contextmanager
def json_list(path: Path) -> Iterator[Callable[[Sequence[dict]], None]]:
    """Offer a function that appends rows to a JSON list; the file has its name only when it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    separator = "\n"

    def write(rows: Sequence[dict]) -> None:
        nonlocal separator
        for row in rows:
            file.write(separator + json.dumps(row, ensure_ascii=False))
            separator = ",\n"

    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("[")
            yield write
            file.write("\n]\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    run_tool(main)
