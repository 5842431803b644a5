"""Parameter groups with layer-wise learning rates, learning rate schedules, and torch's objects made of them."""

import difflib
import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from rfdetr.errors import InputError
from rfdetr.extras import import_named
from rfdetr.models.freeze import find_parameters
from rfdetr.schedules import SCHEDULES, lr_multiplier, schedule_arguments

ENCODER_PREFIX = "backbone.encoder."
DECODER_PREFIX = "transformer.decoder."
EMBEDDINGS = ("cls_token", "reg_token", "mask_token", "pos_embed", "patch_embed")


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    lr_encoder: float,
    lr_vit_layer_decay: float,
    lr_component_decay: float,
    weight_decay: float,
    rules: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Sort the trained parameters by learning rate and weight decay; the first group is the heads'.

    Heads, projector and query embeddings train at ``lr``, the decoder at ``lr * lr_component_decay``, the ViT at
    ``lr_encoder * lr_component_decay**2``, times ``lr_vit_layer_decay`` for every block from the last one down.

    Args:
        rules: ``{"match": pattern, "lr_scale": factor, "weight_decay": value}``, on top of these, for the parameters that the
            pattern fits (`find_parameters`). Where several fit, the factors are multiplied and the last weight decay holds.
    """
    ruled = [(set(find_parameters(model, rule["match"], "optim.groups")), rule) for rule in rules]
    backbone: Any = model.backbone
    depth = backbone.out_feature_indexes[-1] + 1  # the published count, one too many for most variants
    parts: dict[str, dict[tuple[float, float], list[nn.Parameter]]] = {
        "other": {(lr, weight_decay): []}, "encoder": {}, "decoder": {}
    }
    for whole_name, parameter in model.named_parameters():
        name = whole_name
        if not parameter.requires_grad:
            continue
        if name.startswith(ENCODER_PREFIX):
            name = name.removeprefix(ENCODER_PREFIX)
            factor = lr_vit_layer_decay ** _layers_above(name, depth) * lr_component_decay**2
            part, key = "encoder", (lr_encoder * factor, 0.0 if _is_undecayed(name) else weight_decay)
        elif name.startswith(DECODER_PREFIX):
            part, key = "decoder", (lr * lr_component_decay, weight_decay)
        else:
            part, key = "other", (lr, weight_decay)
        for names, rule in ruled:
            if whole_name in names:
                key = (key[0] * rule.get("lr_scale", 1.0), rule.get("weight_decay", key[1]))
        parts[part].setdefault(key, []).append(parameter)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for found in parts.values():
        for key, parameters in found.items():
            groups.setdefault(key, []).extend(parameters)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items() if members]


def _layers_above(name: str, depth: int) -> int:
    """How many times the layer decay applies to a parameter of the encoder."""
    if block := re.match(r"blocks\.(\d+)\.", name):
        return depth - int(block[1])
    return depth + 1 if name.startswith(EMBEDDINGS) else 0


def _is_undecayed(name: str) -> bool:
    """Biases, norms and embeddings of the encoder; its layer scales (``gamma``) decay, as in the published recipe."""
    return "bias" in name or "norm" in name or name.startswith(EMBEDDINGS)


def build_optimizer(
    groups: Sequence[dict[str, Any]],
    optimizer: str = "AdamW",
    *,
    init_args: Mapping[str, Any] | None = None,
    fused: bool | None = None,
) -> Optimizer:
    """Make an optimizer of the groups of `param_groups`.

    Args:
        optimizer: a class of torch.optim by its name, or any class by its import path ("package.module.Class").
        init_args: further arguments of the class; learning rates and weight decays come from the groups.
        fused: use the fused kernels (default: where the class and the parameters' device have them).
    """
    if not groups:
        raise InputError("optim: the model has no parameter to train; unfreeze a part of it")
    cls = optimizer_class(optimizer)
    init_args = dict(init_args or {})
    known = inspect.signature(cls).parameters
    if fused is None:
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        is_wanted = "fused" in known and not {"foreach", "differentiable"} & set(init_args)
        fused = is_wanted and all(_has_fused(cls, device, init_args) for device in devices)
    if fused:
        init_args.setdefault("fused", True)
    groups = [dict(group) for group in groups]
    if "weight_decay" not in known:  # such an optimizer would carry the value along without using it
        for group in groups:
            group.pop("weight_decay", None)
    return _construct(cls, "optim.optimizer", groups, init_args)


def _has_fused(cls: type[Optimizer], device: str, init_args: Mapping[str, Any]) -> bool:
    """Tell whether the class has fused kernels for a device, which it says in its first step; Adagrad has them on CPUs alone."""
    probe = nn.Parameter(torch.zeros(1, device=device))
    probe.grad = torch.zeros_like(probe)
    try:
        cls([probe], **{**init_args, "fused": True}).step()
    except Exception:  # wrong arguments are reported when it is made in earnest
        return False
    return True


def build_lr_scheduler(
    optimizer: Optimizer,
    schedule: str = "step",
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    lr_drop: int = 100,
    min_factor: float = 0.0,
    init_args: Mapping[str, Any] | None = None,
) -> LRScheduler:
    """Make a scheduler that is stepped after every optimizer step.

    Args:
        schedule: one of `SCHEDULES` as in `lr_multiplier`, with its arguments in ``init_args``; or a class of
            torch.optim.lr_scheduler by its name, or any class by its import path, given ``init_args`` (counted in steps) and
            a linear warm-up before it.
    """
    if schedule in SCHEDULES:
        arguments = schedule_arguments(schedule, init_args or {}) if schedule != "plateau" else {}
        multiplier = functools.partial(
            lr_multiplier, schedule=schedule, total_steps=total_steps, steps_per_epoch=steps_per_epoch,
            warmup_epochs=warmup_epochs, lr_drop=lr_drop, min_factor=min_factor, **arguments,
        )
        return LambdaLR(optimizer, multiplier)
    scheduler = _construct(scheduler_class(schedule), "optim.schedule", optimizer, dict(init_args or {}))
    warmup_steps = int(steps_per_epoch * warmup_epochs)
    if warmup_steps < 1:
        return scheduler
    warmup = LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps)
    return SequentialLR(optimizer, [warmup, scheduler], milestones=[warmup_steps])


def optimizer_class(name: str) -> type[Optimizer]:
    """Find an optimizer as `build_optimizer` does."""
    return _find_class(name, torch.optim, Optimizer, "optim.optimizer")


def scheduler_class(name: str) -> type[LRScheduler]:
    """Find a scheduler that is a class, as `build_lr_scheduler` does."""
    cls: type[LRScheduler] = _find_class(name, torch.optim.lr_scheduler, LRScheduler, "optim.schedule")
    if issubclass(cls, ReduceLROnPlateau):
        raise InputError(
            "optim.schedule: ReduceLROnPlateau follows a metric, but schedules here advance with every optimizer step, "
            "which has none; use 'plateau', which acts after evaluations, or another class of torch.optim.lr_scheduler"
        )
    return cls


def _find_class(name: str, package: Any, base: type, field: str) -> type[Any]:
    """Find a class by its name in ``package`` (in any case) or by its import path."""
    if "." in name:
        found = import_named(name, field)
    else:
        classes = {key.lower(): value for key, value in vars(package).items() if not key.startswith("_")}
        found = classes.get(name.lower())
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise InputError(f"{field}: {name!r} is no class of {package.__name__} and no import path of a {base.__name__}"
                         f"{_nearest(name, package, base)}")
    return found


def _nearest(name: str, package: Any, base: type) -> str:
    known = [key for key, value in vars(package).items() if inspect.isclass(value) and issubclass(value, base)]
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _construct(cls: type, field: str, first: Any, init_args: dict[str, Any]) -> Any:
    try:
        return cls(first, **init_args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{field}: {cls.__name__} refuses its arguments {init_args}: {error}") from error
