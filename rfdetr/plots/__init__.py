"""Pictures and charts of a run."""

from rfdetr.plots.run_pictures import RunPictures

__all__ = ["RunPictures"]
