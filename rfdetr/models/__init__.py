"""The detector's modules. They take plain values; `rfdetr.build` makes them from a config."""

from rfdetr.models.detector import RFDETR
from rfdetr.models.postprocess import PostProcess

__all__ = ["RFDETR", "PostProcess"]
