"""What the model does otherwise while it is traced: in exported files no operators of our own; nothing of a trace is kept."""

import functools
from collections.abc import Callable
from typing import Any

import torch

# PyTorch before 2.7 tells compiling only
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember the tensors that a function of hashable arguments makes; while it is traced they have no values, so not then."""
    remembering = functools.lru_cache(maxsize=64)(function)  # a multi-scale run has about a dozen sizes

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args) if torch.compiler.is_compiling() else remembering(*args)

    call.cache_clear = remembering.cache_clear
    return call
