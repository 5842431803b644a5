"""RF-DETR in plain PyTorch: the detector, its losses, data, metrics and checkpoints, for anybody's training loop."""

from rfdetr.build import build_criterion, build_model, build_postprocess
from rfdetr.config import VARIANTS, ModelConfig
from rfdetr.data import LabelMap
from rfdetr.errors import InputError
from rfdetr.losses.config import LossConfig
from rfdetr.nested_tensor import NestedTensor
from rfdetr.weights import LoadReport, checkpoint_payload, load_weights, official_state_dict

__all__ = [
    "VARIANTS",
    "InputError",
    "LabelMap",
    "LoadReport",
    "LossConfig",
    "ModelConfig",
    "NestedTensor",
    "build_criterion",
    "build_model",
    "build_postprocess",
    "checkpoint_payload",
    "load_weights",
    "official_state_dict",
]
