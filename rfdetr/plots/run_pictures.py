"""The pictures of a run, each drawn into a file: what `hooks.PlotsHook` is given."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rfdetr.evaluation.coco_engine import Outcome
from rfdetr.evaluation.metrics import DetectionMetrics
from rfdetr.plots.charts import plot_confusion, plot_curves, plot_pr_curves
from rfdetr.plots.pictures import display_size, displayable, draw_detections, draw_truth, picture_grid, training_picture
from rfdetr.run_length import read_counts

NUM_WORST, NUM_OTHERS = 6, 3  # images of val_predictions.png


class RunPictures:
    """Draws samples, detections and metrics of one data set.

    Args:
        class_names: name of label 0, 1, …
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    def samples(self, dataset: Any, keys: Sequence[Any], path: Path, *, title: str = "") -> None:
        """Draw training samples, (image (3, h, w), target) of a key each, with their boxes."""
        names = [f"{place + 1}: {image_name(dataset, getattr(key, 'index', key))}" for place, key in enumerate(keys)]
        picture = training_picture([dataset[key] for key in keys], class_names=self.class_names, headings=names, title=title)
        picture.save(path, compress_level=1)

    def predictions(self, metrics: DetectionMetrics, dataset: Any, path: Path, *, score_threshold: float, model: str) -> None:
        """Draw the truth of some images beside what was found: first those with most errors, then some of the others.

        Args:
            metrics: of the evaluation of `dataset`, which gives the image (3, h, w) and target of an index.
            model: what has found it, for the title.
        """
        outcomes = sorted(metrics.outcomes(score_threshold), key=lambda each: (-each.num_errors, int(each.right.sum())))
        places = list(range(len(outcomes)))
        if len(places) > NUM_WORST + NUM_OTHERS:
            places = places[:NUM_WORST] + np.linspace(NUM_WORST, len(places) - 1, NUM_OTHERS + 1).astype(int)[1:].tolist()
        tiles, headings = [], []
        for place in places:
            outcome = outcomes[place]
            image, target = dataset[outcome.image.place]
            if outcome.image.image_id not in (None, int(target["image_id"])):
                raise ValueError(f"image {outcome.image.place} of the data set is not the one that was evaluated there")
            size = display_size(target["orig_size"])
            notes = ["missed" if is_missed else "" for is_missed in outcome.missed]
            tiles += [draw_truth(image, target, size, self.class_names, notes), self._found(image, target, outcome, size)]
            rank = f"{place + 1} of {len(outcomes)}: {image_name(dataset, outcome.image.place)}"
            headings += [f"{rank}, {len(outcome.missed) or 'none'} annotated", _summary(outcome)]
        title = (f"{model}, score {score_threshold:.2f} or better; pairs of truth (left) and prediction (right), the images with "
                 "the most errors first")
        picture_grid(tiles, 6, headings, title).save(path, compress_level=1)

    def _found(self, image: Tensor, target: dict[str, Tensor], outcome: Outcome, size: tuple[int, int]) -> Tensor:
        """Draw the detections that count on an image, at (h, w) `size`."""
        found = outcome.image.detections
        scale = torch.tensor([size[1], size[0]] * 2) / target["orig_size"].flip(0).repeat(2)
        masks = None if found.masks is None else torch.from_numpy(_decoded(found.masks, size))
        return draw_detections(displayable(image, size), torch.from_numpy(found.boxes) * scale, found.labels.tolist(),
                               class_names=self.class_names, scores=torch.from_numpy(found.scores), masks=masks,
                               notes=["wrong" if is_wrong else "" for is_wrong in outcome.wrong])

    def pr_curves(self, metrics: DetectionMetrics, path: Path, *, model: str) -> None:
        """Plot precision over recall of every class."""
        plot_pr_curves(metrics.pr_curves(), self.class_names, path, model=model)

    def confusion(self, metrics: DetectionMetrics, path: Path, *, score_threshold: float, model: str) -> None:
        """Plot which classes are taken for which, with the detections from `score_threshold` on."""
        plot_confusion(metrics.confusion(score_threshold), self.class_names, path, score_threshold=score_threshold, model=model)

    def curves(self, metrics_file: Path, path: Path, *, steps_per_epoch: int) -> None:
        """Plot losses and metrics over epochs, from metrics.jsonl."""
        plot_curves(metrics_file, path, steps_per_epoch=steps_per_epoch, class_names=self.class_names)


def image_name(dataset: Any, index: int) -> str:
    """Return the file name of an image, or its place in a data set without files."""
    return dataset.image_path(index).name if hasattr(dataset, "image_path") else f"image {index}"


def _summary(outcome: Outcome) -> str:
    """Say in words what became of an image."""
    counts = {"right": outcome.right, "wrong": outcome.wrong, "missed": outcome.missed}
    said = [f"{int(which.sum())} {name}" for name, which in counts.items() if which.any()]
    if not len(outcome.image.detections):
        said = ["nothing found", *(said or ["and nothing annotated"])]
    return ", ".join(said)


def _decoded(masks: Sequence[dict], size: tuple[int, int]) -> np.ndarray:
    """Run lengths -> masks (n, h, w) bool of another size, nearest pixel."""
    decoded = np.zeros((len(masks), *size), dtype=bool)
    for place, mask in enumerate(masks):
        height, width = mask["size"]
        counts = read_counts(mask["counts"])
        pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
        decoded[place] = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.NEAREST))
    return decoded
