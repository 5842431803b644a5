"""Data: reading data sets, label maps, augmentation, samplers and loaders."""

from typing import TYPE_CHECKING

from rfdetr.lazy import lazy_names

if TYPE_CHECKING:
    from rfdetr.data.dataset import DetectionDataset
    from rfdetr.data.formats import available_splits, detect_format
    from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD, preprocess, read_image
    from rfdetr.data.label_map import Category, LabelMap
    from rfdetr.data.loader import DetectionLoader, eval_loader, train_loader
    from rfdetr.data.multi_scale import multi_scale_sizes
    from rfdetr.data.opening import open_dataset
    from rfdetr.data.recipes import RECIPES, Recipe
    from rfdetr.data.samplers import EvalSampler, SampleKey, TrainBatchSampler
else:  # a type checker would take any name for one of these
    __all__, __getattr__, __dir__ = lazy_names(__name__, {
        "dataset": ("DetectionDataset",),
        "formats": ("available_splits", "detect_format"),
        "images": ("IMAGENET_MEAN", "IMAGENET_STD", "preprocess", "read_image"),
        "label_map": ("Category", "LabelMap"),
        "loader": ("DetectionLoader", "eval_loader", "train_loader"),
        "multi_scale": ("multi_scale_sizes",),
        "opening": ("open_dataset",),
        "recipes": ("RECIPES", "Recipe"),
        "samplers": ("EvalSampler", "SampleKey", "TrainBatchSampler"),
    })
