"""Data: reading data sets, label maps, augmentation, samplers and loaders."""

from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.formats import available_splits, detect_format
from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD, preprocess, read_image
from rfdetr.data.label_map import Category, LabelMap
from rfdetr.data.loader import DetectionLoader, eval_loader, train_loader
from rfdetr.data.opening import open_dataset
from rfdetr.data.recipes import RECIPES, Recipe
from rfdetr.data.samplers import EvalSampler, SampleKey, TrainBatchSampler, multi_scale_sizes

__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "RECIPES", "Category", "DetectionDataset", "DetectionLoader", "EvalSampler", "LabelMap",
    "Recipe", "SampleKey", "TrainBatchSampler", "available_splits", "detect_format", "eval_loader", "multi_scale_sizes",
    "open_dataset", "preprocess", "read_image", "train_loader",
]
