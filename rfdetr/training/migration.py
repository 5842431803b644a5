"""``rfdetr migrate``: our YAML for the settings in a checkpoint or a configuration file of the published package."""

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml

from rfdetr.config import VARIANTS, ModelConfig
from rfdetr.errors import InputError, printable
from rfdetr.training.config import RunConfig
from rfdetr.training.migration_rules import REMARK
from rfdetr.training.migration_table import ROWS
from rfdetr.training.parsing import load_yaml, make_config, make_parser, plain_dict, plain_errors, sections_of
from rfdetr.weights.download import PUBLISHED, published_name
from rfdetr.weights.payload import MODEL_NAMES, variant_of
from rfdetr.weights.reading import open_plain, plain_args

DEFAULTS = {"eval_base_model": False, "log_per_class_metrics": False, "checkpoint_interval": 10}  # of 1.11.2, unlike ours
ALWAYS = ("model.variant", "data.dataset_dir", "data.batch_size", "train.epochs", "train.grad_accum_steps", "train.output_dir",
          "optim.lr", "optim.lr_encoder")  # written also where they equal our defaults
_CHECKPOINTS = (".pth", ".pt", ".ckpt")
_MODELS = {name: variant for variant, name in MODEL_NAMES.items() if not variant.startswith("pico")}
_SIZES = {"resolution": "model.resolution", "num_queries": "model.num_queries", "group_detr": "model.group_detr"}
_FREE = {*_SIZES, "num_select", "num_classes", "positional_encoding_size"}  # the others of an architecture are the variant's


class Found(NamedTuple):
    """What a file says: all settings by name, and the class of its detector."""

    stored: dict[str, Any]
    model_name: str | None
    is_legacy: bool


@dataclass
class Migrated:
    """Our options, and what has to be said: by option, and of what has none."""

    settings: dict[str, Any] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def migrate(path: Path) -> str:
    """Return our configuration, as YAML with comments, for the settings that a file of the published package holds.

    Args:
        path: .pth or .ckpt; training_config.json; YAML of its command line, or of arguments of ``train()``.

    Raises:
        InputError: it holds no such settings, or some that are not possible here.
    """
    found = _find(path)
    migrated = _translate(found)
    with plain_errors(f"{path}: with its settings, named as ours: "):
        parser = make_parser(RunConfig, "")
        config = make_config(RunConfig, parser, parser.parse_object(_nested(migrated.settings)))
    return _to_yaml(migrated, plain_dict(config), path)


def _find(path: Path) -> Found:
    """Read a file of any kind."""
    if path.suffix in _CHECKPOINTS:
        content = open_plain(path)
        content = content if isinstance(content, dict) else {}
        args = plain_args(content)
        found = _sorted(args) if args else Found({}, None, False)
        model = content.get("model_config")
        stored = {**(model if isinstance(model, dict) else {}), **found.stored}
        name, is_legacy = content.get("model_name") or found.model_name, "rfdetr_version" not in content
    else:
        content = _read_text(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: has to hold settings by name, it holds {type(content).__name__}")
        (stored, name, _), is_legacy = _sorted(content), False
    if {"optim", "train"} <= stored.keys():
        raise InputError(f"{path}: is of this project already: train from its configuration with rfdetr fit --cfg, or go on from "
                         "a checkpoint with rfdetr fit --resume")
    stored = {str(name): _plain(value) for name, value in stored.items()}
    if not stored.keys() & ROWS.keys():
        raise InputError(f"{path}: holds no settings of a training with rfdetr (train_config, model_config or args); to start "
                         "from its weights, set model.weights to it")
    return Found(stored, name or stored.get("model_name"), is_legacy)


def _read_text(path: Path) -> Any:
    if path.suffix != ".json":
        return load_yaml(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error


def _sorted(content: Mapping[str, Any]) -> Found:
    """Put the sections of a file into one dict; the trainer's settings under ``trainer.``."""
    model = content.get("model")
    sections = {**content, **(model if isinstance(model, Mapping) and "model" in content else {})}
    if not {"train_config", "model_config"} & sections.keys():
        return Found(dict(content), None, False)
    name = content.get("model_config_type")
    stored: dict[str, Any] = {}
    for section in ("model_config", "train_config"):
        values = sections.get(section) or {}
        if "class_path" in values:
            name = values["class_path"].rpartition(".")[2] if section == "model_config" else name
            values = values.get("init_args") or {}
        stored |= values
    trainer = content.get("trainer") or {}
    stored |= {f"trainer.{name}": value for name, value in trainer.items() if value is not None}
    stored |= {name: content[name] for name in ("seed_everything", "ckpt_path") if content.get(name) is not None}
    return Found(stored, name, False)


def _plain(value: Any) -> Any:
    """Return plain values, and numbers for what YAML 1.1 takes for text (1e-4)."""
    if isinstance(value, str):
        return float(value) if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) else value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _translate(found: Found) -> Migrated:
    """Go through the settings by the table."""
    migrated = Migrated()
    stored = found.stored if found.is_legacy else {**DEFAULTS, **found.stored}
    _add_model(migrated, found)
    unknown = [name for name in stored if name not in ROWS]
    for name, row in ROWS.items():  # in their order: those of the trainer go over those of train()
        if name not in stored:
            continue
        try:
            settings = row.settings(stored[name], stored)
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{name}: {stored[name]!r} is no value that the published package has there") from error
        remark = settings.pop(REMARK, None)
        migrated.settings |= settings
        if settings and (remark or row.note):
            migrated.remarks[next(iter(settings))] = f"{name}: {remark or row.note}"
        elif remark:
            migrated.others.append(f"{name}: {remark}")
    if unknown:
        migrated.others.append(f"not known here: {', '.join(unknown)}")
    return migrated


def _add_model(migrated: Migrated, found: Found) -> None:
    """Find the variant, and what was changed of it."""
    stored = found.stored
    said = {key.name: tuple(value) if isinstance(value := stored[key.name], list) else value for key in fields(ModelConfig)
            if stored.get(key.name) is not None}
    variant = _variant(found, said)
    if variant is None:
        variant = "nano"
        migrated.others.append("which detector it was is not said; set model.variant")
    base = VARIANTS[variant]
    migrated.settings["model.variant"] = variant
    for name, option in _SIZES.items():
        if name in said and said[name] != getattr(base, name):
            migrated.settings[option] = said[name]
    queries = said.get("num_queries", base.num_queries)
    if said.get("num_select", queries) != queries:
        migrated.others.append(f"num_select: {said['num_select']}: as many detections as queries are kept here, {queries}")
    changed = [name for name, value in said.items() if name not in _FREE and value != getattr(base, name)]
    migrated.others += [f"{name}: {said[name]!r}: {variant} has {getattr(base, name)!r}; {ROWS[name].note}" for name in changed]
    _add_weights(migrated, stored, variant)


def _variant(found: Found, said: dict[str, Any]) -> str | None:
    if isinstance(name := found.model_name, str):
        name = name.removesuffix("Config")
        if name in _MODELS and not found.is_legacy:
            return _MODELS[name]
        if name not in _MODELS and name != "Model":
            raise InputError(f"{name[:80]}: such a detector is not trained here; there are: {', '.join(sorted(_MODELS))}")
    if {"encoder", "dec_layers"} <= said.keys():
        with plain_errors("its detector: "):
            return variant_of(ModelConfig(**said))
    weights = PurePath(str(found.stored.get("pretrain_weights"))).name
    return next((variant for variant in VARIANTS if published_name(variant) == weights), None)


def _add_weights(migrated: Migrated, stored: Mapping[str, Any], variant: str) -> None:
    """Start from what the run started from."""
    published = published_name(variant)
    weights = stored.get("pretrain_weights", published)
    name = PurePath(str(weights)).name
    if weights is None:
        if VARIANTS[variant].patch_size == 14:  # only these found DINOv2's weights there; all others began at random
            migrated.settings["model.backbone_weights"] = "timm"
    elif name == published:
        migrated.settings["model.weights"] = "published"
    else:
        migrated.settings |= {"model.weights": name if name in PUBLISHED else str(weights), "model.resize_head": True}


def _nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options by section, in the order of our configuration."""
    sections: dict[str, dict[str, Any]] = {name: {} for name in sections_of(RunConfig)}
    for option, value in settings.items():
        section, _, key = option.partition(".")
        sections[section][key] = value
    return {name: values for name, values in sections.items() if values}


def _to_yaml(migrated: Migrated, config: Mapping[str, Any], path: Path) -> str:
    """Write what differs from our defaults, with what has to be said about it in front of it."""
    defaults = plain_dict(RunConfig())
    lines = _comment(f"Made by rfdetr migrate from {path}; what is not here has its default. rfdetr fit --cfg THIS_FILE trains.")
    if path.suffix in _CHECKPOINTS:
        lines += _comment(f"Starts as that run did; to start from what it has learned, set model.weights: {path}")
    for section, values in _nested(migrated.settings).items():
        written = []
        for key, value in config[section].items():
            option = f"{section}.{key}"
            if key in values and (option in ALWAYS or value != defaults[section][key]):
                written += _comment(migrated.remarks[option]) if option in migrated.remarks else []
                written += yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True).splitlines()
        lines += ["", f"{section}:", *(f"  {line}" for line in written)] if written else []
    others = [line for text in migrated.others for line in _comment(f"- {text}", "  ")]
    return "\n".join([*lines, *(["", "# Without a counterpart:", *others] if others else []), ""])


def _comment(text: str, indent: str = "") -> list[str]:
    text = printable(" ".join(text.split()))[:2000]
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent=f"# {indent}", break_on_hyphens=False)
