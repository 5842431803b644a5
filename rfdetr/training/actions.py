"""What the commands do once their command line has been read."""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from engine.device import resolve_device, use_device
from engine.distributed import is_main_process, process_group
from engine.precision import resolve_precision
from rfdetr.config import VARIANTS
from rfdetr.data.converting import convert_dataset
from rfdetr.data.packing import MEGABYTE, pack_dataset
from rfdetr.data.shards import find_shards
from rfdetr.datacheck import has_errors, to_dict, to_text, write_fixed
from rfdetr.datacheck.fix import check_target
from rfdetr.datacheck.sheet import draw_sheet
from rfdetr.detector import check_numbers, load
from rfdetr.errors import InputError, printable
from rfdetr.export.writing import OPSET
from rfdetr.files import write_json
from rfdetr.report.page import write_report
from rfdetr.report.serve import ReportServer
from rfdetr.sources import find_pictures
from rfdetr.trained import read_trained
from rfdetr.training import exporting
from rfdetr.training.benchmark import Side, run_benchmark
from rfdetr.training.benchmark import to_text as benchmark_text
from rfdetr.training.command_line import ExitCode, bad_input
from rfdetr.training.config import DetectorConfig, RunConfig
from rfdetr.training.data import check_data, data_folder
from rfdetr.training.device import choose_device
from rfdetr.training.evaluation import evaluate_checkpoint, trusted_settings
from rfdetr.training.parsing import plain_dict
from rfdetr.training.prediction import check_output, predict_into
from rfdetr.training.run import train
from rfdetr.training.sections import DataConfig, LogConfig
from rfdetr.training.tables import evaluation_tables
from rfdetr.video import Video, is_video

STATUS_CODES = {"done": ExitCode.DONE, "interrupted": ExitCode.INTERRUPTED, "non_finite": ExitCode.NON_FINITE,
                "save_failed": ExitCode.SAVE_FAILED}


def fit(config: RunConfig, *, resume: str | None, overwrite: bool) -> ExitCode:
    """Train, and say how it ended."""
    return STATUS_CODES[train(config, resume=resume, overwrite=overwrite)["status"]]


def read_settings(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a checkpoint holds, and of it the settings of its run."""
    checkpoint = read_trained(path)
    return checkpoint, trusted_settings(checkpoint["args"])


def validate(
    checkpoint: dict[str, Any], config: RunConfig, path: str, *, split: str, use_ema: bool, output: str | None
) -> ExitCode:
    """Evaluate what was read from `path`, and print the tables."""
    with process_group(choose_device(config), config.train.timeout_minutes):
        content = evaluate_checkpoint(checkpoint, config, split, use_ema=use_ema)
        if is_main_process():
            for name, tables in {split: content, **content.get("sets", {})}.items():
                sys.stdout.write(printable(evaluation_tables(content["metrics"], tables, name, config.eval.max_dets)) + "\n")
            if output is not None:
                write_json(Path(output), {"checkpoint": path, "split": split, **content})
    return ExitCode.DONE


def predict(arguments: Namespace) -> ExitCode:
    """Find objects on the pictures, or the video, of ``arguments.input``."""
    max_pixels = arguments.get("max_pixels")
    options = {name: arguments.get(name) for name in ("tile", "max_detections")}
    check_numbers(arguments.threshold, option="--", batch_size=arguments.batch_size, max_pixels=max_pixels, **options)
    videos = [word for word in arguments.input if is_video(word)]
    if videos and len(arguments.input) > 1:
        raise InputError(f"--input: {videos[0]} is a video, which must be the only input")
    named = find_pictures(*arguments.input) if not videos else []
    output = Path(arguments.output)
    check_output(output, [path for _, path in named], overwrite=arguments.overwrite)
    source = Video(videos[0]) if videos else named
    with bad_input(""):
        device = resolve_device(arguments.device)
        precision = resolve_precision(arguments.precision, device)
    use_device(device)
    detector = load(arguments.checkpoint, device, precision=precision, use_ema=arguments.use_ema, max_pixels=max_pixels)
    with source if videos else nullcontext():
        is_done = predict_into(
            detector, source, output, threshold=arguments.threshold, batch_size=arguments.batch_size,
            draw=not arguments.json_only, save=arguments.save.split(",") if arguments.save else (),
            classes=arguments.get("classes"), **options)
    return ExitCode.DONE if is_done else ExitCode.INTERRUPTED


def export(arguments: Namespace) -> ExitCode:
    """Write the file, unless it differs from the checkpoint, and say how it was checked."""
    batch_size = None if arguments.batch_size == "dynamic" else int(arguments.batch_size)
    suffix = exporting.SUFFIXES[arguments.format]
    output = Path(arguments.get("output", Path(arguments.checkpoint).with_suffix(suffix)))
    done = exporting.export(
        arguments.checkpoint, output, format=arguments.format, batch_size=batch_size, precision=arguments.precision,
        postprocess=arguments.postprocess, opset=arguments.get("opset", OPSET), images=arguments.get("images"),
        use_ema=arguments.use_ema)
    sys.stdout.write(f"{done.parity}\n")
    if not done.parity.is_equal:
        sys.stdout.write(f"refused: it does not find what the checkpoint finds, so {output} was not written\n")
        return ExitCode.FOUND_ERRORS
    sys.stdout.write(f"{output}: {output.stat().st_size / MEGABYTE:.1f} MB\n")
    if arguments.format == "onnx":
        sys.stdout.write(f"for TensorRT (not tested here): {done.tensorrt}\n")
    return ExitCode.DONE


def check(config: RunConfig, arguments: Namespace) -> ExitCode:
    """Check the data set of a configuration."""
    if "fix" in arguments:
        check_target(Path(arguments.fix))
    input_size, num_queries = _model_limits(config.model, arguments.get("resolution"))
    found = check_data(config.data, input_size, num_queries, quick=arguments.quick, decode=arguments.decode)
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


def _model_limits(model: DetectorConfig, resolution: str | None) -> tuple[tuple[int, int], int]:
    """Return the model's input size (H, W) and its number of queries; `resolution` is a side in pixels or a variant."""
    if resolution is None or resolution in VARIANTS:
        architecture = (model if resolution is None else DetectorConfig(variant=resolution)).architecture()
        return architecture.input_size, architecture.num_queries
    if not str(resolution).isdecimal() or int(resolution) < 1:
        raise InputError(f"--resolution {resolution}: must be a number of pixels, or one of {', '.join(VARIANTS)}")
    return (int(resolution), int(resolution)), model.architecture().num_queries


def pack(data: DataConfig, output: Path, *, shard_mb: int) -> ExitCode:
    """Pack all splits of a data set."""
    output = output.expanduser().absolute()
    folder, format = data_folder(data)
    packed = pack_dataset(folder, output, format=format, paths=data.splits, shard_mb=shard_mb,
                          val_fraction=data.val_fraction, allow_outside=data.allow_outside)
    for split, shards in find_shards(output).items():
        raw, megabytes = packed[split], sum(shards.sizes.values()) / MEGABYTE
        sys.stdout.write(f"{split}: {len(raw.image_ids)} images, {len(raw.boxes)} objects in {len(shards.sizes)} shards, "
                         f"{megabytes:.1f} MB\n")
    sys.stdout.write(f"train on it with: --data.dataset_dir {output}\n")
    return ExitCode.DONE


def convert(data: DataConfig, arguments: Namespace) -> ExitCode:
    """Write all splits in another format, and say what it cannot keep."""
    output = Path(arguments.output).expanduser().absolute()
    folder, format = data_folder(data)
    done = convert_dataset(folder, output, to=arguments.to, format=format, paths=data.splits, pictures=arguments.pictures,
                           with_masks=not arguments.boxes_only, val_fraction=data.val_fraction, allow_outside=data.allow_outside)
    for split, found in done.items():
        lines = [f"{split}: {found.images} images, {found.objects} objects", *found.notes()]
        sys.stdout.write(printable("\n  ".join(lines)) + "\n")
    if arguments.pictures == "link":
        sys.stdout.write("its pictures are links to where they lie; --pictures copy makes a folder that can be moved\n")
    sys.stdout.write(f"train on it with: --data.dataset_dir {output}\n")
    return ExitCode.DONE


def benchmark(config: RunConfig, rows: Sequence[str], other: Side | None, arguments: Namespace) -> ExitCode:
    """Measure, and print the table."""
    device = choose_device(config)
    repeats = arguments.get("repeats", 5 if device.type == "cpu" else 30)
    with tempfile.TemporaryDirectory(prefix="rfdetr-benchmark-") as folder:
        settings = work_settings(config, Path(folder), str(device), resolve_precision(config.train.precision, device), repeats)
        found = run_benchmark(rows, {**settings, "boxes": arguments.boxes}, other, with_cost=arguments.cost,
                              rounds=arguments.get("rounds", 1 if other is None else 3))
    sys.stdout.write(printable(benchmark_text(found)) + "\n")
    if "json" in arguments:
        write_json(Path(arguments.json), found)
    return ExitCode.DONE


def report(arguments: Namespace) -> ExitCode:
    """Write the page of ``arguments.runs``, or serve it until Ctrl+C."""
    defaults = plain_dict(RunConfig())
    if arguments.serve:
        with ReportServer(arguments.runs, arguments.port, defaults=defaults) as server:
            server.serve_forever()
    output = Path(arguments.output) if "output" in arguments else None
    path = write_report(arguments.runs, output, defaults=defaults)
    sys.stdout.write(f"written: {printable(str(path))}\n")
    return ExitCode.DONE


def work_settings(config: RunConfig, folder: Path, device: str, precision: str, repeats: int) -> dict[str, Any]:
    """Return what the measurements have to know: of the run, all that costs time; made-up data where it names none."""
    architecture, warm_up = config.model.architecture(), 5
    epochs = max(config.train.epochs, warm_up + repeats + 1)  # so that none is the last, which is evaluated
    data = config.data if config.data.dataset_dir else replace(config.data, dataset_dir=str(folder / "shapes"), format="shapes")
    run = replace(
        config, hooks=(), data=data, log=LogConfig(tensorboard=False, progress=False, plots=False),
        model=replace(config.model, weights=None, ema_weights=False, resize_head=False, backbone_weights=None),
        train=replace(config.train, epochs=epochs, device=device, precision=precision, output_dir=str(folder / "run"),
                      save_every_steps=0, max_hours=0.0, strategy="ddp"),
        eval=replace(config.eval, every_epochs=epochs, run_test=False),
    )
    return {
        "run": plain_dict(run), "folder": str(folder), "device": device, "precision": precision, "repeats": repeats,
        "warm_up": warm_up, "variant": config.model.variant, "resolution": list(architecture.input_size),
        "has_masks": architecture.segmentation_head, "num_classes": config.model.num_classes or 80,
        "num_queries": architecture.num_queries, "group_detr": architecture.group_detr, "dec_layers": architecture.dec_layers,
        "batch_size": config.data.batch_size, "images": 1000, "detections": 300, "epochs": config.train.epochs,
        "every_epochs": config.eval.every_epochs,
    }
