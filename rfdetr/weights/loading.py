"""Load a checkpoint's weights into a detector, whoever wrote it, and report what happened."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rfdetr.data.label_map import LabelMap
from rfdetr.errors import InputError
from rfdetr.weights.adapt import (
    QUERY_TABLES,
    count_groups,
    position_table,
    query_layout,
    query_table,
)
from rfdetr.weights.class_head import HeadPlan, plan_head
from rfdetr.weights.names import POSITION_TABLE, UNUSED, official_state_dict, strip_wrappers, to_native
from rfdetr.weights.payload import matching_variants
from rfdetr.weights.reading import normalise, origin_of, read_checkpoint
from rfdetr.weights.tensor_facts import not_a_detector, sizes_of, tensor_facts

logger = logging.getLogger(__name__)

_ENOUGH = 0.9  # share of the model's tensors that a file must fill


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did; all names are those of the published layout."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # of the model, not filled from the file
    unexpected: list[str] = field(default_factory=list)  # of the file, with no place in the model
    resized: list[str] = field(default_factory=list)  # among the loaded: with other rows, another order or grid than in the file
    label_map: dict[str, Any] | None = None  # plain values, as the file holds it

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for word in ("resized", "missing", "unexpected"):
            if names := getattr(self, word):
                parts.append(f"{len(names)} {word} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
        return ", ".join(parts)


def load_weights(
    model: nn.Module, source: str | os.PathLike | dict[str, Any], *,
    ema: bool = False, resize_head: bool = False, allow_partial: bool = False, label_map: LabelMap | None = None,
) -> LoadReport:
    """Fill the model from a checkpoint file, or from what such a file holds; the model keeps its dtype and device.

    Args:
        source: a path, a published name such as rf-detr-nano.pth, the dict in such a file, or what `read_checkpoint` returned.
        ema: take the averaged weights that the file holds beside the trained ones.
        resize_head: fit a class head for other classes: take over the rows of the classes that have the same names, and leave
            the others as they are in the model. Where names are not known on both sides: keep the first rows, or repeat them.
        allow_partial: load what fits, also if that is little or of another architecture.
        label_map: the classes that the model is for. The same ones in another order are put in order; without `resize_head`
            others are refused. None takes labels for granted and looks at the number of logits only.

    Raises:
        InputError: the file cannot be read, or was made for another model; the model is then unchanged.
    """
    content = normalise(source, "the given checkpoint") if isinstance(source, dict) else read_checkpoint(source)
    origin, state = origin_of(content), _choose(content, ema)
    own = official_state_dict(model)
    if not allow_partial:
        _check_architecture(content, state, own)
    plan = plan_head(content, state, own, label_map, resize=resize_head)
    taken = _same_shape(_fit(content, state, own, plan), own, origin, allow_partial)
    wanted = [name for name in own if name not in UNUSED]
    report = LoadReport(
        loaded=[name for name in wanted if name in taken],
        missing=[name for name in wanted if name not in taken],
        unexpected=[name for name in state if name not in taken and name not in UNUSED],
        resized=[name for name in taken if taken[name] is not state[name]],
        label_map=content["label_map"],
    )
    if len(report.loaded) < _ENOUGH * len(wanted) and not allow_partial:
        raise InputError(f"{origin}: fills only {len(report.loaded)} of the model's {len(wanted)} tensors; missing: "
                         f"{', '.join(report.missing[:3])}, ... Pass allow_partial=True if that is meant")
    merged = {name: taken[name].to(tensor) if name in taken else tensor for name, tensor in own.items()}
    model.load_state_dict({name: to_native(strip_wrappers(name), merged) for name in model.state_dict()})
    if plan.remark:
        logger.info("%s: %s", origin, plan.remark)
    logger.log(logging.WARNING if report.missing or report.unexpected else logging.INFO, "%s: %s", origin, report)
    return report


def average_can_continue(model: nn.Module, source: dict[str, Any], *, label_map: LabelMap | None = None) -> bool:
    """Tell whether a run that starts from these weights may go on with the average (EMA) that the file holds beside them.

    It may not where the class head gets fresh rows, whose average nobody has, nor where the weights are an average themselves:
    then that is where the run starts, and a new average with it. The arguments are those of `load_weights`.
    """
    content = normalise(source, "the given checkpoint")
    state, average = content["model"], content["ema_model"]
    if average is None or content["best_total_source"] == "ema":
        return False
    if state.keys() == average.keys() and all(torch.equal(state[name], average[name]) for name in state):
        return False
    return plan_head(content, state, official_state_dict(model), label_map, resize=True).keeps_all


def _choose(content: dict[str, Any], ema: bool) -> dict[str, Tensor]:
    if not ema:
        return content["model"]
    if content["ema_model"] is None:
        raise InputError(f"{origin_of(content)}: holds no averaged (EMA) weights beside the trained ones. In a "
                         "checkpoint_best_ema.pth they are the model itself: load it without asking for ema")
    return content["ema_model"]


def _check_architecture(content: dict[str, Any], state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Refuse weights of another architecture before anything is resized."""
    origin, args = origin_of(content), content["args"]
    theirs, ours = tensor_facts(state), tensor_facts(own)
    if args.get("use_grouppose_keypoints") or any("keypoint" in name for name in state):
        raise InputError(f"{origin}: a keypoint model, which is not supported; use detection or segmentation weights")
    if theirs is None or ours is None:
        raise InputError(not_a_detector(origin, state))
    differences = theirs.differences(ours)
    for name in ("segmentation_head", "patch_size"):  # what the file says of itself counts as well
        said = args.get(name)
        if said is not None and said != getattr(ours, name) and getattr(theirs, name) == getattr(ours, name):
            differences.append(f"{name} {said} by the file's args, {getattr(ours, name)} in the model")
    if differences:
        variants = matching_variants(theirs, sizes_of(state).get("positional_encoding_size"))
        raise InputError(f"{origin}: made for another architecture ({' or '.join(variants) or 'no known variant'}): "
                         f"{'; '.join(differences)}. Choose the model.variant that the file was made for, or another file")


def _fit(
    content: dict[str, Any], state: dict[str, Tensor], own: dict[str, Tensor], plan: HeadPlan
) -> dict[str, Tensor]:
    """Resize class heads, query tables and the position table to the model's sizes; leave out what is not the model's."""
    origin, groups = origin_of(content), count_groups(own)
    fitted = {}
    for name, tensor in state.items():
        if name in UNUSED or name not in own:
            continue
        if name in QUERY_TABLES and tensor.ndim and tensor.shape[:1] != own[name].shape[:1]:
            layout = query_layout(content["args"], content["model_config"], len(tensor))
            tensor = query_table(name, tensor, own[name].shape[0], groups, layout, origin)
        elif name == POSITION_TABLE:
            tensor = position_table(tensor, own[name].shape[1], origin)
        fitted[name] = plan.fit(name, tensor, own[name])
    return fitted


def _same_shape(
    fitted: dict[str, Tensor], own: dict[str, Tensor], origin: str, allow_partial: bool
) -> dict[str, Tensor]:
    """Leave out tensors of another shape than the model's where that is allowed, else refuse them."""
    wrong = {name for name in fitted if fitted[name].shape != own[name].shape}
    if wrong and not allow_partial:
        name = min(wrong)
        raise InputError(f"{origin}: {len(wrong)} tensors have another shape than the model's, the first: {name} "
                         f"{tuple(fitted[name].shape)}, expected {tuple(own[name].shape)}")
    return {name: tensor for name, tensor in fitted.items() if name not in wrong}
