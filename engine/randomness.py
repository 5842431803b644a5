"""Seeds and generator states: a run is a function of its seed, and a resumed run goes on where it was."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.distributed import rank


def seed_everything(seed: int) -> None:
    """Seed Python's and PyTorch's generators with `seed`; call it before the model is built so that its weights repeat."""
    random.seed(seed)
    torch.manual_seed(seed)


def seed_rank(seed: int) -> None:
    """Give every rank its own dropout stream; call it after the model is built (its weights must be equal everywhere)."""
    seed_everything(seed + rank())


def set_deterministic(enabled: bool) -> None:
    """Ask PyTorch for kernels that give the same bits every time (slower on CUDA); warn where there is none."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled, warn_only=True)
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cudnn.benchmark = False


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the states of this rank's generators, as plain values and tensors."""
    state = {"python": random.getstate(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Take back what `rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Leave the generators as they were: data loaders draw a seed when they start, which must not shift the training stream."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)
