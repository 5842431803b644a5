"""The interface between the loop and everything that watches or steers it.

The loop, with every hook point in its place::

    before_train
    for epoch:
        before_epoch
        for step:                              # one optimizer update
            before_step(batches)
            for batch in batches:              # the accumulation window; DDP syncs gradients on the last one only
                forward, loss, backward
                after_batch(batch, outputs)
            unscale gradients
            before_optimizer_step
            clip, optimizer.step, scaler.update, zero_grad, lr_scheduler.step;  trainer.step += 1
            after_step
        trainer.epoch += 1
        after_epoch                            # a hook may evaluate and publish_metrics() -> after_eval(metrics)
            for name in the evaluated models:  # "regular", "ema"
                before_eval(name)
            for batch in the split:            # loaded once for all models
                for name in the evaluated models:
                    after_eval_batch(name, batch, outputs, results)
            for name in the evaluated models:
                measured(name)                 # adds metrics of a hook's own
    after_train                                # normal end or trainer.stop()
    close                                      # always, in reverse order, also after an exception

Every hook runs on every rank, in list order: guard the write (``is_main_process()``), not the hook. ``trainer.step`` and
``trainer.epoch`` count finished work, so ``trainer.step % n == 0`` needs no ``+ 1``. Numbers and pictures of a hook's own go to
all writers by ``trainer.log(name, value)`` and ``trainer.log_image(name, image)``, from any hook point.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from engine.watch import doing

if TYPE_CHECKING:
    from torch import Tensor

    from engine.trainer import Trainer

logger = logging.getLogger(__name__)

LIGHTNING_METHODS = {  # methods of its callbacks, which would never be called here, and what takes their place
    "on_fit_start": "before_train", "on_train_start": "before_train", "on_train_epoch_start": "before_epoch",
    "on_train_batch_start": "before_step", "on_before_backward": "before_step", "on_after_backward": "after_batch",
    "on_before_optimizer_step": "before_optimizer_step", "on_before_zero_grad": "after_step",
    "on_train_batch_end": "after_batch, or after_step for each update", "on_train_epoch_end": "after_epoch",
    **{f"on_{split}_{point}": place for split in ("validation", "test") for point, place in {
        "start": "before_eval", "epoch_start": "before_eval", "batch_end": "after_eval_batch", "epoch_end": "after_eval",
        "end": "after_eval"}.items()},
    "on_fit_epoch_end": "after_eval", "on_train_end": "after_train", "on_fit_end": "after_train", "on_exception": "close",
    "on_save_checkpoint": "state_dict", "on_load_checkpoint": "load_state_dict",
}


class Hook:
    """Base class: override the points you need; every one of them does nothing here.

    A subclass raises TypeError when it is defined if it has a method ``before_*`` or ``after_*`` that is not a hook point, or a
    method of Lightning's callbacks.

    Attributes:
        name: unique in a trainer, and the key of the hook's state in checkpoints. Unless set it is the class name; a subclass of
            another hook goes by that one's name, since it takes its place.
        writes: names of the files in ``trainer.output_dir`` that it writes.
        evaluates: entries of ``trainer.eval_models`` that it adds.
        init_arguments: what it was made with, so that a run can add what it has to give.
    """

    name: str = "Hook"
    writes: tuple[str, ...] = ()
    evaluates: tuple[str, ...] = ()
    init_arguments: tuple[tuple, dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Hook:
        hook = super().__new__(cls)
        hook.init_arguments = args, kwargs
        return hook

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for method in vars(cls):
            if method.startswith(("before_", "after_")) and method not in HOOK_POINTS:
                close = difflib.get_close_matches(method, HOOK_POINTS, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise TypeError(f"{cls.__name__}.{method} is not a hook point{hint} Hook points: {', '.join(HOOK_POINTS)}")
            if method in LIGHTNING_METHODS:
                raise TypeError(f"{cls.__name__}.{method} is a method of Lightning's callbacks, which nothing calls here; in its "
                                f"place there is {LIGHTNING_METHODS[method]}")
        for attribute in ("writes", "evaluates"):
            value = getattr(cls, attribute)
            if isinstance(value, str):
                raise TypeError(f"{cls.__name__}.{attribute} is {value!r}, not a tuple of names; write ({value!r},)")
        if cls.name == Hook.name:
            cls.name = cls.__name__

    def before_train(self, trainer: Trainer) -> None:
        """Run once; the model is on its device and DDP-wrapped, a checkpoint is loaded. May add what it `evaluates`."""

    def before_epoch(self, trainer: Trainer) -> None:
        """Run after `model.train()` and after the sampler was told the epoch."""

    def before_step(self, trainer: Trainer, batches: list) -> None:
        """Run before the first batch of an update; `batches` is the whole window and may be changed in place.

        Samples are on the device; targets too, unless the criterion has ``host_targets``, as this project's has.
        A target has as many boxes as labels afterwards, or a ValueError names the hook.
        """

    def after_batch(self, trainer: Trainer, batch: Any, outputs: dict[str, Tensor]) -> None:
        """Run after each backward; gradients are still scaled and not yet synced: leave them alone."""

    def before_optimizer_step(self, trainer: Trainer) -> None:
        """Run when gradients are summed, averaged over ranks and unscaled, but not yet clipped. May change `.grad` in place."""

    def after_step(self, trainer: Trainer) -> None:
        """Run after an update (made or skipped); `trainer.losses` and `trainer.grad_norm` are readable, but still on device."""

    def after_epoch(self, trainer: Trainer) -> None:
        """Run when `trainer.epoch` already counts this epoch: save; evaluate and `trainer.publish_metrics`.

        Also where `trainer.max_steps` ends the run in the middle of an epoch, which is not counted then.
        """

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Run whenever a hook publishes metrics; they are the same on all ranks and must not be edited."""

    def before_eval(self, trainer: Trainer, name: str) -> None:
        """Run before a model is evaluated: "regular", "ema", or whatever is on trial on the "test" split after training.

        All models of an evaluation are announced first; then they take turns, batch by batch.
        """

    def after_eval_batch(
        self, trainer: Trainer, name: str, batch: Any, outputs: dict[str, Any], results: list[dict[str, Tensor]]
    ) -> None:
        """Run after a model has seen a batch of an evaluation, an image at a time where masks are evaluated.

        See `engine.evaluate`.

        Ranks may have different numbers of batches, so nothing collective may happen here.
        """

    def measured(self, trainer: Trainer, name: str) -> dict[str, float]:
        """Return metrics of one's own of the model that has just been evaluated, to be published with the others.

        Every rank is asked, for each model, and returns the same; collectives are welcome here.
        """
        return {}

    def logged(self, trainer: Trainer, name: str, value: float | Tensor) -> None:
        """Take a number from `Trainer.log`, of one element, on any device; on the rank alone that has called it."""

    def logged_image(self, trainer: Trainer, name: str, image: Any) -> None:
        """Take a picture from `Trainer.log_image`, on the rank alone that has called it."""

    def after_train(self, trainer: Trainer) -> None:
        """Run once, at the normal end or after a stop, and before an error of the train loader is raised; not after others."""

    def close(self) -> None:
        """Release files and processes; always runs, in reverse order of the hooks."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; called before `before_train`."""


HOOK_POINTS = tuple(name for name in vars(Hook) if name.startswith(("before_", "after_")))


class Hooks(list[Hook]):
    """The hooks of a trainer, in their order.

    Raises:
        ValueError: two of them have one name, write the same file, or add the same model to those that are evaluated.
    """

    def __init__(self, hooks: Sequence[Hook]) -> None:
        super().__init__(hooks)
        names = [hook.name for hook in hooks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"hooks: more than one is called {', '.join(twice)}; give each instance a name of its own")
        _refuse_shared(hooks, "writes", "write the file")
        _refuse_shared(hooks, "evaluates", "add the evaluated model")

    def call(self, point: str, *arguments: Any) -> None:
        """Call a hook point of each; the first argument is the trainer."""
        for hook in self:
            doing(f"{point} of {hook.name}")
            getattr(hook, point)(*arguments)

    def close(self) -> None:
        for hook in reversed(self):
            try:
                hook.close()
            except Exception:  # the others have to be closed too, and an error of the training itself must not be hidden
                logger.exception("%s.close failed", hook.name)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {hook.name: hook.state_dict() for hook in self}

    def load_state_dict(self, states: dict[str, dict[str, Any]]) -> None:
        """Give each its state, if there is any."""
        for hook in self:
            if hook.name in states:
                hook.load_state_dict(states[hook.name])
        unknown = sorted(set(states) - {hook.name for hook in self})
        if unknown:
            logger.warning("the checkpoint has state of hooks that this run does not have, left out: %.300s", ", ".join(unknown))


def _refuse_shared(hooks: Sequence[Hook], attribute: str, action: str) -> None:
    owners: dict[str, str] = {}
    for hook in hooks:
        for item in getattr(hook, attribute):
            if item in owners:
                raise ValueError(f"hooks: {owners[item]} and {hook.name} both {action} {item!r}; a run can have one of the two")
            owners[item] = hook.name


def overrides(hook: Hook, point: str) -> bool:
    """Return whether a hook does anything at a hook point."""
    return getattr(getattr(hook, point), "__func__", None) is not getattr(Hook, point)


def evaluation_listener(trainer: Trainer) -> Callable[[str, Any, dict, list], None] | None:
    """Return what `engine.evaluate` is to call after each batch; None if no hook listens."""
    listeners = [hook.after_eval_batch for hook in trainer.hooks if overrides(hook, "after_eval_batch")]
    if not listeners:
        return None

    def tell(name: str, batch: Any, outputs: dict[str, Any], results: list[dict[str, Tensor]]) -> None:
        for listener in listeners:
            listener(trainer, name, batch, outputs, results)

    return tell


def measured(trainer: Trainer, name: str) -> dict[str, float]:
    """Return what the hooks have measured of a model that was just evaluated. Every rank must call it."""
    return {key: value for hook in trainer.hooks for key, value in hook.measured(trainer, name).items()}
