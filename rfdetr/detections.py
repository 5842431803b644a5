"""What was found on one picture, as arrays; for COCO's results, for supervision, and drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from rfdetr.data.label_map import LabelMap
from rfdetr.errors import InputError
from rfdetr.evaluation.records import encode_masks
from rfdetr.extras import import_extra
from rfdetr.plots.pictures import draw_detections

if TYPE_CHECKING:
    from supervision import Detections


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a detector found on one picture, best first."""

    boxes: np.ndarray  # (k, 4) float32, xyxy in pixels of the (upright) picture
    scores: np.ndarray  # (k,) float32, 0 to 1
    labels: np.ndarray  # (k,) int64, of the model
    masks: np.ndarray | None  # (k, h, w) bool, of segmentation models
    label_map: LabelMap
    file_name: str | None = None  # of a file; in a folder, relative to it
    pixels: Callable[[], Tensor] | None = field(default=None)  # gives the picture, (3, h, w) uint8

    @property
    def names(self) -> np.ndarray:
        """Names of the classes, (k,) str."""
        names = self.label_map.names
        return np.array([names[label] for label in self.labels.tolist()], dtype=str)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names.tolist()).most_common()) or "nothing"
        return f"<Prediction: {counts}{f' on {self.file_name}' if self.file_name else ''}>"

    def to_coco(self, image_id: int = 1, file_name: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of a COCO results file, with names for people to read and masks as run lengths (RLE)."""
        file_name = self.file_name if file_name is None else file_name
        head = {"image_id": image_id} | ({} if file_name is None else {"file_name": file_name})
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        rows = [{**head, "category_id": self.label_map.category_of(label), "category_name": name, "bbox": box, "score": score}
                for label, name, box, score in zip(*(x.tolist() for x in (self.labels, self.names, boxes, self.scores)))]
        if self.masks is not None:
            for row, mask in zip(rows, encode_masks(torch.from_numpy(self.masks))):
                row["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        return rows

    def to_supervision(self) -> Detections:
        """Return supervision's `Detections`, with the names of the classes in its ``data``.

        Raises:
            InputError: the package is not installed.
        """
        supervision = import_extra("supervision", "supervision", "to_supervision: the package supervision")
        return supervision.Detections(xyxy=self.boxes, confidence=self.scores, class_id=self.labels, mask=self.masks,
                                      data={"class_name": self.names})

    def draw(self) -> Image.Image:
        """Return the picture with boxes, masks, names and scores drawn on a copy; a file is read again for it."""
        if self.pixels is None:
            raise InputError("draw: this prediction does not know its picture; give `pixels`, a function that returns it")
        boxes, scores = torch.from_numpy(self.boxes), torch.from_numpy(self.scores)
        masks = None if self.masks is None else torch.from_numpy(self.masks)
        return to_pil_image(draw_detections(self.pixels(), boxes, self.labels.tolist(), class_names=self.label_map.names,
                                            scores=scores, masks=masks))
