"""The training loop: mixed precision, accumulation, clipping, DDP, resume at any step. All else is a hook's business."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from engine.bad_steps import BadStepCounter
from engine.batches import BatchStream, Loader, WaitingEnded, check_targets, image_ids, nearest_step, samples_per_step
from engine.device import resolve_device, use_device
from engine.distributed import any_rank, barrier, gather_objects, rank, world_size
from engine.evaluate import EvalModels
from engine.hook import Hook, Hooks, overrides
from engine.loss import total_loss, window_normalizer
from engine.parallel import spread
from engine.precision import autocast, guarded_step, judge, make_scaler, resolve_precision
from engine.randomness import rng_state, set_rng_state
from engine.settings import OptimizerState
from engine.watch import PeerError, Watch, describe, doing, watching

logger = logging.getLogger(__name__)

BAD_STEPS = "bad_steps.jsonl"

_FIXED = {  # attributes that others were made from at construction -> what to do in place of assigning them
    **{
        name: f"pass {name}= to the constructor"
        for name in (
            "model", "optimizer", "lr_scheduler", "train_loader", "max_epochs", "hooks", "grad_accum_steps", "precision",
            "device", "output_dir",
        )
    },
    "unwrapped_model": "pass model= to the constructor",
    "scaler": "pass precision= to the constructor",
    "steps_per_epoch": "pass train_loader= and grad_accum_steps= to the constructor",
    "max_steps": "pass max_epochs= or max_steps= to the constructor",
    "eval_models": "add entries to it or delete them",
}


class Trainer:
    """Train `model` with finished objects; see `engine/hook.py` for the order of events.

    Args:
        model: called as ``model(samples, targets)``; in several processes it is wrapped in DDP, unless `engine.sharding` has
            sharded it (`engine/parallel.py`).
        criterion: called as ``criterion(outputs, targets)``; returns a dict of losses. The loss is the sum of
            ``criterion.weight_dict[k] * losses[k]`` over the keys in both, or the plain sum without a `weight_dict`. Targets are
            on the device, unless its attribute `host_targets` is true.
        train_loader: has a length; yields ``(samples, targets)``, where samples have ``.to``. Its batch sampler may offer
            ``set_epoch(epoch, start_batch=0)``, which makes a resume start at once.
        max_epochs: passes over the loader; `train` returns when `epoch` reaches it.
        max_steps: `train` returns when `step` reaches it; in the middle of an epoch, hooks have `after_epoch` there too, though
            `epoch` does not count it, and a run with more steps goes on with the rest of it.
        grad_accum_steps: batches that make one step. Batches that do not fill a window at the end of an epoch are left out.
        clip_grad_norm: largest global L2 norm of the gradients; 0 turns clipping off.
        precision: "auto", "bf16", "fp16" or "fp32" (decides autocast and the loss scaler).
        loss_normalize: "batch", every batch by its own box count; "window", all batches of a step, on all ranks, by their common
            count (`criterion` must have ``count_boxes(targets)`` and take ``num_boxes=``), so that accumulation
            gives the gradients of one big batch.
        max_bad_steps: updates with non-finite gradients are skipped on all ranks, and written to bad_steps.jsonl; that many in
            a row raise FloatingPointError.
        eval_model: needed with a sharded model: its whole twin, which gets the current weights when training starts and after
            every epoch, and is what hooks find in ``eval_models["regular"]``.

    Raises:
        ValueError: two hooks in each other's way (one name, file, or evaluated model), an epoch that cannot fill one window, or a
            sharded model without a twin.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: Optimizer,
        train_loader: Loader,
        *,
        max_epochs: int,
        max_steps: int | None = None,
        lr_scheduler: LRScheduler | None = None,
        hooks: Sequence[Hook] = (),
        grad_accum_steps: int = 1,
        clip_grad_norm: float = 0.0,
        precision: str = "auto",
        device: str | torch.device = "auto",
        output_dir: str | Path = "output",
        loss_normalize: str = "batch",
        max_bad_steps: int = 20,
        eval_model: nn.Module | None = None,
    ) -> None:
        self.device = resolve_device(device)
        use_device(self.device)
        self.precision = resolve_precision(precision, self.device)
        self.scaler = make_scaler(self.device, self.precision)
        self._parallel = spread(model, self.device, eval_model)
        self.model, self.unwrapped_model = self._parallel.model, self._parallel.unwrapped
        self.criterion = criterion.to(self.device)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.train_loader = train_loader
        self.hooks = Hooks(hooks)
        self.max_epochs, self.grad_accum_steps, self.clip_grad_norm = max_epochs, grad_accum_steps, clip_grad_norm
        if loss_normalize not in ("batch", "window"):
            raise ValueError(f"loss_normalize: {loss_normalize!r} is not one of batch, window")
        self.loss_normalize = loss_normalize
        self.output_dir = Path(output_dir)

        self.steps_per_epoch = len(train_loader) // grad_accum_steps
        if self.steps_per_epoch == 0:
            raise ValueError(f"{len(train_loader)} batches an epoch cannot fill grad_accum_steps={grad_accum_steps}")
        self.max_steps = min(self.steps_per_epoch * max_epochs, max_steps or sys.maxsize)
        self._samples_per_step = samples_per_step(train_loader, grad_accum_steps)

        self.epoch = 0  # finished epochs
        self.step = 0  # finished updates, also the skipped ones
        self.epoch_step = 0  # of them in the current epoch
        self.num_images = 0  # passed through the model by this rank, in this process
        self.losses: dict[str, Tensor] = {}  # of the last step, mean over its batches; "loss" is the weighted sum
        self.grad_norm = torch.zeros((), device=self.device)  # of the last step, before clipping
        self.metrics: dict[str, float] = {}  # published last
        self.eval_models = EvalModels(regular=self._parallel.eval_model)
        self.stop_reason: str | None = None
        self.interrupted = False  # stopped from outside, with work left to do
        self._batches = BatchStream(train_loader, self.device, host_targets=getattr(criterion, "host_targets", False))
        self._optimizer_state = OptimizerState(optimizer, lr_scheduler, self._parallel)
        self._bad_steps = BadStepCounter(self.device, max_bad_steps, self.output_dir / BAD_STEPS)
        self._wish: str | None = None  # why this rank has to stop; the others are told at the next batch
        self._error: Exception | None = None  # to be raised once the state is saved
        self._loaded_rng: dict[str, Any] | None = None
        self._publishing = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and name in vars(self):
            raise AttributeError(f"trainer.{name} cannot be replaced, other parts were made for it; {_FIXED[name]}")
        super().__setattr__(name, value)

    @property
    def data_seconds(self) -> float:
        """Seconds that the loop has waited for batches."""
        return self._batches.seconds

    @property
    def bad_steps(self) -> int:
        """Updates skipped for non-finite gradients (on CUDA known some steps later)."""
        return self._bad_steps.total

    @property
    def is_finished(self) -> bool:
        """Whether all epochs, or steps, are done."""
        return self.epoch >= self.max_epochs or self.step >= self.max_steps

    @property
    def is_waiting_for_data(self) -> bool:
        return self._batches.is_waiting

    def train(self) -> None:
        """Run from the current step to the end of `max_epochs` or `max_steps`, or until `stop`.

        An error of the train loader is raised after the hooks have had `after_train`, so that nothing is lost; on the other ranks
        it is a PeerError.
        """
        with watching(rank(), world_size()) as watch:
            try:
                self._train(watch)
            except BaseException as error:
                watch.announce(error)  # before hooks are closed, which may take long: others may be waiting for this rank
                raise
            finally:
                self.hooks.close()

    def _train(self, watch: Watch) -> None:
        self._parallel.refresh_eval_model()
        self.hooks.call("before_train", self)
        watch.begin(self.output_dir)
        while not self.is_finished and self.stop_reason is None:
            self._train_epoch()
        self.hooks.call("after_train", self)
        if self._error is not None:
            barrier()  # until the main process has saved
            raise self._error

    def stop(self, reason: str) -> None:
        """End training after the current step (all ranks must call it at the same step); the first reason is kept."""
        self.stop_reason = self.stop_reason or reason

    def interrupt(self, reason: str) -> None:
        """Ask all ranks to stop, as something outside ends the run before its work is done: a signal, a time budget.

        Any rank may call it at any time, also from a signal handler. All stop before the next batch.
        """
        self._wish = self._wish or reason

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Hand `metrics`, the same on all ranks, to every hook's `after_eval`.

        Raises:
            RuntimeError: called from within `after_eval`.
        """
        if self._publishing:
            raise RuntimeError("publish_metrics was called from after_eval; publish from after_epoch or after_step")
        self._publishing = True
        try:
            self.metrics = dict(metrics)
            self.hooks.call("after_eval", self, self.metrics)
        finally:
            self._publishing = False

    def log(self, name: str, value: float | Tensor) -> None:
        """Hand a number of a hook's own to every hook's `logged`; `hooks.LogHook` gives it to all writers. Any rank may call it.

        A tensor (of one element) is not waited for: it may be logged at every step.
        """
        for hook in self.hooks:
            hook.logged(self, name, value)

    def log_image(self, name: str, image: Any) -> None:
        """Hand a picture to every hook's `logged_image`; `hooks.LogHook` gives it to all writers that take pictures.

        Args:
            image: (3, H, W) or (H, W), uint8 or float 0 to 1, as a tensor, (H, W, 3) or (H, W) uint8 as an array, PIL's, or the
                path of a picture file that is kept anyway. The main process's is taken.
        """
        for hook in self.hooks:
            hook.logged_image(self, name, image)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs. Collective: every rank must call it, every rank gets the whole."""
        return {
            "model": self._parallel.state_dict(),
            **self._optimizer_state.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "epoch_step": self.epoch_step,
            "samples_per_step": self._samples_per_step,
            "steps_per_epoch": self.steps_per_epoch,
            "bad_steps": self._bad_steps.state_dict(),
            "hooks": self.hooks.state_dict(),
            "rng": gather_objects(self._loaded_rng or rng_state(self.device)),  # loaded ones are in force later
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; call it before `train`.

        Settings are this trainer's own: learning rates, decays, schedule and the like act from the next step on. Unchanged ones
        go on bit for bit. The number of ranks, batch size, images and epochs may differ from the saved run's too: the data go on
        at the same sample of the epoch, rounded down to a whole step.

        Raises:
            ValueError: the optimizer is of another class, or its settings need moments that were not saved.
        """
        self._parallel.load_state_dict(state["model"])
        if state["scaler"]:  # empty, if there was none
            self.scaler.load_state_dict(state["scaler"])
        self.epoch = state["epoch"]
        self.step, self.epoch_step = nearest_step(state, self.steps_per_epoch, self._samples_per_step)
        self._optimizer_state.load_state_dict(state, min(self.step, self.max_steps))
        self._bad_steps.load_state_dict(state.get("bad_steps", {"total": 0, "in_a_row": 0}))
        self.hooks.load_state_dict(state["hooks"])
        if rank() < len(state["rng"]):
            self._loaded_rng = state["rng"][rank()]

    def _train_epoch(self) -> None:
        if self._stops():  # asked for during an evaluation
            return
        doing("loading", self.step)
        self.model.train()
        self.criterion.train()
        self._batches.start(self.epoch, self.epoch_step * self.grad_accum_steps)
        self.hooks.call("before_epoch", self)
        if self._loaded_rng is not None:  # only now: hooks and loaders may have drawn numbers while they started
            set_rng_state(self._loaded_rng, self.device)
            self._loaded_rng = None
        while self.epoch_step < self.steps_per_epoch and not self.is_finished and self.stop_reason is None:
            if (batches := self._load()) is not None:
                self._train_step(batches)
        self._bad_steps.flush()
        is_whole = self.epoch_step == self.steps_per_epoch
        if is_whole or self.is_finished:
            self._stops()  # known before an evaluation starts
            if is_whole:
                self.epoch, self.epoch_step = self.epoch + 1, 0
            self._parallel.refresh_eval_model()
            self.hooks.call("after_epoch", self)

    def _load(self) -> list | None:
        """Return the next window; None, on all ranks, where one of them has to stop or gets none."""
        doing("loading", self.step)
        before = rng_state(self.device)  # a loader in this process may draw for batches that are not trained on
        batches = None
        try:
            batches = self._batches.next_window(self.grad_accum_steps)
            check_targets(batches, "the train loader")
        except WaitingEnded:
            pass
        except Exception as error:
            self._error, self._wish = error, f"loading failed, {describe(error)}"
        if not self._stops():
            return batches
        set_rng_state(before, self.device)
        return None

    def _stops(self) -> bool:
        """Return whether this is the end, the same on all ranks: if any of them has been asked to stop, all do."""
        if any_rank(self._wish is not None):
            wishes = gather_objects((self._wish, self._error is not None))
            origin, (reason, _) = next(pair for pair in enumerate(wishes) if pair[1][0] is not None)
            failed = [index for index, (_, is_error) in enumerate(wishes) if is_error]
            if failed and self._error is None:
                self._error = PeerError(f"rank {failed[0]}, step {self.step}: {wishes[failed[0]][0]}")
            self.interrupted = True
            self.stop(self._wish or f"rank {origin}: {reason}")
            logger.warning("stopping after step %d: %s", self.step, self.stop_reason)
        return self.stop_reason is not None

    def _train_step(self, batches: list) -> None:
        for hook in self.hooks:
            doing(f"before_step of {hook.name}")
            hook.before_step(self, batches)
            if overrides(hook, "before_step"):
                check_targets(batches, f"before_step of {type(hook).__name__}")
        is_window = self.loss_normalize == "window"
        arguments = window_normalizer(self.criterion, batches, self.device) if is_window else {}
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            losses = self._forward_backward(batch, arguments, is_last=index == len(batches) - 1)
            for name, value in losses.items():
                sums[name] = sums[name] + value if name in sums else value
        self.losses = {name: value / len(batches) for name, value in sums.items()}
        self._update(batches)
        self.hooks.call("after_step", self)

    def _forward_backward(self, batch: Any, arguments: dict[str, Any], *, is_last: bool) -> dict[str, Tensor]:
        samples, targets = batch
        with self._parallel.gradient_sync(is_last):
            doing("forward")
            with autocast(self.device, self.precision):
                outputs = self.model(samples, targets)
            losses = self.criterion(outputs, targets, **arguments)
            loss = total_loss(self.criterion, losses)
            doing("backward")
            self.scaler.scale(loss / self.grad_accum_steps).backward()
        self.num_images += len(targets)
        self.hooks.call("after_batch", self, batch, outputs)
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def _update(self, batches: list) -> None:
        self.scaler.unscale_(self.optimizer)  # a no-op when the scaler is disabled
        self.hooks.call("before_optimizer_step", self)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = self._parallel.gradient_norm(gradients)
        if self.clip_grad_norm > 0:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad_norm, self.grad_norm)
        doing("updating")
        verdict = judge(self.grad_norm, self.losses["loss"], self.scaler)
        guarded_step(self.optimizer, self.scaler, verdict)
        self.optimizer.zero_grad()
        if self.lr_scheduler:
            self.lr_scheduler.step()
        self.step += 1
        self.epoch_step += 1
        self._bad_steps.add(verdict, self.losses["loss"], self.step, image_ids(batches))
