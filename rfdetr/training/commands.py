"""The commands ``rfdetr fit | validate | test | predict | check | pack``, which the files in tools/ run as well."""

import argparse
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from engine.distributed import is_main_process, process_group
from rfdetr.config import VARIANTS
from rfdetr.data.packing import MEGABYTE, pack_dataset
from rfdetr.data.shards import find_shards
from rfdetr.datacheck import has_errors, to_dict, to_text, write_fixed
from rfdetr.datacheck.fix import check_target
from rfdetr.datacheck.sheet import draw_sheet
from rfdetr.errors import InputError, printable
from rfdetr.files import write_json
from rfdetr.training.command_line import ExitCode, run_tool
from rfdetr.training.config import DetectorConfig, RunConfig
from rfdetr.training.data import check_data, data_folder
from rfdetr.training.device import choose_device
from rfdetr.training.evaluation import evaluate_checkpoint, trusted_settings
from rfdetr.training.parsing import make_config, make_parser, parse, set_defaults
from rfdetr.training.prediction import Predictor, check_numbers, check_output, find_pictures, predict_into
from rfdetr.training.run import train
from rfdetr.training.sections import DataConfig
from rfdetr.training.tables import evaluation_tables
from rfdetr.weights import read_checkpoint

STATUS_CODES = {"done": ExitCode.DONE, "interrupted": ExitCode.INTERRUPTED, "non_finite": ExitCode.NON_FINITE,
                "save_failed": ExitCode.SAVE_FAILED}
CHECKPOINT_FLAGS = ("--checkpoint", "--ckpt_path")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names, and exit with its code."""
    words = sys.argv[1:] if argv is None else list(argv)
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        is_help = bool(words) and words[0] in ("-h", "--help")
        (sys.stdout if is_help else sys.stderr).write(f"{_usage()}\n")
        sys.exit(ExitCode.DONE if is_help else ExitCode.BAD_INPUT)
    run_tool(lambda: command(words[1:]))


def _usage() -> str:
    rows = [f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: rfdetr COMMAND [OPTIONS]; rfdetr COMMAND --help explains them", *rows])


def fit(argv: Sequence[str] | None = None) -> ExitCode:
    """Train a detector."""
    parser = make_parser(RunConfig, "Train an RF-DETR detector.", _prog("fit"))
    parser.add_argument("--resume", default=SUPPRESS, help="checkpoint to go on from; auto: the newest in output_dir, if any")
    parser.add_argument("--overwrite", action="store_true", default=SUPPRESS, help="replace the run that is in output_dir")
    argv = _words(argv)
    arguments = parse(RunConfig, parser, argv)
    results = train(make_config(RunConfig, parser, arguments), resume=arguments.get("resume"),
                    overwrite=arguments.get("overwrite", False))
    return STATUS_CODES[results["status"]]


def validate(argv: Sequence[str] | None = None, *, split: str = "val") -> ExitCode:
    """Evaluate a checkpoint, on the validation split."""
    argv = _words(argv)
    parser = make_parser(RunConfig, "Evaluate a checkpoint of an RF-DETR detector.", _prog("validate"))
    parser.add_argument(*CHECKPOINT_FLAGS, dest="checkpoint", default=SUPPRESS,
                        help="the weights, with the settings of their run (required)")
    parser.add_argument("--split", choices=["val", "test"], default=split, help="which images")
    parser.add_argument("--use_ema", action="store_true", help="evaluate the averaged weights, where a file holds both")
    parser.add_argument("--output", default=SUPPRESS, help="JSON file for all numbers")
    _check_model_flags(argv)
    checkpoint = read_checkpoint(_checkpoint_path(argv)) if not {"-h", "--help"} & set(argv) else {"args": {}}
    set_defaults(RunConfig, parser, trusted_settings(checkpoint["args"]))
    arguments = parse(RunConfig, parser, argv)
    config = make_config(RunConfig, parser, arguments)
    with process_group(choose_device(config), config.train.timeout_minutes):
        content = evaluate_checkpoint(checkpoint, config, arguments.split, use_ema=arguments.use_ema)
        if is_main_process():
            sys.stdout.write(printable(evaluation_tables(content, arguments.split, config.eval.max_dets)) + "\n")
            if "output" in arguments:
                write_json(Path(arguments.output), {"checkpoint": arguments.checkpoint, "split": arguments.split, **content})
    return ExitCode.DONE


def test(argv: Sequence[str] | None = None) -> ExitCode:
    """Evaluate a checkpoint, on the test split."""
    return validate(argv, split="test")


def _checkpoint_path(argv: Sequence[str]) -> str:
    """Return ``--checkpoint``, which has to be read before the other arguments: it holds their defaults."""
    first = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    first.add_argument(*CHECKPOINT_FLAGS, dest="checkpoint", nargs="?")
    path = first.parse_known_args(argv)[0].checkpoint
    if path is None:
        raise InputError("--checkpoint FILE: is missing; it names the weights to evaluate")
    return path


def _check_model_flags(argv: Sequence[str]) -> None:
    """Refuse overrides that would have no effect."""
    for word in argv:
        flag = word.split("=")[0]
        if flag.startswith("--model.") and flag != "--model.resolution":
            raise InputError(f"{flag}: the model comes out of the checkpoint; only --model.resolution may be changed")


def predict(argv: Sequence[str] | None = None) -> ExitCode:
    """Find objects on pictures with a checkpoint."""
    argv = _words(argv)
    arguments = parse(RunConfig, _predict_parser(), argv)
    for name in ("checkpoint", "input"):
        if name not in arguments:
            raise InputError(f"--{name}: is missing; see --help")
    max_pixels = arguments.get("max_pixels")
    check_numbers(arguments.threshold, arguments.batch_size, max_pixels)
    named = find_pictures(Path(arguments.input))
    output = Path(arguments.output)
    check_output(output, [path for _, path in named], overwrite=arguments.overwrite)
    predictor = Predictor(arguments.checkpoint, use_ema=arguments.use_ema, device=arguments.device,
                          precision=arguments.precision, max_pixels=max_pixels)
    predict_into(predictor, named, output, threshold=arguments.threshold, batch_size=arguments.batch_size,
                 draw=not arguments.json_only)
    return ExitCode.DONE


def _predict_parser() -> ArgumentParser:
    parser = ArgumentParser(prog=_prog("predict"), description=predict.__doc__, exit_on_error=False, allow_abbrev=False)
    add = parser.add_argument
    add(*CHECKPOINT_FLAGS, dest="checkpoint", default=SUPPRESS, help="the weights, ours or published ones (required)")
    add("--input", default=SUPPRESS, help="an image, or a folder of images or of a video's frames (required)")
    add("--output", default="output/predictions", help="a new folder for predictions.json and the pictures")
    add("--threshold", type=float, default=0.5, help="keep what scores higher than this, 0 to 1")
    add("--batch_size", type=int, default=4, help="images at a time")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--precision", type=Literal["auto", "bf16", "fp16", "fp32"], default="fp32", help="of the forward pass")
    add("--max_pixels", type=int, default=SUPPRESS, help="leave out pictures of more (default: what the checkpoint's run had)")
    add("--use_ema", action="store_true", help="the averaged weights, where a file holds both (checkpoint.pth)")
    add("--json_only", action="store_true", help="draw no pictures")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    return parser


def check(argv: Sequence[str] | None = None) -> ExitCode:
    """Check a data set before training on it."""
    parser, argv = _data_parser(check), _words(argv)
    parser.add_argument("--resolution", default=SUPPRESS, help="input size of the model in pixels, or the name of a variant")
    parser.add_argument("--output", default=SUPPRESS, help="folder for check.json and check.png")
    parser.add_argument("--quick", action="store_true", help="names, classes and boxes only, in seconds; no image is opened")
    parser.add_argument("--decode", action="store_true", help="decode every image in full, as training does")
    parser.add_argument("--fix", default=SUPPRESS, help="new folder for a corrected copy of the annotations, as COCO JSON")
    arguments = parse(RunConfig, parser, argv)
    if arguments.quick and ("fix" in arguments or arguments.decode):
        raise InputError("--quick opens no image; leave it out together with --decode or --fix")
    if "fix" in arguments:
        check_target(Path(arguments.fix))
    config = make_config(RunConfig, parser, arguments)
    data = _with_short_flags(config, arguments)
    input_size, num_queries = _model_limits(config.model, arguments.get("resolution"))
    found = check_data(data, input_size, num_queries, quick=arguments.quick, decode=arguments.decode)
    sys.stdout.write(printable(to_text(found)) + "\n")
    if "output" in arguments:
        folder = Path(arguments.output)
        write_json(folder / "check.json", to_dict(found))
        draw_sheet(found, folder / "check.png")
        sys.stdout.write(f"\nwritten: {folder / 'check.json'}, {folder / 'check.png'}\n")
    if "fix" in arguments:
        path = write_fixed(found, Path(arguments.fix))
        sys.stdout.write(f"\ncorrected annotations: train with --cfg {path}, which holds\n\n{path.read_text(encoding='utf-8')}\n")
    return ExitCode.FOUND_ERRORS if has_errors(found) else ExitCode.DONE


def _data_parser(command: Callable) -> ArgumentParser:
    """Make the parser of a command that is about a data set; it takes a run's configuration, for the section data."""
    parser = make_parser(RunConfig, command.__doc__, _prog(command.__name__))
    parser.add_argument("--dataset_dir", default=SUPPRESS, help="folder of the data set (short for --data.dataset_dir)")
    parser.add_argument("--format", default=SUPPRESS, help="its layout, found out by looking (short for --data.format)")
    return parser


def _with_short_flags(config: RunConfig, arguments: Any) -> DataConfig:
    return replace(config.data, **{name: arguments[name] for name in ("dataset_dir", "format") if name in arguments})


def _model_limits(model: DetectorConfig, resolution: str | None) -> tuple[tuple[int, int], int]:
    """Return the model's input size (H, W) and its number of queries; `resolution` is a side in pixels or a variant."""
    if resolution is None or resolution in VARIANTS:
        architecture = (model if resolution is None else DetectorConfig(variant=resolution)).architecture()
        return architecture.input_size, architecture.num_queries
    if not str(resolution).isdecimal() or int(resolution) < 1:
        raise InputError(f"--resolution {resolution}: must be a number of pixels, or one of {', '.join(VARIANTS)}")
    return (int(resolution), int(resolution)), model.architecture().num_queries


def pack(argv: Sequence[str] | None = None) -> ExitCode:
    """Pack a data set into tar shards in WebDataset's layout."""
    parser, argv = _data_parser(pack), _words(argv)
    parser.add_argument("--output", default=SUPPRESS, help="folder of the shards; new or empty (required)")
    parser.add_argument("--shard_mb", type=int, default=256, help="megabytes from which on a shard is closed")
    arguments = parse(RunConfig, parser, argv)
    if arguments.shard_mb < 1:
        raise InputError(f"--shard_mb {arguments.shard_mb}: it must be 1 or more")
    if "output" not in arguments:
        raise InputError("--output: is missing; see --help")
    data = _with_short_flags(make_config(RunConfig, parser, arguments), arguments)
    output = Path(arguments.output).expanduser().absolute()
    folder, format = data_folder(data)
    packed = pack_dataset(folder, output, format=format, paths=data.splits, shard_mb=arguments.shard_mb,
                          val_fraction=data.val_fraction, allow_outside=data.allow_outside)
    for split, shards in find_shards(output).items():
        raw, megabytes = packed[split], sum(shards.sizes.values()) / MEGABYTE
        sys.stdout.write(f"{split}: {len(raw.image_ids)} images, {len(raw.boxes)} objects in {len(shards.sizes)} shards, "
                         f"{megabytes:.1f} MB\n")
    sys.stdout.write(f"train on it with: --data.dataset_dir {output}\n")
    return ExitCode.DONE


def _words(argv: Sequence[str] | None) -> list[str]:
    return sys.argv[1:] if argv is None else list(argv)


def _prog(command: str) -> str | None:
    """Return how the command is called in its help: as it was called."""
    called = Path(sys.argv[0]).name
    return f"rfdetr {command}" if called == "rfdetr" else None


COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "fit": fit, "validate": validate, "test": test, "predict": predict, "check": check, "pack": pack
}
