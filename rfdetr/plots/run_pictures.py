"""The pictures of a run, each drawn into a file: what `hooks.PlotsHook` is given."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from rfdetr.evaluation.metrics import DetectionMetrics
from rfdetr.nested_tensor import NestedTensor, collate
from rfdetr.plots.charts import plot_confusion, plot_curves, plot_pr_curves
from rfdetr.plots.pictures import display_size, prediction_picture, training_picture


class RunPictures:
    """Draws samples, detections and metrics of one data set.

    Args:
        class_names: name of label 0, 1, …
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    def display_size(self, orig_size: Tensor) -> tuple[int, int]:
        """Return (h, w) at which a picture of this original size is drawn; detections are wanted in its pixels."""
        return display_size(orig_size)

    def batch(self, samples: Sequence[tuple[Tensor, dict]]) -> NestedTensor:
        """Return samples (image (3, h, w), target) as the model takes them."""
        return collate(samples)[0]

    def samples(self, samples: Sequence[tuple[Tensor, dict]], path: Path) -> None:
        """Draw training samples (image (3, h, w), target) with their boxes."""
        training_picture(samples, class_names=self.class_names).save(path, compress_level=1)

    def predictions(
        self, samples: Sequence[tuple[Tensor, dict]], results: Sequence[dict], path: Path, *, score_threshold: float
    ) -> None:
        """Draw what is there beside what was found, in pixels of `display_size`."""
        picture = prediction_picture(samples, results, class_names=self.class_names, score_threshold=score_threshold)
        picture.save(path, compress_level=1)

    def pr_curves(self, metrics: DetectionMetrics, path: Path) -> None:
        """Plot precision over recall of every class."""
        plot_pr_curves(metrics.pr_curves(), path)

    def confusion(self, metrics: DetectionMetrics, path: Path, *, score_threshold: float) -> None:
        """Plot which classes are taken for which, with the detections from `score_threshold` on."""
        plot_confusion(metrics.confusion(score_threshold), self.class_names, path, score_threshold=score_threshold)

    def curves(self, metrics_file: Path, path: Path) -> None:
        """Plot losses and metrics over steps, from metrics.jsonl."""
        plot_curves(metrics_file, path)
