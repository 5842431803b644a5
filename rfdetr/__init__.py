"""RF-DETR in plain PyTorch: trained detectors in use (`load`); and all that trains one, in anybody's training loop.

The names below are imported when they are first asked for, so that a command line answers before torch has been loaded.
"""

from typing import TYPE_CHECKING

from rfdetr.lazy import lazy_names

if TYPE_CHECKING:
    from rfdetr.build import build_criterion, build_model, build_postprocess
    from rfdetr.config import VARIANTS, ModelConfig
    from rfdetr.data import LabelMap
    from rfdetr.detections import Prediction
    from rfdetr.detector import Detector, load
    from rfdetr.errors import InputError
    from rfdetr.losses.config import LossConfig
    from rfdetr.nested_tensor import NestedTensor
    from rfdetr.weights import LoadReport, checkpoint_payload, load_weights, official_state_dict
else:  # a type checker would take any name for one of these
    __all__, __getattr__, __dir__ = lazy_names(__name__, {
        "build": ("build_criterion", "build_model", "build_postprocess"),
        "config": ("VARIANTS", "ModelConfig"),
        "data": ("LabelMap",),
        "detections": ("Prediction",),
        "detector": ("Detector", "load"),
        "errors": ("InputError",),
        "losses.config": ("LossConfig",),
        "nested_tensor": ("NestedTensor",),
        "weights": ("LoadReport", "checkpoint_payload", "load_weights", "official_state_dict"),
    })
