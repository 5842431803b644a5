"""Checkpoints: reading every kind of RF-DETR file, and writing files that the published package opens."""

from rfdetr.weights.class_head import checkpoint_classes
from rfdetr.weights.dinov2 import load_backbone_weights
from rfdetr.weights.download import find_weights, published_name
from rfdetr.weights.loading import LoadReport, average_can_continue, load_weights
from rfdetr.weights.names import official_state_dict
from rfdetr.weights.payload import checkpoint_payload, model_config_from_checkpoint
from rfdetr.weights.reading import read_checkpoint

__all__ = [
    "LoadReport",
    "average_can_continue",
    "checkpoint_classes",
    "checkpoint_payload",
    "find_weights",
    "load_backbone_weights",
    "load_weights",
    "model_config_from_checkpoint",
    "official_state_dict",
    "published_name",
    "read_checkpoint",
]
