"""Exponential moving average of the weights, offered for evaluation as "ema"."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.hook import Hook
from engine.sharding import is_sharded

if TYPE_CHECKING:
    from engine.trainer import Trainer


def ema_decay(updates: int, decay: float, tau: float) -> float:
    """Return what update number `updates` (from 1) keeps of the average: grows towards `decay` over about `tau` updates."""
    return decay * (1 - math.exp(-updates / tau)) if tau > 0 else decay


class EMAHook(Hook):
    """Average the weights after every step: ``average = d * average + (1 - d) * weights`` with d from `ema_decay`.

    The average starts as a copy of the initial weights and is put into ``trainer.eval_models["ema"]``; the trained model
    itself is never touched.

    Args:
        decay: final decay, 0 to 1.
        tau: updates over which the decay grows; 0: full decay at once.
        update_every: update at every so many steps only; `tau` counts updates, not steps.
        use_buffers: average floating-point buffers too; otherwise they are copied, as buffers of integers always are.
    """

    evaluates = ("ema",)

    def __init__(self, decay: float = 0.993, tau: float = 100.0, *, update_every: int = 1, use_buffers: bool = True) -> None:
        if not 0 <= decay <= 1 or tau < 0 or update_every < 1:
            raise ValueError(
                f"EMAHook: decay={decay}, tau={tau}, update_every={update_every} is not possible; "
                "decay is between 0 and 1, tau 0 or more, update_every 1 or more"
            )
        self.decay, self.tau = decay, tau
        self.update_every, self.use_buffers = update_every, use_buffers
        self.num_updates = 0
        self.average: nn.Module | None = None
        self._loaded: dict[str, Tensor] | None = None
        self._averaged: list[tuple[nn.Module, nn.Module, str]] = []  # (module of the average, its twin, name of the tensor)
        self._copied: list[tuple[nn.Module, nn.Module, str]] = []

    def before_train(self, trainer: Trainer) -> None:
        if is_sharded(trainer.unwrapped_model):
            raise ValueError("EMAHook: the model is sharded (FSDP), no average can be kept of its parts; train without EMA, or "
                             "with DDP")
        is_going_on = self.average is not None and trainer.eval_models.get("ema") is self.average  # `train` was called again
        average = self.average
        if average is None or not is_going_on:
            average = self.average = copy.deepcopy(trainer.unwrapped_model).requires_grad_(False).eval()
            trainer.eval_models["ema"] = average
        if self._loaded is not None:
            average.load_state_dict(self._loaded)
            self._loaded = None
        self._pair_up(average, trainer.unwrapped_model)

    def after_step(self, trainer: Trainer) -> None:
        if trainer.step % self.update_every == 0:
            self.num_updates += 1
            self._update(1 - ema_decay(self.num_updates, self.decay, self.tau))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates and the average; its tensors are the live ones, as in any module's state dict."""
        average = self._loaded if self.average is None else dict(self.average.state_dict())
        return {"num_updates": self.num_updates, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        if self.average is None:
            self._loaded = state["average"]
        elif state["average"] is not None:
            self.average.load_state_dict(state["average"])

    @torch.no_grad()
    def _update(self, weight: float) -> None:
        """Move the average towards the weights by `weight`, with a few kernels for all tensors."""
        averages = [getattr(module, name) for module, _, name in self._averaged]
        torch._foreach_lerp_(averages, [getattr(twin, name) for _, twin, name in self._averaged], weight)
        for module, twin, name in self._copied:
            getattr(module, name).copy_(getattr(twin, name))

    def _pair_up(self, average: nn.Module, model: nn.Module) -> None:
        """Note where the tensors are, shared ones once. They are looked up at each update: code may replace a buffer."""
        self._averaged, self._copied = [], []
        seen: set[int] = set()
        for module, twin in zip(average.modules(), model.modules()):
            parameters = [(name, tensor, True) for name, tensor in module.named_parameters(recurse=False)]
            buffers = [(name, tensor, self.use_buffers) for name, tensor in module.named_buffers(recurse=False)]
            for name, tensor, is_averaged in parameters + buffers:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    places = self._averaged if is_averaged and tensor.is_floating_point() else self._copied
                    places.append((module, twin, name))
