"""Where a run computes."""

import torch

from engine.device import resolve_device
from engine.precision import resolve_precision
from rfdetr.training.command_line import bad_input
from rfdetr.training.config import RunConfig


def choose_device(config: RunConfig) -> torch.device:
    """Return the device of a run, once it is certain that it is there and has the precisions that the run asks for."""
    with bad_input("train."):
        device = resolve_device(config.train.device)
        resolve_precision(config.train.precision, device)
    with bad_input("eval."):
        resolve_precision(config.eval.precision, device)
    return device
