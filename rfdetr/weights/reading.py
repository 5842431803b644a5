"""Open a checkpoint file without trusting it, and find the weights in it, whoever wrote it.

Known writers: the published legacy engine (`model`, `args` as a Namespace, `ema_model`), rfdetr 1.11.2 (`model` beside a
Lightning `state_dict`), Lightning itself (`state_dict` with prefixes), converted legacy files (`legacy_ema_state_dict`),
this project (`checkpoint_best_*.pth`, `checkpoint.pth`), and a bare state dict.
"""

import argparse
import os
import re
import types
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfdetr.data.label_map import MAX_CLASSES
from rfdetr.errors import InputError
from rfdetr.weights.download import find_weights
from rfdetr.weights.names import is_native, to_official

_ALLOWED = [argparse.Namespace, types.SimpleNamespace]  # what the published engine pickles beside tensors
_FORBIDDEN = re.compile(r"(?:unsupported GLOBAL|GLOBAL|class|function) ['`]?([\w.]+)['`]? (?:was not an allowed|whose module)")
_PREFIXES = ("_orig_mod.", "module.", "model.")
_DETAILS = {"model_name": str, "model_config": dict, "metrics": dict, "best_total_source": str, "label_map": object}
_LONG = 1000  # characters
_NO_WEIGHTS = ("_extra_state", "n_averaged")  # the latter counts what torch's AveragedModel has averaged
_READ = "_read_from"  # marks what read_checkpoint returned, so that it is not taken apart twice


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read any known checkpoint onto the CPU, published ones also by their name alone, and return it in one form.

    Returns:
        dict with `model` and `ema_model` (None where there is none): tensors under the published names; `args`: dict;
        and, None where the file does not say: model_name, model_config, label_map, class_names (label -> name), epoch, step,
        metrics, best_total_source.
        `load_weights` and `model_config_from_checkpoint` take it as it is.
    """
    found = find_weights(path)
    return normalise(open_plain(found), str(found))


def normalise(content: Any, origin: str) -> dict[str, Any]:
    """Bring what a checkpoint file holds into the form that `read_checkpoint` describes."""
    if isinstance(content, dict) and _READ in content:
        return content
    if not isinstance(content, dict):
        raise InputError(f"{origin}: holds a {type(content).__name__}, not a checkpoint's dict; {_WANTED}")
    args = plain_args(content)
    ema = _find_ema(content)
    return {
        _READ: origin,
        "model": _clean(_find_weights(content, origin), origin),
        "ema_model": None if ema is None else _clean(ema, origin),
        "args": args,
        "class_names": _class_names(content.get("class_names", args.get("class_names")), origin),
        "epoch": _epoch(content),
        "step": _whole_number(content.get("step"), content.get("global_step")),
        **{name: value if isinstance(value := content.get(name, args.get(name)), kind) else None
           for name, kind in _DETAILS.items()},
    }


def origin_of(content: dict[str, Any]) -> str:
    """Return what to call this checkpoint in a message."""
    return content[_READ]


_WANTED = "expected a dict with the weights under 'model' (or 'state_dict')"


def open_plain(path: Path) -> Any:
    """Return the file's content; refuse what is damaged or would run code."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"checkpoint {path}: {what}")
    if path.stat().st_size == 0:
        raise InputError(f"checkpoint {path}: the file is empty; copy or download it again")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise InputError(f"checkpoint {path}: damaged, the checksum of its record {damaged!r} is wrong; get it again")
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # bytes of unknown origin: the unpickler may raise anything
        raise InputError(f"checkpoint {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Say in a sentence why a file was not read."""
    text = str(error)
    if found := _FORBIDDEN.search(text):
        return (f"refused, because it holds {found[1]!r} and not only tensors and plain values, so that reading it could run "
                "code. If you trust it, open it where it was made and save {'model': its state dict} again")
    detail = text.rsplit("WeightsUnpickler error:", 1)[-1].strip() or type(error).__name__  # torch's own advice comes first
    return ("not a readable checkpoint: truncated, or not written by torch.save "
            f"({detail.splitlines()[0].split('. ')[0][:200]}); copy or download it again")


def plain_args(content: dict[str, Any]) -> dict[str, Any]:
    """Return the training arguments as a dict, whether they were a Namespace, a dict or not there."""
    args = content.get("args")
    if args is None:
        args = content.get("hyper_parameters")
    if isinstance(args, tuple(_ALLOWED)):
        args = vars(args)
    return {name: value for name, value in args.items() if not isinstance(value, Tensor)} if isinstance(args, dict) else {}


def _class_names(names: Any, origin: str) -> dict[int, str] | None:
    """Return the names by label, which files have as a list, or as a dict in which a label may be text."""
    if not isinstance(names, (dict, list, tuple)) or not names:
        return None
    if len(names) > MAX_CLASSES:
        raise InputError(f"{origin}: has {len(names)} class_names; at most {MAX_CLASSES} are possible")
    rows = names.items() if isinstance(names, dict) else enumerate(names)
    try:
        found = {int(label): "" if name is None else str(name) for label, name in rows
                 if name is None or type(name) in (str, int, float)}
    except (TypeError, ValueError, OverflowError, RuntimeError):  # of whatever is there in place of a label
        found = {}
    if len(found) < len(names) or min(found) < 0:
        raise InputError(f"{origin}: its class_names are not a list of names, nor a dict of labels and names")
    return dict(sorted(found.items()))


def _epoch(content: dict[str, Any]) -> int | None:
    """Return the epoch; stripped files of Lightning have it in the state of their loops only."""
    place: Any = content
    for key in ("loops", "fit_loop", "epoch_progress", "current", "completed"):
        place = place.get(key) if isinstance(place, dict) else None
    return _whole_number(content.get("epoch"), place)


def _whole_number(*candidates: Any) -> int | None:
    """Return the first that is one; a file may hold anything."""
    return next((value for value in candidates if type(value) is int and 0 <= value < 2**63), None)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, Tensor) for entry in value.values())


def _find_weights(content: dict[str, Any], origin: str) -> dict[str, Any]:
    for candidate in (content.get("model"), content.get("state_dict"), content):
        if _is_state_dict(candidate):
            return candidate
    keys = ", ".join(map(str, list(content)[:10])) or "none"
    raise InputError(f"{origin}: no weights in it (its keys: {keys}); {_WANTED}")


def _find_ema(content: dict[str, Any]) -> dict[str, Any] | None:
    """Return the averaged weights that a file carries beside the trained ones."""
    candidates = [content.get("ema_model"), content.get("legacy_ema_state_dict")]
    callbacks = content.get("callbacks")
    if isinstance(callbacks, dict):  # Lightning keeps them in the state of the callback that averages
        candidates += [state.get("average_model_state_dict") for state in callbacks.values() if isinstance(state, dict)]
    for candidate in candidates:
        if not isinstance(candidate, dict):
            continue
        for inner in (candidate, *candidate.values()):  # the state itself, or a dict that wraps it
            if _is_state_dict(inner):
                return inner
    return None


def _clean(state: dict[str, Any], origin: str) -> dict[str, Tensor]:
    """Drop what is not a tensor, strip wrappers from the names and return the published names."""
    cleaned = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or name.endswith(_NO_WEIGHTS):
            continue
        if value.layout != torch.strided or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise InputError(f"{origin}: its tensor {name[:200]!r} is not stored in full; save its contiguous() again")
        name = name.replace("._orig_mod.", ".")
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        cleaned[name] = value
    if long := next((name for name in cleaned if len(name) > _LONG), None):
        raise InputError(f"{origin}: holds a tensor with a name of {len(long)} characters; that is no model's")
    if lora := next((name for name in cleaned if "base_model.model." in name or ".lora_" in name), None):
        raise InputError(f"{origin}: its weights are split into a base and LoRA adapters ({lora}); merge them where it was "
                         "trained (merge_and_unload() of peft) and save the merged model")
    if not is_native(list(cleaned)):
        return cleaned
    try:
        return to_official(cleaned)
    except (IndexError, RuntimeError, ValueError) as error:  # tensors without rows, names without a number
        raise InputError(f"{origin}: its tensors have the names of a detector of this package but not their shapes ({error})"
                         ) from error
