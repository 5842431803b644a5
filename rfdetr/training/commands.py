"""The commands that the words after ``rfdetr`` name (`COMMANDS`), which tools/ has as files too.

Here they read their command lines. What they do then is in actions.py, which is imported once the words make sense: help and
bad input are answered without waiting for torch.
"""

import argparse
import importlib
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from rfdetr.errors import InputError, did_you_mean
from rfdetr.report.read import open_runs
from rfdetr.training.benchmark import ROWS, Side, check_rows
from rfdetr.training.command_line import ExitCode, check_installation, run_tool
from rfdetr.training.config import RunConfig
from rfdetr.training.parsing import check_words, make_config, make_parser, parse, parse_over
from rfdetr.training.sections import DataConfig

CHECKPOINT_FLAGS = ("--checkpoint", "--ckpt_path")
PLACE = ("dataset_dir", "format", "splits", "val_fraction", "allow_outside")  # settings of data that say what a data set is
SELECTION = ("classes", "single_class", "fraction")  # and what of it is trained on
MIN_OPSET, MAX_OPSET = 18, 20  # that PyTorch's exporters write, from 2.6 on


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names, and exit with its code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        (sys.stdout if words else sys.stderr).write(f"{_usage()}\n")
        sys.exit(ExitCode.DONE if words else ExitCode.BAD_INPUT)
    run_tool(lambda: _command(words[0])(words[1:]))


def _command(name: str) -> Callable[[Sequence[str]], Any]:
    if name not in COMMANDS:
        raise InputError(f"{name}: there is no such command; {did_you_mean(name, list(COMMANDS))}")
    return COMMANDS[name]


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
    config = make_config(RunConfig, parser, arguments)
    return _actions().fit(config, resume=arguments.get("resume"), overwrite=arguments.get("overwrite", False))


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
    if {"-h", "--help"} & set(argv):
        parse(RunConfig, parser, argv)
    path = _checkpoint_path(argv)
    check_words(RunConfig, parser, argv)
    checkpoint, settings = _actions().read_settings(path)
    arguments = parse_over(RunConfig, parser, settings, lambda: parse(RunConfig, parser, argv))
    config = make_config(RunConfig, parser, arguments)
    return _actions().validate(checkpoint, config, path, split=arguments.split, use_ema=arguments.use_ema,
                               output=arguments.get("output"))


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
    """Find objects on pictures, videos and cameras with a checkpoint."""
    argv = _words(argv)
    arguments = parse(RunConfig, _predict_parser(), argv)
    for name in ("checkpoint", "input"):
        if name not in arguments:
            raise InputError(f"--{name}: is missing; see --help")
    if unknown := set(filter(None, arguments.save.split(","))) - {"crops", "yolo", "csv"}:
        raise InputError(f"--save: {', '.join(sorted(unknown))} is unknown; it takes crops, yolo and csv, with commas between")
    return _actions().predict(arguments)


def _predict_parser() -> ArgumentParser:
    parser = ArgumentParser(prog=_prog("predict"), description=predict.__doc__, exit_on_error=False, allow_abbrev=False)
    add = parser.add_argument
    add(*CHECKPOINT_FLAGS, dest="checkpoint", default=SUPPRESS, help="the weights, ours or published ones (required)")
    add("--input", nargs="+", default=SUPPRESS, help="images, folders, patterns, lists (.txt) of images; or one video, the "
        "number of a camera, or the address of a stream (required)")
    add("--output", default="output/predictions", help="a new folder for the results and the pictures, or the video")
    add("--threshold", type=float, default=0.5, help="keep what scores higher than this, 0 to 1")
    add("--classes", nargs="+", default=SUPPRESS, help="names of the classes to keep")
    add("--max_detections", type=int, default=SUPPRESS, help="keep the best of each image, so many")
    add("--tile", type=int, default=SUPPRESS, help="side in pixels of the parts that larger images are cut into")
    add("--save", default="", help="more files, with commas between: crops, yolo (labels/*.txt), csv")
    add("--batch_size", type=int, default=4, help="images at a time; of cameras and streams always 1")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--precision", type=Literal["auto", "bf16", "fp16", "fp32"], default="fp32", help="of the forward pass")
    add("--max_pixels", type=int, default=SUPPRESS, help="leave out pictures of more (default: what the checkpoint's run had)")
    add("--use_ema", action="store_true", help="the averaged weights, where a file holds both (checkpoint.pth)")
    add("--json_only", action="store_true", help="draw nothing")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    return parser


def export(argv: Sequence[str] | None = None) -> ExitCode:
    """Write a checkpoint as a file for other programs, and check it."""
    parser = ArgumentParser(prog=_prog("export"), description=export.__doc__, exit_on_error=False, allow_abbrev=False)
    add = parser.add_argument
    add(*CHECKPOINT_FLAGS, dest="checkpoint", default=SUPPRESS, help="the weights, ours or published ones (required)")
    add("--format", type=Literal["onnx", "program"], default="onnx", help="onnx, or program: PyTorch's own (torch.export, .pt2)")
    add("--output", default=SUPPRESS, help="the file (default: the checkpoint's path with .onnx or .pt2)")
    add("--batch_size", default="1", help="pictures at a time: a number, or dynamic")
    add("--precision", type=Literal["fp32", "fp16"], default="fp32", help="fp16: half the size; boxes and scores in fp32 inside")
    add("--postprocess", type=Literal["none", "normalised", "pixels"], default="none",
        help="choose the best inside: boxes xyxy as shares of the picture, or in pixels (of a further input target_sizes)")
    add("--opset", type=int, default=SUPPRESS, help="version of ONNX's operators (default: 18)")
    add("--images", default=SUPPRESS, help="an image or a folder to check with (default: the run's val split, else made up)")
    add("--use_ema", action="store_true", help="the averaged weights, where a file holds both (checkpoint.pth)")
    arguments = parse(RunConfig, parser, _words(argv))
    if "checkpoint" not in arguments:
        raise InputError("--checkpoint: is missing; see --help")
    if arguments.batch_size != "dynamic" and not (arguments.batch_size.isdecimal() and int(arguments.batch_size) > 0):
        raise InputError(f"--batch_size {arguments.batch_size}: it must be a number from 1 on, or dynamic")
    if "opset" in arguments and (arguments.format != "onnx" or not MIN_OPSET <= arguments.opset <= MAX_OPSET):
        raise InputError(f"--opset {arguments.opset}: it must be {MIN_OPSET} to {MAX_OPSET}, and is of --format onnx alone")
    return _actions().export(arguments)


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
    return _actions().check(_data_config(parser, arguments), arguments)


def _data_parser(command: Callable, *also: str) -> ArgumentParser:
    """Make the parser of a command that is about a data set; it takes a run's configuration, for the section data.

    Args:
        also: other names of ``--format``.
    """
    parser = make_parser(RunConfig, command.__doc__, _prog(command.__name__))
    parser.add_argument("--dataset_dir", default=SUPPRESS, help="folder of the data set (short for --data.dataset_dir)")
    parser.add_argument("--format", *also, dest="format", default=SUPPRESS,
                        help="its layout, found out by looking (short for --data.format)")
    return parser


def _data_config(parser: ArgumentParser, arguments: Namespace) -> RunConfig:
    """Return the configuration, with what the short flags say of the data."""
    config = make_config(RunConfig, parser, arguments)
    return replace(config, data=replace(
        config.data, **{name: arguments[name] for name in ("dataset_dir", "format") if name in arguments}))


def _whole_data(parser: ArgumentParser, arguments: Namespace, argv: Sequence[str]) -> DataConfig:
    """Return where the data set is that a command writes anew, all of it; settings that would change nothing are refused."""
    data = _data_config(parser, arguments).data
    flags = [word.split("=")[0].removeprefix("--") for word in argv if word.startswith("--")]
    idle = [flag for flag in flags if "." in flag and flag.removeprefix("data.").removesuffix("+") not in (*PLACE, *SELECTION)]
    if idle := idle or [f"data.{name}" for name in SELECTION if getattr(data, name) != getattr(DataConfig, name)]:
        raise InputError(f"--{idle[0]}: changes nothing here, since a data set is written whole and as it is; leave it out, and "
                         "give it when you train on what was written")
    return data


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
    return _actions().pack(_whole_data(parser, arguments, argv), Path(arguments.output), shard_mb=arguments.shard_mb)


def convert(argv: Sequence[str] | None = None) -> ExitCode:
    """Write a data set of any format as COCO or YOLO."""
    parser, argv = _data_parser(convert, "--from"), _words(argv)
    parser.add_argument("--to", type=Literal["coco", "yolo"], default=SUPPRESS, help="the format to write (required)")
    parser.add_argument("--output", default=SUPPRESS, help="folder of the new data set; new or empty (required)")
    parser.add_argument("--pictures", type=Literal["link", "copy"], default="link", help="symbolic links to them, or copies")
    parser.add_argument("--boxes_only", action="store_true", help="leave masks out")
    arguments = parse(RunConfig, parser, argv)
    for name in ("to", "output"):
        if name not in arguments:
            raise InputError(f"--{name}: is missing; see --help")
    return _actions().convert(_whole_data(parser, arguments, argv), arguments)


def benchmark(argv: Sequence[str] | None = None) -> ExitCode:
    """Measure how fast this machine trains, and how long a run will take."""
    parser = make_parser(RunConfig, benchmark.__doc__, _prog("benchmark"))
    add = parser.add_argument
    add("--rows", default=",".join(ROWS), help="what to measure, with commas between")
    add("--json", default=SUPPRESS, help="file for all numbers, and what they were measured on")
    add("--against", default=SUPPRESS, help="Python of an environment of the published package, which does the same in turn")
    add("--cost", action="store_true", help="also images/s, hours for train.epochs of COCO, and the share of the device's peak")
    add("--repeats", type=int, default=SUPPRESS, help="steps, batches, ... of a measurement (default: 5 on a CPU, else 30)")
    add("--rounds", type=int, default=SUPPRESS, help="processes of a row on each side (default: 3 with --against, else 1)")
    add("--boxes", type=int, default=15, help="objects of an image")
    arguments = parse(RunConfig, parser, _words(argv))
    for name, least in {"repeats": 1, "rounds": 1, "boxes": 0}.items():
        if arguments.get(name, least) < least:
            raise InputError(f"--{name} {arguments[name]}: it must be {least} or more")
    rows, other = check_rows(arguments.rows), Side(arguments.against) if "against" in arguments else None
    return _actions().benchmark(make_config(RunConfig, parser, arguments), rows, other, arguments)


def migrate(argv: Sequence[str] | None = None) -> ExitCode:
    """Print our configuration for the settings of the published package in a file."""
    parser = ArgumentParser(prog=_prog("migrate"), description=migrate.__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("file", help="a checkpoint (.pth, .ckpt), a training_config.json, or a YAML file of its command line")
    path = Path(parse(RunConfig, parser, _words(argv)).file)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    check_installation()
    sys.stdout.write(importlib.import_module("rfdetr.training.migration").migrate(path))
    return ExitCode.DONE


def report(argv: Sequence[str] | None = None) -> ExitCode:
    """Write report.html of a run or several, or show it while they train."""
    parser = ArgumentParser(prog=_prog("report"), description=report.__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (train.output_dir); several are compared")
    parser.add_argument("--output", default=SUPPRESS, help="the file (default: report.html in the folder, of several here)")
    parser.add_argument("--serve", action="store_true", help="show it to browsers of this machine, anew when there is more")
    parser.add_argument("--port", type=int, default=8000, help="with --serve; 0: any that is free")
    arguments = parse(RunConfig, parser, _words(argv))
    if arguments.serve and "output" in arguments:
        raise InputError("--serve writes no file; leave it out, or --output")
    if not 0 <= arguments.port < 2**16:
        raise InputError(f"--port {arguments.port}: it must be between 0 and {2**16 - 1}")
    open_runs(arguments.runs)
    return _actions().report(arguments)


def _actions() -> Any:
    check_installation()
    return importlib.import_module("rfdetr.training.actions")


def _words(argv: Sequence[str] | None) -> list[str]:
    return sys.argv[1:] if argv is None else list(argv)


def _prog(command: str) -> str | None:
    """Return how the command is called in its help: as it was called."""
    called = Path(sys.argv[0]).name
    return f"rfdetr {command}" if called == "rfdetr" else None


COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "fit": fit, "validate": validate, "test": test, "predict": predict, "export": export, "check": check, "pack": pack,
    "convert": convert, "benchmark": benchmark, "migrate": migrate, "report": report,
}
