"""What an exported file says of itself: for people and programs, and so that `rfdetr.load` reads it again.

Names of classes, sizes and what to do to a picture are keys of their own, in JSON; under `rfdetr` is what this package needs
besides. Nothing tells where the training's files were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.data.label_map import LabelMap
from rfdetr.errors import InputError
from rfdetr.extras import installed_version
from rfdetr.weights.payload import MODEL_NAMES, config_of_fields, plain, variant_of

if TYPE_CHECKING:
    from rfdetr.config import ModelConfig

KEY = "rfdetr"
PRIVATE = {"data": ("dataset_dir", "splits", "augment"), "eval": ("sets",)}  # where files are, and what is not used


def describe(
    architecture: ModelConfig, label_map: LabelMap, args: Mapping[str, Any], *, precision: str, postprocess: str
) -> dict[str, str]:
    """Return the metadata of an exported file; `args` are the settings of the model's run."""
    variant = variant_of(architecture)
    settings = {name: {key: value for key, value in args[name].items() if key not in hidden}
                for name, hidden in PRIVATE.items() if isinstance(args.get(name), Mapping)}
    facts = {
        "preprocessing": {
            "channels": "RGB", "size": list(architecture.input_size), "scale": 1 / 255, "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD, "resize": settings.get("data", {}).get("resize", "stretch"),
            "interpolation": "bilinear, antialiased, of the 8-bit picture",
        },
        "class_names": dict(sorted((label, label_map.names[label]) for label in label_map.labels.values())),
        "postprocess": postprocess, "precision": precision,
        KEY: {"model_config": vars(architecture), "label_map": label_map.to_dict(), "args": settings},
    }
    return {"producer": f"rfdetr-engine {installed_version('rfdetr-engine')}", "variant": variant or "",
            "model_name": MODEL_NAMES.get(variant, ""),
            **{name: json.dumps(plain(value)) if isinstance(value, dict) else value for name, value in facts.items()}}


def understand(found: Mapping[str, str], origin: str) -> dict[str, Any]:
    """Return `model_config` (a `ModelConfig`), `label_map` (a `LabelMap`) and `args` of an exported file.

    Raises:
        InputError: the metadata are missing, or were changed.
    """
    if KEY not in found:
        raise InputError(f"{origin}: holds nothing about its classes and pictures, so rfdetr export has not written it; export "
                         "the checkpoint again with it")
    try:
        content = json.loads(found[KEY])
        config, args = config_of_fields(content["model_config"]), content["args"]
        label_map = LabelMap.from_dict(content["label_map"])
        if not isinstance(args, dict) or max(label_map.labels.values()) > config.num_classes:
            raise ValueError("its classes are more than the model's")
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:  # somebody may have edited it
        raise InputError(f"{origin}: its metadata are damaged ({str(error)[:200]}); export the checkpoint again") from error
    return {"model_config": config, "label_map": label_map, "args": args}
