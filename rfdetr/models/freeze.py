"""Keep chosen parts of a model as they are."""

import difflib
import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from rfdetr.errors import InputError

logger = logging.getLogger(__name__)


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop the training of every parameter whose name one of the patterns fits, and return the names.

    Do this before the optimizer is made and before the model is wrapped for several processes: frozen parameters then
    take no part in either.

    Args:
        patterns: see `find_parameters`.

    Raises:
        InputError: a pattern fits nothing, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        frozen.update(find_parameters(model, pattern, "model.freeze"))
    for name in frozen:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"model.freeze: {', '.join(patterns)} leaves nothing to train")
    if frozen:
        numbers = sum(parameters[name].numel() for name in frozen)
        logger.info("frozen: %d of %d tensors, %.1f million parameters", len(frozen), len(parameters), numbers / 1e6)
    return sorted(frozen)


def find_parameters(model: nn.Module, pattern: str, option: str) -> list[str]:
    """Return the names of the parameters that a pattern of an option fits.

    Args:
        pattern: name of modules or parameters, as in ``model.named_parameters()``; a module stands for all that is in it, and
            ``*``, ``?``, ``[...]`` work as in file names: "backbone.encoder", "transformer.decoder.layers.0", "*.bias".

    Raises:
        InputError: it fits none.
    """
    found = [name for name, _ in model.named_parameters() if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
    if not found:
        raise InputError(f"{option}: {pattern!r} fits no part of the model{_nearest(pattern, model)}")
    return found


def _nearest(pattern: str, model: nn.Module) -> str:
    parts = [name for name, _ in model.named_modules() if name]
    close = difflib.get_close_matches(pattern, parts, n=1)
    children = ", ".join(name for name, _ in model.named_children())
    return f"; did you mean {close[0]!r}?" if close else f"; its parts are {children}"
