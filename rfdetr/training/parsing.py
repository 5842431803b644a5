"""From YAML files and command lines to a configuration; whatever is wrong becomes one `InputError`.

The functions are given the class of the configuration, whose fields are its sections, so that it can use them itself.
"""

import json
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from rfdetr.errors import InputError, did_you_mean
from rfdetr.values import UniqueKeyLoader

CONFIG_FLAGS = ("--cfg", "--config")
MAX_MESSAGE = 2000  # characters of what jsonargparse says, which may repeat a whole value
MAX_FILE, MAX_VALUES, MAX_DEPTH, MAX_INTEGER = 2**20, 20_000, 20, 2**63  # of a configuration file: bytes, ...


def sections_of(run_class: type) -> dict[str, type]:
    """Return the sections of a configuration by name."""
    return {section.name: type(section.default) for section in fields(run_class) if is_dataclass(section.default)}


def make_parser(run_class: type, description: str | None, prog: str | None = None) -> ArgumentParser:
    """Return a parser with ``--cfg``, ``--print_config``, every field of every section, and ``--hooks``."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # --help shows the text below each field
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(*CONFIG_FLAGS, action="config", help="YAML file with the settings; overrides come after it")
    for name, section in sections_of(run_class).items():
        parser.add_argument(f"--{name}", type=section, default=section())
    parser.add_argument("--hooks", type=list[dict[str, Any]], default=[], help="your own hooks: a list of class_path, init_args")
    return parser


def parse(run_class: type, parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parse `argv`, after adding the folder of the ``--cfg`` file and the working directory to the import path.

    Both go to its end, so that ``class_path: my_hooks.MyHook`` finds `my_hooks.py` there without hiding any installed module.

    Raises:
        InputError: an unknown key (with the nearest known one), a wrong type, a file that is missing or does not parse.
    """
    check_words(run_class, parser, argv)
    for path in config_files(argv):
        _add_to_import_path(str(path.resolve().parent))
    _add_to_import_path(os.getcwd())
    with plain_errors():
        return parser.parse_args(list(argv))


def check_words(run_class: type, parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Refuse options and keys of configuration files that do not exist."""
    check_flags(parser, argv)
    for path in config_files(argv):
        check_config_file(run_class, path)


def set_defaults(run_class: type, parser: ArgumentParser, settings: Mapping[str, Any]) -> None:
    """Put the settings of a checkpoint in place of the defaults; keys that this version does not know are left out."""
    for name, section in sections_of(run_class).items():
        values, known = settings.get(name), {field.name for field in fields(section)}
        if isinstance(values, dict):
            with plain_errors():
                parser.set_defaults({f"{name}.{key}": value for key, value in values.items() if key in known})


def parse_over(
    run_class: type, parser: ArgumentParser, settings: Mapping[str, Any], read: Callable[[], Namespace]
) -> Namespace:
    """Return what `read` parses over the settings of a checkpoint, which do not say how other data than its own are stored."""
    set_defaults(run_class, parser, settings)
    arguments = read()
    own = settings.get("data")
    if not isinstance(own, Mapping) or arguments["data.dataset_dir"] != own.get("dataset_dir"):
        set_defaults(run_class, parser, {"data": {"format": "auto", "splits": None}})
        arguments = read()
    return arguments


def make_config(run_class: type, parser: ArgumentParser, namespace: Namespace) -> Any:
    """Return the checked configuration."""
    with plain_errors():
        objects = parser.instantiate(namespace)
        return run_class(**{name: objects[name] for name in sections_of(run_class)}, hooks=tuple(namespace.hooks or ()))


@contextmanager
def plain_errors(place: str = "") -> Iterator[None]:
    """Say in one message what jsonargparse, or a section, does not like; values of a wrong type raise all kinds of errors."""
    try:
        yield
    except InputError as error:
        if not place:
            raise
        raise InputError(f"{place}{error}") from error
    except Exception as error:
        raise InputError(f"{place}{_readable(str(error))[:MAX_MESSAGE]}") from error


def read_config(run_class: type, path: str | os.PathLike, overrides: Mapping[str, Any]) -> Any:
    """Read a YAML file.

    Args:
        overrides: ``section={"key": value}`` or ``{"section.key": value}``, on top of the file; ``hooks=[...]`` too.
    """
    argv = [f"--cfg={path}"]
    for name, value in overrides.items():
        value = asdict(value) if is_dataclass(value) else value
        settings = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, Mapping) and "." not in name else {
            name: value}
        argv += [f"--{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in settings.items()]
    parser = make_parser(run_class, "")
    return make_config(run_class, parser, parse(run_class, parser, argv))


def make_object(cls: type, init_args: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Make an object of checked `init_args`, as they stand in a YAML file, and of `given` values, which these go over."""
    parser = ArgumentParser(exit_on_error=False)
    rest = {name: value for name, value in given.items() if name not in init_args}
    parser.add_class_arguments(cls, "made", skip=set(rest), instantiate=False)
    try:
        checked = parser.instantiate(parser.parse_object({"made": dict(init_args)} if init_args else {})).get("made", {})
        return cls(**{**rest, **vars(checked)} if checked else rest)
    except (ArgumentError, TypeError, ValueError) as error:
        message = _readable(str(error)).replace("made.", "")
        message = message.replace("Group 'made' does not accept option", "it takes no argument")
        raise InputError(f"hooks: {cls.__name__}: {message}") from error


def plain_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as dicts, lists and plain values, as they stand in config.yaml and in checkpoints."""
    return yaml.safe_load(yaml.safe_dump(asdict(config), sort_keys=False))


def config_files(argv: Sequence[str]) -> list[Path]:
    """Return the files given with ``--cfg FILE`` or ``--cfg=FILE``."""
    files = [argv[index + 1] for index, word in enumerate(argv[:-1]) if word in CONFIG_FLAGS]
    return [Path(word) for word in files + [word.partition("=")[2] for word in argv if word.partition("=")[0] in CONFIG_FLAGS
                                            and "=" in word]]


def check_flags(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Refuse ``--section.key`` that does not exist and name the nearest that does."""
    known = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    for word in argv:
        flag = word.split("=")[0].removeprefix("--").removesuffix("+")
        if word.startswith("--") and flag not in known:
            raise InputError(f"--{flag}: there is no such option; {did_you_mean(flag, known, prefix='--')}")


def check_config_file(run_class: type, path: Path) -> None:
    """Refuse a file that is missing, is not YAML, or has a key that no section knows."""
    if not path.is_file():
        raise InputError(f"--cfg {path}: {'is not a regular file' if path.exists() else 'there is no such file'}")
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: has to hold sections (model:, data:, train:, ...), it holds {type(content).__name__}")
    check_keys(run_class, content, str(path))


def load_yaml(path: Path) -> Any:
    """Return what a YAML file holds; refuse what is none, or would grow when it is written out."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"{path.stat().st_size:,} bytes are no configuration")
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
        _check_size(content)
    except Exception as error:  # of YAML, of Python's own numbers and dates, of the disk
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())[:300]}") from error
    return content


def _check_size(content: Any) -> None:
    """Refuse what grows when it is written out: aliases of aliases or of themselves, deep nesting, endless numbers."""
    values, num_values = [(content, 0)], 0
    while values:
        value, depth = values.pop()
        num_values += 1
        if depth > MAX_DEPTH or num_values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values, aliases counted each time, or nested deeper than {MAX_DEPTH}")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise ValueError(f"a whole number with more than {len(str(MAX_INTEGER))} digits")
        inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
        values += [(item, depth + 1) for item in inner]


def check_keys(run_class: type, content: dict[str, Any], where: str) -> None:
    """Refuse a section or a key that does not exist and name the nearest that does."""
    sections = sections_of(run_class)
    every_key = [f"{name}.{field.name}" for name, section in sections.items() for field in fields(section)]
    for name, values in content.items():
        if name not in sections and name != "hooks":
            hint = did_you_mean(str(name), [*sections, "hooks", *every_key])
            raise InputError(f"{where}: {name}: there is no such section; {hint}")
        if name == "hooks":
            continue
        if not isinstance(values, dict):
            raise InputError(f"{where}: {name}: has to hold keys and values, it holds {values!r}")
        for key in values:
            if f"{name}.{key}" not in every_key:
                raise InputError(f"{where}: {name}.{key}: there is no such key; {did_you_mean(f'{name}.{key}', every_key)}")


def _add_to_import_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


def _readable(message: str) -> str:
    """Put jsonargparse's multi-line message, which names the key, into one plain line."""
    message = " ".join(message.split()).replace("<class '", "").replace("'>", "").replace("typing.", "")
    message = re.sub(r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: ",
                     lambda match: f"Expected one of {match[1].replace('NoneType', 'null')}. Got value: ", message)
    key, found, rest = message.removeprefix("Parser key ").partition('": ')
    return f"{key.removeprefix(chr(34))}: {rest}" if found and message.startswith("Parser key") else message
