"""Where settings and state of an optimizer part: a resumed run takes the moments and its place in the schedule from the
checkpoint, and learning rates, decays, betas and the schedule from the new command.

Moments are matched to parameters by name, since other settings may sort the parameters into other groups.
"""

import copy
import functools
import hashlib
import logging
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from engine.parallel import Alone

logger = logging.getLogger(__name__)


class OptimizerState:
    """What a checkpoint holds of an optimizer and its schedule; to be made before the first step."""

    def __init__(self, optimizer: Optimizer, lr_scheduler: LRScheduler | None, parallel: Alone) -> None:
        self.optimizer, self.lr_scheduler, self.parallel = optimizer, lr_scheduler, parallel
        self.names = _parameter_names(parallel.unwrapped, optimizer)
        self.plan = _plan_of(optimizer, self.names, lr_scheduler)

    def state_dict(self) -> dict[str, Any]:
        """Return the state. Collective."""
        return {
            "optimizer": self.parallel.optimizer_state(self.optimizer),
            "optimizer_class": type(self.optimizer).__name__,
            "parameter_names": self.names,
            "plan": self.plan,
            "lr_scheduler": self.lr_scheduler.state_dict() if self.lr_scheduler else None,
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Take a state back, to go on at `step`: all of it where settings and step are the same, else the moments alone.

        Raises:
            ValueError: the optimizer is of another class, or its settings need moments that were not saved.
        """
        then, now = state.get("optimizer_class"), type(self.optimizer).__name__
        if then not in (None, now):
            raise ValueError(f"the optimizer is {now} now and was {then}, whose moments it cannot use; go on with {then}")
        if state.get("plan") == self.plan and state["step"] == step:
            self.parallel.load_optimizer_state(self.optimizer, state["optimizer"])
            if self.lr_scheduler:
                self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            return
        fitted = _fitted_state(self.optimizer, self.names, state["optimizer"], state.get("parameter_names"))
        self.parallel.load_optimizer_state(self.optimizer, fitted)
        if self.lr_scheduler:
            _go_to_step(self.lr_scheduler, step)


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the name of each of the optimizer's parameters, in the order of its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [names.get(id(parameter), f"parameter {index}") for index, parameter in enumerate(parameters)]


def _plan_of(optimizer: Optimizer, names: Sequence[str], scheduler: LRScheduler | None) -> str:
    """Return a digest of the settings that an optimizer and its schedule were made with; ask before the first step."""
    groups = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
    schedule = None if scheduler is None else (type(scheduler).__name__, scheduler.state_dict(), _functions(scheduler))
    return hashlib.sha256(repr((type(optimizer).__name__, groups, list(names), schedule)).encode()).hexdigest()


def _functions(scheduler: LRScheduler) -> list[Any]:
    """Return the arguments of a LambdaLR's functions, which are not in its state."""
    inner = [made for scheduler in getattr(scheduler, "_schedulers", ()) for made in _functions(scheduler)]
    return inner + [fn.keywords for fn in getattr(scheduler, "lr_lambdas", ()) if isinstance(fn, functools.partial)]


def _fitted_state(optimizer: Optimizer, names: Sequence[str], saved: Mapping[str, Any], saved_names: Sequence[str] | None
                  ) -> dict[str, Any]:
    """Return a state for `optimizer` with its own settings, and with the moments out of a saved state.

    Args:
        names, saved_names: of the parameters, in the order of the states; None: not known, the order has to be the same.

    Raises:
        ValueError: the moments cannot be told apart, or are not those that the new settings need.
    """
    if saved_names is None:
        count = sum(len(group["params"]) for group in saved["param_groups"])
        if count != len(names):
            raise ValueError(f"the optimizer has {len(names)} parameters, its saved state {count}")
        saved_names = names
    places = {name: index for index, name in enumerate(saved_names)}
    moments = {index: saved["state"][places[name]] for index, name in enumerate(names) if places.get(name) in saved["state"]}
    _check_moments(optimizer, moments)
    without = [name for name in names if name not in places]
    if without:
        logger.warning("the optimizer starts anew for %d parameters that were not trained before: %s ...", len(without),
                       without[0])
    return {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}


def _check_moments(optimizer: Optimizer, moments: Mapping[int, Mapping[str, Any]]) -> None:
    """Refuse moments that are not all which the optimizer's settings need, as after turning on `amsgrad`."""
    index = 0
    for group in optimizer.param_groups:
        needed = None
        for _ in group["params"]:
            found = {name for name, value in moments.get(index, {}).items() if value is not None}
            if found:  # without any it starts anew
                needed = _moments_of(optimizer, group) if needed is None else needed
                if missing := sorted(needed - found):
                    raise ValueError(f"the settings of the optimizer need {', '.join(missing)}, of which the checkpoint has "
                                     f"nothing (it has {', '.join(sorted(found))}); use the settings that it was saved with")
            index += 1


def _moments_of(optimizer: Optimizer, group: Mapping[str, Any]) -> set[str]:
    """Find out what the optimizer keeps for a parameter of a group: let a twin of it make a step."""
    probe = nn.Parameter(torch.zeros(1, device=group["params"][0].device))
    probe.grad = torch.zeros_like(probe)
    twin = copy.copy(optimizer)
    twin.state, twin.param_groups = defaultdict(dict), [{**group, "params": [probe]}]
    try:
        twin.step()
    except Exception as error:  # an optimizer of somebody's own, which wants more than a gradient
        logger.debug("cannot tell what %s keeps: %s", type(optimizer).__name__, error)
        return set()
    return {name for name, value in twin.state[probe].items() if value is not None}


def _go_to_step(scheduler: LRScheduler, step: int) -> None:
    """Move a scheduler that was just made to where `step` steps lead it, with the schedulers that it is composed of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of schedulers that step before their optimizer
        if type(scheduler) is LambdaLR:  # needs no steps in between
            scheduler.last_epoch, scheduler._step_count = step - 1, step
            scheduler.step()
        else:
            for _ in range(step):
                scheduler.step()
