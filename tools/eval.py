"""Evaluate a checkpoint: ``python tools/eval.py --checkpoint FILE [--split val|test] [--output FILE] [--section.key VALUE ...]``.

Model, classes, data set and settings of the evaluation come out of the checkpoint; ``--cfg FILE`` and overrides go over them.
"""

# isort: off
import installation  # noqa: F401  first: explains a torchvision that does not fit torch, before anything imports it
# isort: on
import logging
import sys
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from command_line import ExitCode, choose_device, make_parser, parse, run_config, run_tool, set_defaults
from evaluation import COCO_MAX_DETS, MetricsAndCocoTable, evaluate_split, finite_or_none
from run_folder import write_json

from engine.distributed import is_main_process, process_group
from rfdetr import build
from rfdetr.config import RunConfig
from rfdetr.data import LabelMap
from rfdetr.errors import InputError
from rfdetr.evaluation import f1_sweep
from rfdetr.weights import load_weights, model_config_from_checkpoint, read_checkpoint

logger = logging.getLogger(__name__)

ROWS = (  # of COCO's table: title, name of the metric, IoU, area
    ("Average precision", "mAP_50_95", "0.50:0.95", "all"),
    ("Average precision", "mAP_50", "0.50", "all"),
    ("Average precision", "mAP_75", "0.75", "all"),
    ("Average precision", "mAP_small", "0.50:0.95", "small"),
    ("Average precision", "mAP_medium", "0.50:0.95", "medium"),
    ("Average precision", "mAP_large", "0.50:0.95", "large"),
    ("Average recall", "mAR_1", "0.50:0.95", "all"),
    ("Average recall", "mAR_10", "0.50:0.95", "all"),
    ("Average recall", "mAR", "0.50:0.95", "all"),
    ("Average recall", "mAR_small", "0.50:0.95", "small"),
    ("Average recall", "mAR_medium", "0.50:0.95", "medium"),
    ("Average recall", "mAR_large", "0.50:0.95", "large"),
)


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Read the command line, evaluate, print and write."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser("Evaluate a checkpoint of an RF-DETR detector.")
    parser.add_argument("--checkpoint", default=SUPPRESS, help="the weights, with the settings of their run (required)")
    parser.add_argument("--split", choices=["val", "test"], default="val", help="which images")
    parser.add_argument("--use_ema", action="store_true", help="evaluate the averaged weights, where a file holds both")
    parser.add_argument("--output", default=SUPPRESS, help="JSON file for all numbers")
    check_model_flags(argv)
    checkpoint = read_checkpoint(checkpoint_path(argv)) if not {"-h", "--help"} & set(argv) else {"args": {}}
    set_defaults(parser, checkpoint["args"])
    arguments = parse(parser, argv)
    config, _ = run_config(parser, arguments)
    with process_group(choose_device(config)):
        content = evaluate_checkpoint(checkpoint, config, arguments.split, ema=arguments.use_ema)
    if is_main_process() and "output" in arguments:
        write_json(Path(arguments.output), {"checkpoint": arguments.checkpoint, "split": arguments.split, **content})
    return ExitCode.DONE


def checkpoint_path(argv: Sequence[str]) -> str:
    """Return ``--checkpoint``, which has to be read before the other arguments: it holds their defaults."""
    first = ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    first.add_argument("--checkpoint", nargs="?")
    path = first.parse_known_args(argv)[0].checkpoint
    if path is None:
        raise InputError("--checkpoint FILE: is missing; it names the weights to evaluate")
    return path


def check_model_flags(argv: Sequence[str]) -> None:
    """Refuse overrides that would have no effect."""
    for word in argv:
        flag = word.split("=")[0]
        if flag.startswith("--model.") and flag != "--model.resolution":
            raise InputError(f"{flag}: the model comes out of the checkpoint; only --model.resolution may be changed")


def evaluate_checkpoint(checkpoint: dict[str, Any], config: RunConfig, split: str, *, ema: bool = False) -> dict[str, Any]:
    """Evaluate what `read_checkpoint` returned, print the tables, and return all numbers."""
    device = choose_device(config)
    architecture = model_config_from_checkpoint(checkpoint)
    if config.model.resolution is not None:
        architecture = replace(architecture, resolution=config.model.resolution)
    model = build.build_model(architecture)
    load_weights(model, checkpoint, ema=ema)
    label_map = LabelMap.from_dict(checkpoint["label_map"]) if checkpoint["label_map"] else None
    if label_map is None:
        logger.warning("the checkpoint has no label map: labels are taken to be those of the data set (data.label_map: %s)",
                       config.data.label_map)
    metrics, metric = evaluate_split(model, config, architecture, label_map, split, device=device)
    coco = metric.table.compute()  # collective
    classes = per_class(metric)
    if is_main_process():
        print_tables(metrics, coco, classes, split, config.eval.max_dets)
    return {"metrics": finite_or_none(metrics), "coco": coco, "per_class": classes}


def per_class(metric: MetricsAndCocoTable) -> dict[str, dict[str, float]]:
    """Return AP of each class with objects, and precision, recall and F1 at the confidence of the best macro F1."""
    matches = metric.coco.matches()
    at_best = f1_sweep(matches)["per_class"]
    values = {iou_type: metric.coco.per_class(iou_type) for iou_type in metric.coco.iou_types}
    rows = {}
    for label in sorted(next(iter(values.values()))):
        precisions = {"AP" if iou_type == "bbox" else "segm_AP": found.get(label, -1.0) for iou_type, found in values.items()}
        rows[metric.class_name(label)] = {"objects": matches[label].num_targets, **precisions, **at_best.get(label, {})}
    return rows


def print_tables(
    metrics: dict[str, float], coco: dict[str, float], classes: dict[str, dict[str, float]], split: str, max_dets: int
) -> None:
    """Print COCO's twelve numbers, the run's own numbers, and a row for each class."""
    for prefix, what in (("", "boxes"), ("segm_", "masks")):
        if f"{prefix}mAP_50_95" not in coco:
            continue
        print(f"\n{split} split, {what}, COCO's numbers (at most {COCO_MAX_DETS} detections)")
        for title, name, iou, area in ROWS:
            detections = {"mAR_1": 1, "mAR_10": 10}.get(name, COCO_MAX_DETS)
            print(f"  {title:<18} IoU {iou:<9}  area {area:<6}  detections {detections:>3}  {coco[prefix + name]:.4f}")
        print(f"  as in training (at most {max_dets}): mAP_50_95 {metrics[f'{split}/{prefix}mAP_50_95']:.6f}, "
              f"mAP_50 {metrics[f'{split}/{prefix}mAP_50']:.6f}")
    best = ", ".join(f"{name} {metrics[f'{split}/{name}']:.4f}" for name in ("F1", "precision", "recall"))
    print(f"\nbest {best} at confidence {metrics[f'{split}/F1_threshold']:.2f}")
    if not classes:
        return
    width = max(len("class"), *map(len, classes))
    columns = list(next(iter(classes.values())))
    print("\n" + "class".ljust(width) + "".join(column.rjust(11) for column in columns))
    for name, row in classes.items():
        cells = (f"{value:>11}" if isinstance(value, int) else f"{value:>11.4f}" for value in row.values())
        print(name.ljust(width) + "".join(cells))


if __name__ == "__main__":
    run_tool(main)
