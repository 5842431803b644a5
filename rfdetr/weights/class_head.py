"""The classes of a checkpoint, and which rows of its class head a model for other classes takes over: those of the same name."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from rfdetr.data.class_matching import differences, is_nameless, names_decide, pair_by_name
from rfdetr.data.label_map import MAX_CLASSES, Category, LabelMap, show_classes
from rfdetr.errors import InputError
from rfdetr.weights.adapt import CLASS_BIAS
from rfdetr.weights.reading import normalise, origin_of

logger = logging.getLogger(__name__)

CLASS_HEADS = ("class_embed.", "transformer.enc_out_class_embed.")
COCO_CLASSES = {  # by their category ids, which have gaps: the labels of the official COCO weights
    id_: name for id_, name in enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}
_COCO = LabelMap(tuple(COCO_CLASSES), tuple(COCO_CLASSES.values()), raw=True)


@dataclass(frozen=True)
class HeadPlan:
    """Where the rows of a model's class heads come from."""

    rows: Tensor | None = None  # (K + 1,) rows of the file's heads, -1: the model's own, fresh row; None: the heads fit
    keeps_all: bool = True  # no row is fresh or that of another class
    remark: str = ""  # for the log

    def fit(self, name: str, tensor: Tensor, own: Tensor) -> Tensor:
        """Return one tensor (n, ...) of the file as the model needs it (K + 1, ...); other tensors than heads as they are."""
        if self.rows is None or not name.startswith(CLASS_HEADS) or not tensor.ndim or tensor.shape[1:] != own.shape[1:]:
            return tensor
        taken = tensor[self.rows.clamp(min=0)]
        is_fresh = (self.rows < 0).view(-1, *[1] * (tensor.ndim - 1))
        return torch.where(is_fresh, own.detach().to(taken), taken)


def checkpoint_classes(content: dict[str, Any]) -> LabelMap:
    """Return the classes of what `read_checkpoint` returned, as well as the file knows them; every file has an answer.

    Our files hold a label map, published ones of other data the names by label, and those of COCO nothing: there labels are
    COCO's category ids. Where nothing is known, labels are their own ids and names.

    Raises:
        InputError: the file's label map is none, or has more classes than its head.
    """
    content = normalise(content, "the given checkpoint")
    bias = content["model"].get(CLASS_BIAS)
    num_logits = min(bias.numel() if bias is not None else MAX_CLASSES, MAX_CLASSES)
    if content["label_map"] is not None:
        label_map = LabelMap.from_dict(content["label_map"])
        if max(label_map.labels.values()) >= num_logits:
            raise InputError(f"{origin_of(content)}: its label map has {len(label_map.category_ids)} classes, too many for its "
                             f"class head with {num_logits} logits")
        return label_map
    names = content["class_names"]
    if names and max(names) < num_logits and not (num_logits == 91 and tuple(names.values()) == _COCO.category_names):
        is_contiguous = list(names) == list(range(len(names)))
        return LabelMap.from_categories([Category(*row) for row in names.items()], names, raw=not is_contiguous)
    if names and max(names) >= num_logits:
        logger.warning("%s: its class_names are %d, its class head has only %d logits; they are left aside", origin_of(content),
                       len(names), num_logits)
    if num_logits == 91:
        return _COCO
    numbers = range(max(1, num_logits - 1))
    return LabelMap(tuple(numbers), tuple(map(str, numbers)))


def plan_head(
    content: dict[str, Any], state: dict[str, Tensor], own: dict[str, Tensor], label_map: LabelMap | None, *, resize: bool
) -> HeadPlan:
    """Decide which rows of a file's class heads go where in a model for the classes of ``label_map``.

    Raises:
        InputError: the classes are others and nobody asked to fit the heads to them.
    """
    if CLASS_BIAS not in state or CLASS_BIAS not in own:
        return HeadPlan()
    theirs, ours = state[CLASS_BIAS].numel(), own[CLASS_BIAS].numel()
    if label_map is None and theirs == ours:
        return HeadPlan()
    classes = checkpoint_classes(content)
    if label_map is None or not theirs or not names_decide(classes.categories, label_map.categories):
        return _by_position(origin_of(content), theirs, ours, classes, resize)
    if max(label_map.labels.values()) >= ours:
        raise InputError(f"the model has a class head with {ours} logits, too few for {len(label_map.category_ids)} classes: "
                         f"{show_classes(label_map.categories)}; raise num_classes")
    rows = _rows_by_name(classes, theirs, label_map, ours)
    is_new = {id_ for id_, label in label_map.labels.items() if rows[label] < 0}
    if not resize and (is_new or len(classes.category_ids) != len(label_map.category_ids)):
        lists = differences(classes, label_map, there="the checkpoint", here="the data set")
        raise InputError(f"{origin_of(content)}: was trained on other classes: {lists}. Set resize_head to true to take over the "
                         "rows of the class head that have the same names and start the others afresh, or use data of the same "
                         "classes")
    if theirs == ours and torch.equal(rows, torch.arange(ours)):
        return HeadPlan()
    taken, new = ([category for category in label_map.categories if (category.id in is_new) == which] for which in (False, True))
    remark = "rows of the class head are taken over by name: " + (show_classes(taken) or "none")
    return HeadPlan(rows, not is_new, remark + (f"; new: {show_classes(new)}" if new else ""))


def _by_position(origin: str, theirs: int, ours: int, classes: LabelMap, resize: bool) -> HeadPlan:
    """Take over the first rows, or all of them again and again, since nobody knows the names of both sides."""
    unknown = "the names of the classes are not known on both sides, so the rows of the class head keep their order"
    if theirs == ours:
        return HeadPlan(remark=unknown)
    what = f"keep the first {ours} rows" if ours < theirs else f"repeat the {theirs} rows"
    if not resize or not theirs:
        known = () if classes == _COCO or is_nameless(classes.category_names) else classes.category_names[:12]
        names = f", named {', '.join(known)}" if known else ""
        raise InputError(
            f"{origin}: its class head has {theirs} logits ({theirs - 1} classes{names}), the model's has {ours} "
            f"({ours - 1} classes). Set num_classes to {theirs - 1}, or resize_head to true to {what}"
        )
    return HeadPlan(torch.arange(ours) % theirs, False, f"{unknown}: to go from {theirs} to {ours} logits, {what}")


def _rows_by_name(classes: LabelMap, theirs: int, label_map: LabelMap, ours: int) -> Tensor:
    """Return the row of the file for each row of the model (ours,), -1 where it has none.

    Labels without a class (the last one, gaps of raw ids) get a row without a class, which has learned to be silent.
    """
    there, here = classes.labels, label_map.labels
    occupied = set(there.values())
    silent = sorted(set(range(theirs)) - occupied)
    rows = torch.full((ours,), -1, dtype=torch.int64)
    for label in set(range(ours)) - set(here.values()):
        rows[label] = label if label < theirs and label not in occupied else silent[-1] if silent else -1
    for their_id, our in pair_by_name(classes.categories, label_map.categories).items():
        if rows[here[our.id]] < 0:
            rows[here[our.id]] = there[their_id]
    return rows
