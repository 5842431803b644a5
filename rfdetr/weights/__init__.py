"""Checkpoints: reading every kind of RF-DETR file, and writing files that the published package opens."""

from rfdetr.weights.dinov2 import load_backbone_weights
from rfdetr.weights.download import find_weights
from rfdetr.weights.loading import LoadReport, load_weights
from rfdetr.weights.names import official_state_dict
from rfdetr.weights.payload import checkpoint_payload, model_config_from_checkpoint
from rfdetr.weights.reading import read_checkpoint

__all__ = [
    "LoadReport",
    "checkpoint_payload",
    "find_weights",
    "load_backbone_weights",
    "load_weights",
    "model_config_from_checkpoint",
    "official_state_dict",
    "read_checkpoint",
]


def published_name(variant):
    return None


def average_can_continue(content, label_map):
    return True
