"""The tables of an evaluation, as text."""

from collections.abc import Mapping
from typing import Any

from rfdetr.evaluation.report import COCO_MAX_DETS

ROWS = (  # of COCO's table: title, name of the metric, IoU, area
    ("Average precision", "mAP_50_95", "0.50:0.95", "all"),
    ("Average precision", "mAP_50", "0.50", "all"),
    ("Average precision", "mAP_75", "0.75", "all"),
    ("Average precision", "mAP_small", "0.50:0.95", "small"),
    ("Average precision", "mAP_medium", "0.50:0.95", "medium"),
    ("Average precision", "mAP_large", "0.50:0.95", "large"),
    ("Average recall", "mAR_1", "0.50:0.95", "all"),
    ("Average recall", "mAR_10", "0.50:0.95", "all"),
    ("Average recall", "mAR", "0.50:0.95", "all"),
    ("Average recall", "mAR_small", "0.50:0.95", "small"),
    ("Average recall", "mAR_medium", "0.50:0.95", "medium"),
    ("Average recall", "mAR_large", "0.50:0.95", "large"),
)


def evaluation_tables(metrics: Mapping[str, Any], tables: Mapping[str, Any], split: str, max_dets: int) -> str:
    """Return COCO's twelve numbers of a split or a set, the run's own numbers, and a row for each class."""
    coco, what_it_is = tables["coco"], f"{split} split" if split in ("val", "test") else f"set {split}"
    lines = []
    for prefix, what in (("", "boxes"), ("segm_", "masks")):
        if f"{prefix}mAP_50_95" not in coco:
            continue
        lines.append(f"\n{what_it_is}, {what}, COCO's numbers (at most {COCO_MAX_DETS} detections)")
        for title, name, iou, area in ROWS:
            detections = {"mAR_1": 1, "mAR_10": 10}.get(name, COCO_MAX_DETS)
            lines.append(f"  {title:<18} IoU {iou:<9}  area {area:<6}  detections {detections:>3}  {coco[prefix + name]:.4f}")
        lines.append(f"  as in training (at most {max_dets}): mAP_50_95 {metrics[f'{split}/{prefix}mAP_50_95']:.6f}, "
                     f"mAP_50 {metrics[f'{split}/{prefix}mAP_50']:.6f}")
    best = ", ".join(f"{name} {metrics[f'{split}/{name}']:.4f}" for name in ("F1", "precision", "recall"))
    lines.append(f"\nbest {best} at confidence {metrics[f'{split}/F1_threshold']:.2f}")
    return "\n".join(lines + _class_table(tables["per_class"]))


def _class_table(classes: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not classes:
        return []
    width = max(len("class"), *map(len, classes))
    lines = ["\n" + "class".ljust(width) + "".join(column.rjust(11) for column in next(iter(classes.values())))]
    for name, row in classes.items():
        cells = (f"{value:>11}" if isinstance(value, int) else f"{value:>11.4f}" for value in row.values())
        lines.append(name.ljust(width) + "".join(cells))
    return lines
