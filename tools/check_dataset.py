"""Check a data set before training: ``python tools/check_dataset.py --dataset_dir DIR [--output DIR] [--fix DIR] ...``.

The report goes to the terminal, and with ``--output`` into check.json and check.png as well. The exit code is 1 if something
would break or falsify training. ``--cfg FILE`` takes data set and model from the configuration of a run instead.
"""

# isort: off
import installation  # noqa: F401  first: explains a torchvision that does not fit torch, before anything imports it
# isort: on
import logging
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from command_line import ExitCode, make_parser, parse, run_config, run_tool
from run_folder import write_json

from rfdetr import build
from rfdetr.config import VARIANTS, ModelSection
from rfdetr.datacheck import has_errors, to_dict, to_text, write_fixed
from rfdetr.datacheck.fix import check_target
from rfdetr.datacheck.sheet import draw_sheet
from rfdetr.errors import InputError

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Read the command line, check, print and write."""
    parser = make_parser("Check a data set before training on it.")
    parser.add_argument("--dataset_dir", default=SUPPRESS, help="folder of the data set (short for --data.dataset_dir)")
    parser.add_argument("--format", default=SUPPRESS, help="its layout, found out by looking (short for --data.format)")
    parser.add_argument("--resolution", default=SUPPRESS, help="input size of the model in pixels, or the name of a variant")
    parser.add_argument("--output", default=SUPPRESS, help="folder for check.json and check.png")
    parser.add_argument("--quick", action="store_true", help="names, classes and boxes only, in seconds; no image is opened")
    parser.add_argument("--decode", action="store_true", help="decode every image in full, as training does")
    parser.add_argument("--fix", default=SUPPRESS, help="new folder for a corrected copy of the annotations, as COCO JSON")
    arguments = parse(parser, sys.argv[1:] if argv is None else argv)
    if arguments.quick and ("fix" in arguments or arguments.decode):
        raise InputError("--quick opens no image; leave it out together with --decode or --fix")
    if "fix" in arguments:
        check_target(Path(arguments.fix))
    config, _ = run_config(parser, arguments)
    data = replace(config.data, **{name: arguments[name] for name in ("dataset_dir", "format") if name in arguments})
    input_size, num_queries = model_limits(config.model, arguments.get("resolution"))
    check = build.check_data(data, input_size, num_queries, quick=arguments.quick, decode=arguments.decode)
    print(to_text(check))
    if "output" in arguments:
        folder = Path(arguments.output)
        write_json(folder / "check.json", to_dict(check))
        draw_sheet(check, folder / "check.png")
        print(f"\nwritten: {folder / 'check.json'}, {folder / 'check.png'}")
    if "fix" in arguments:
        path = write_fixed(check, Path(arguments.fix))
        print(f"\ncorrected annotations: train with --cfg {path}, which holds\n\n{path.read_text(encoding='utf-8')}")
    return ExitCode.FOUND_ERRORS if has_errors(check) else ExitCode.DONE


def model_limits(model: ModelSection, resolution: str | None) -> tuple[tuple[int, int], int]:
    """Return the model's input size (H, W) and its number of queries; `resolution` is a side in pixels or a variant."""
    if resolution is None or resolution in VARIANTS:
        architecture = (model if resolution is None else ModelSection(variant=resolution)).architecture()
        return architecture.input_size, architecture.num_queries
    if not str(resolution).isdecimal() or int(resolution) < 1:
        raise InputError(f"--resolution {resolution}: must be a number of pixels, or one of {', '.join(VARIANTS)}")
    return (int(resolution), int(resolution)), model.architecture().num_queries


if __name__ == "__main__":
    run_tool(main)
