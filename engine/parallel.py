"""How a model is spread over the processes: the only one has it, every one has a copy (DDP), or each has a part (FSDP2).

The three classes have one interface, that of `Alone`. `spread` picks one; the loop asks no further.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from engine.distributed import is_distributed
from engine.sharding import divided, is_sharded, whole


class Alone:
    """The whole model in one process.

    States are whole in all three classes, so that a checkpoint does not depend on how the run was spread that wrote it.

    Attributes:
        model: what the loop calls.
        unwrapped: the model itself.
        eval_model: what is evaluated.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = self.unwrapped = self.eval_model = model

    def gradient_sync(self, is_last: bool) -> AbstractContextManager:
        """Return the context for a batch's forward and backward; the last one of a step averages gradients over the ranks."""
        return nullcontext()

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the L2 norm of all gradients together. Does not wait for the device."""
        return nn.utils.get_total_norm(gradients)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's state. Collective."""
        return self.unwrapped.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.unwrapped.load_state_dict(state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state. Collective."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        optimizer.load_state_dict(state)

    def refresh_eval_model(self) -> None:
        """Give `eval_model` the current weights, where it is not the model itself. Collective."""


class Replicated(Alone):
    """A copy of the model in each process; DDP averages their gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # without device_ids, for which DDP would look through all targets and wait for a copy of each that is on the CPU
        self.model: Any = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def gradient_sync(self, is_last: bool) -> AbstractContextManager:
        return nullcontext() if is_last else self.model.no_sync()


class Sharded(Alone):
    """A part of each parameter in each process, divided by `engine.sharding.shard`; `eval_model` is a whole twin of the model."""

    def __init__(self, model: nn.Module, eval_model: nn.Module) -> None:
        super().__init__(model)
        self.eval_model = eval_model

    def gradient_sync(self, is_last: bool) -> AbstractContextManager:
        self.model.set_requires_gradient_sync(is_last)  # type: ignore[operator]  # fully_shard has given it this method
        return nullcontext()

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return whole(super().gradient_norm(gradients))

    def state_dict(self) -> dict[str, Tensor]:
        return whole(super().state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.unwrapped.state_dict()
        super().load_state_dict({name: divided(value, own.get(name)) for name, value in state.items()})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole(super().optimizer_state(optimizer))

    def load_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parts = {
            index: {name: divided(value, parameters[index]) for name, value in values.items()}
            for index, values in state["state"].items()
            if index < len(parameters)  # what does not fit is the optimizer's to report
        }
        super().load_optimizer_state(optimizer, {**state, "state": {**state["state"], **parts}})

    def refresh_eval_model(self) -> None:
        self.eval_model.load_state_dict(self.state_dict())


def spread(model: nn.Module, device: torch.device, eval_model: nn.Module | None = None) -> Alone | Replicated | Sharded:
    """Put a model on its device, and return how it is spread over the processes that there are.

    Raises:
        ValueError: a sharded model comes without its whole twin `eval_model`, or another model with one.
    """
    if is_sharded(model) != (eval_model is not None):
        raise ValueError("eval_model: a sharded model needs its whole twin there, and no other model does")
    if eval_model is not None:
        return Sharded(model.to(device), eval_model.to(device))
    return Replicated(model.to(device)) if is_distributed() else Alone(model.to(device))
