"""Command lines of the tools: a YAML file and overrides become a `RunConfig`; bad input becomes one message and an exit code."""

import difflib
import logging
import os
import sys
import time
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from engine import CheckpointError, Hook
from engine.device import resolve_device
from engine.precision import resolve_precision
from rfdetr.config import RunConfig
from rfdetr.errors import InputError

SECONDS_FOR_THE_FIRST = 5  # that other processes leave the first one to report an error


class ExitCode(IntEnum):
    """What a tool's exit code means."""

    DONE = 0
    FOUND_ERRORS = 1  # of a check; Python's own tracebacks have this code too
    BAD_INPUT = 2
    INTERRUPTED = 3
    NON_FINITE = 4


def run_tool(main: Callable[[], ExitCode]) -> None:
    """Run a tool and exit with its code; bad input is reported in one message and without a traceback."""
    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if is_first else logging.WARNING, datefmt="%H:%M:%S",
                        format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # tells of each of its steps
    try:
        code = main()
    except (InputError, CheckpointError) as error:
        code, message = ExitCode.BAD_INPUT, error
    except FloatingPointError as error:
        code, message = ExitCode.NON_FINITE, error
    else:
        sys.exit(code)
    if not is_first:
        # what is wrong for all processes is reported by the first, upon which torchrun ends the others; a bad image of this
        # process alone has to be reported by it
        time.sleep(SECONDS_FOR_THE_FIRST)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def make_parser(description: str) -> ArgumentParser:
    """Return a parser with ``--cfg``, ``--print_config``, every field of every section, and ``--hooks``."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # --help shows the text below each field
    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--cfg", action="config", help="YAML file with the settings; overrides come after it")
    for section in fields(RunConfig):
        if is_dataclass(section.default):
            parser.add_argument(f"--{section.name}", type=type(section.default), default=section.default)
    parser.add_argument("--hooks", type=list[Hook], default=[], help="your own hooks: a list of class_path and init_args")
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parse `argv`, after adding the folder of the ``--cfg`` file and the working directory to the import path.

    Both go to its end, so that ``class_path: my_hooks.MyHook`` finds `my_hooks.py` there without hiding any installed module.

    Raises:
        InputError: an unknown key (with the nearest known one), a wrong type, a file that is missing or does not parse.
    """
    check_flags(parser, argv)
    for path in config_files(argv):
        check_config_file(path)
        sys.path.append(str(path.resolve().parent))
    sys.path.append(os.getcwd())
    try:
        return parser.parse_args(list(argv))
    except ArgumentError as error:
        raise InputError(_readable(str(error))) from error


def set_defaults(parser: ArgumentParser, settings: dict[str, Any]) -> None:
    """Put the settings of a checkpoint in place of the defaults; keys that this version does not know are left out."""
    known = {section.name: {field.name for field in fields(section.default)} for section in fields(RunConfig)
             if is_dataclass(section.default)}
    for section, values in settings.items():
        if section in known and isinstance(values, dict):
            parser.set_defaults({f"{section}.{key}": value for key, value in values.items() if key in known[section]})


def run_config(parser: ArgumentParser, namespace: Namespace) -> tuple[RunConfig, list[Hook]]:
    """Return the checked configuration, and the users' hooks that it names as objects."""
    objects = parser.instantiate(namespace)
    sections = {section.name: objects[section.name] for section in fields(RunConfig) if is_dataclass(section.default)}
    hooks = tuple(hook.as_dict() for hook in namespace.hooks)
    return RunConfig(**sections, hooks=hooks), list(objects.hooks)


def plain_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as dicts, lists and plain values, as they stand in config.yaml and in checkpoints."""
    return yaml.safe_load(yaml.safe_dump(asdict(config), sort_keys=False))


@contextmanager
def bad_input(what: str) -> Iterator[None]:
    """Report errors of the engine, which knows nothing of command lines, as bad input of the user."""
    try:
        yield
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{what}{' '.join(str(error).split())}") from error


def choose_device(config: RunConfig) -> torch.device:
    """Return the device of a run, once it is certain that it is there and has the precisions that the run asks for."""
    with bad_input("train."):
        device = resolve_device(config.train.device)
        resolve_precision(config.train.precision, device)
    with bad_input("eval."):
        resolve_precision(config.eval.precision, device)
    return device


def config_files(argv: Sequence[str]) -> list[Path]:
    """Return the files given with ``--cfg FILE`` or ``--cfg=FILE``."""
    files = [argv[index + 1] for index, word in enumerate(argv[:-1]) if word == "--cfg"]
    return [Path(word) for word in files + [word.removeprefix("--cfg=") for word in argv if word.startswith("--cfg=")]]


def check_flags(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Refuse ``--section.key`` that does not exist and name the nearest that does."""
    known = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    for word in argv:
        flag = word.split("=")[0].removeprefix("--").removesuffix("+")
        if word.startswith("--") and flag not in known and not flag.startswith("hooks."):
            raise InputError(f"--{flag}: there is no such option{_nearest(flag, known, prefix='--')}")


def check_config_file(path: Path) -> None:
    """Refuse a file that is missing, is not YAML, or has a key that no section knows."""
    if not path.is_file():
        raise InputError(f"--cfg {path}: there is no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: has to hold sections (model:, data:, train:, ...), it holds {type(content).__name__}")
    check_keys(content, str(path))


def check_keys(content: dict[str, Any], where: str) -> None:
    """Refuse a section or a key that does not exist and name the nearest that does."""
    sections = {section.name: section for section in fields(RunConfig)}
    every_key = [f"{name}.{field.name}" for name, s in sections.items() if is_dataclass(s.default) for field in fields(s.default)]
    for name, values in content.items():
        if name not in sections:
            raise InputError(f"{where}: {name}: there is no such section{_nearest(str(name), [*sections, *every_key])}")
        if not is_dataclass(sections[name].default):
            continue
        if not isinstance(values, dict):
            raise InputError(f"{where}: {name}: has to hold keys and values, it holds {values!r}")
        for key in values:
            if f"{name}.{key}" not in every_key:
                raise InputError(f"{where}: {name}.{key}: there is no such key{_nearest(f'{name}.{key}', every_key)}")


def _nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return a hint: the same key in another section, or else the most similar spelling."""
    last = name.rsplit(".", 1)[-1]
    elsewhere = [other for other in known if other.rsplit(".", 1)[-1] == last]
    close = difflib.get_close_matches(name, elsewhere or known, n=1, cutoff=0.0 if elsewhere else 0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else f"; there are: {', '.join(prefix + n for n in known)}"


def _readable(message: str) -> str:
    """Put jsonargparse's multi-line message, which names the key, into one plain line."""
    message = " ".join(message.split()).replace("<class '", "").replace("'>", "").replace("typing.", "")
    key, found, rest = message.removeprefix("Parser key ").partition('": ')
    return f"{key.removeprefix(chr(34))}: {rest}" if found and message.startswith("Parser key") else message
