"""What a checkpoint says about its model beside the weights, written and read: enough to build that model again."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from rfdetr.build import build_model
from rfdetr.config import ENCODERS, VARIANTS, ModelConfig
from rfdetr.errors import InputError
from rfdetr.weights.names import official_state_dict
from rfdetr.weights.reading import normalise, origin_of
from rfdetr.weights.tensor_facts import TensorFacts, not_a_detector, sizes_of, tensor_facts

MODEL_NAMES = {  # class names of the published package, which its files carry as model_name
    "nano": "RFDETRNano", "small": "RFDETRSmall", "medium": "RFDETRMedium", "base": "RFDETRBase", "large": "RFDETRLarge",
    "large_deprecated": "RFDETRLargeDeprecated", "pico": "RFDETRPico", "seg_preview": "RFDETRSegPreview",
    "seg_nano": "RFDETRSegNano", "seg_small": "RFDETRSegSmall", "seg_medium": "RFDETRSegMedium", "seg_large": "RFDETRSegLarge",
    "seg_xlarge": "RFDETRSegXLarge", "seg_2xlarge": "RFDETRSeg2XLarge", "pico_seg": "RFDETRPicoSeg",
}
_FIELDS = {field.name for field in dataclasses.fields(ModelConfig)}
_LARGEST = 100_000  # number that a field may have
FIXED = ("patch_size", "dec_layers", "hidden_dim", "dim_feedforward", "segmentation_head")  # fields that tensors tell


def checkpoint_payload(
    model: nn.Module, config: ModelConfig, *, args: dict[str, Any] | None = None, label_map: Any = None
) -> dict[str, Any]:
    """Return the detector's part of a checkpoint_best_*.pth, which the published package opens as well.

    Args:
        args: the run's configuration as plain values.
        label_map: a LabelMap, or its plain values.
    """
    label_map = plain(label_map.to_dict() if hasattr(label_map, "to_dict") else label_map)
    variant = variant_of(config)
    return {
        "model": official_state_dict(model),
        "args": _args(args or {}, label_map),
        "model_name": None if variant is None else MODEL_NAMES[variant],
        "model_config": plain(dataclasses.asdict(config)),
        "label_map": label_map,
    }


def _args(args: dict[str, Any], label_map: dict[str, Any] | None) -> dict[str, Any]:
    """Return the run's arguments with `class_names`, where the published package looks for them."""
    args = plain(args)
    if label_map is not None and label_map["kind"] == "contiguous":  # raw category ids mean COCO, whose names it knows
        args.setdefault("class_names", [row["name"] for row in label_map["classes"]])
    return args


def plain(value: Any) -> Any:
    """Reduce a value to what torch.load(weights_only=True) and JSON both know; paths and the like become text."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {key if type(key) in (int, str) else str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, PurePath):
        return str(value)
    item = getattr(value, "item", None)  # numpy's numbers, which would not load with weights_only
    return plain(item()) if callable(item) and getattr(value, "ndim", 1) == 0 else str(value)


def model_config_from_checkpoint(content: dict[str, Any]) -> ModelConfig:
    """Return the configuration of the model whose weights `read_checkpoint` returned, or such a file holds.

    What the tensors tell (classes, queries, groups, the position table) stands above what the file says of itself, and that
    above the defaults of its variant.
    """
    content = normalise(content, "the given checkpoint")
    origin, state = origin_of(content), content["model"]
    found = tensor_facts(state)
    if found is None:
        raise InputError(not_a_detector(origin, state))
    sizes = sizes_of(state)
    said = _said(content)
    variant = _variant(content, found, sizes.get("positional_encoding_size"))
    if variant is None and not {"encoder", "out_feature_indexes", "num_windows", "ca_nheads"} <= said.keys():
        raise InputError(f"{origin}: of no known variant ({found}) and without a model_config that describes it")
    base = VARIANTS[variant] if variant else ModelConfig()
    fields = {**dataclasses.asdict(base), **said, **{name: getattr(found, name) for name in FIXED}, **sizes}
    if "resolution" not in said:
        fields["resolution"] = _resolution(base, fields["positional_encoding_size"])
    if "num_select" not in said and base.num_select == base.num_queries:
        fields["num_select"] = fields["num_queries"]
    try:
        return _checked(fields, state)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:  # of whatever the fields have led to
        raise InputError(f"{origin}: its model_config does not describe a model: {error}") from error


def _checked(fields: dict[str, Any], state: dict[str, Tensor]) -> ModelConfig:
    """Make the configuration, and the model without memory, to see that it is not much larger than the file."""
    config = config_of_fields(fields)
    with torch.device("meta"):
        model = build_model(config)
    wanted, there = (sum(tensor.numel() for tensor in tensors) for tensors in (model.parameters(), state.values()))
    if wanted > 2 * there:
        raise ValueError(f"its tensors hold {there:,} numbers, a model of these sizes {wanted:,}")
    return config


def config_of_fields(fields: Mapping[str, Any]) -> ModelConfig:
    """Make a configuration of the fields that a file names, which may hold anything: TypeError, ValueError."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    for name, value in fields.items():
        for part in value if isinstance(value, tuple) else (value,):
            if not isinstance(part, (int, str)) or isinstance(part, int) and not 0 <= part <= _LARGEST:
                raise ValueError(f"{name} is {str(part)[:80]}")
    return ModelConfig(**fields)


def _said(content: dict[str, Any]) -> dict[str, Any]:
    """Return the model's fields that the file names itself: in `model_config`, or (published legacy files) among `args`."""
    source = content["args"] if content["model_config"] is None else content["model_config"]
    return {name: value for name, value in source.items() if name in _FIELDS and value is not None}


def _variant(content: dict[str, Any], found: TensorFacts, grid: int | None) -> str | None:
    """Return the variant of the weights: the one the file names if the tensors allow it, else the nearest."""
    possible = matching_variants(found, grid)
    named = {name: variant for variant, name in MODEL_NAMES.items()}.get(content["model_name"])
    return named if named in possible else next(iter(possible), None)


def _resolution(base: ModelConfig, grid: int) -> int | tuple[int, int]:
    """Return the input size that goes with a position table, where the file names none."""
    side = grid * base.patch_size
    follows = isinstance(base.resolution, int) and base.positional_encoding_size == base.resolution // base.patch_size
    return side if follows and side % base.size_divisor == 0 else base.resolution


def facts_of(config: ModelConfig) -> TensorFacts:
    """Return what the tensors of a model with this configuration would tell."""
    encoder = ENCODERS[config.encoder]
    return TensorFacts(
        patch_size=config.patch_size, encoder_width=encoder.width, encoder_depth=encoder.depth, dec_layers=config.dec_layers,
        hidden_dim=config.hidden_dim, dim_feedforward=config.dim_feedforward, projector_levels=len(config.projector_scale),
        segmentation_head=config.segmentation_head,
    )


def matching_variants(wanted: TensorFacts, grid: int | None = None) -> list[str]:
    """Return the names of the variants with these facts, those with a position table of ``grid`` x ``grid`` first."""
    found = [name for name, config in VARIANTS.items() if facts_of(config) == wanted]
    if grid is None:
        return found
    return sorted(found, key=lambda name: abs(VARIANTS[name].positional_encoding_size - grid))


def variant_of(config: ModelConfig) -> str | None:
    """Return the variant that a (changed) configuration started from, None where it is none of them."""
    found = [name for name in matching_variants(facts_of(config)) if VARIANTS[name].num_windows == config.num_windows]
    return min(found, key=lambda name: _distance(VARIANTS[name], config), default=None)


def _distance(variant: ModelConfig, config: ModelConfig) -> tuple[Any, ...]:
    return (
        abs(variant.positional_encoding_size - config.positional_encoding_size),
        abs(variant.input_size[0] - config.input_size[0]),
        abs(variant.num_queries - config.num_queries),
    )
