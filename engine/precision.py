"""Numeric precision of a run: choosing it, autocast, the gradient scaler, and an update that skips non-finite gradients."""

import logging
import platform
from functools import cache

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

logger = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into "bf16" where `multiplies_bf16`, else "fp16" on CUDA and "fp32" on a CPU or MPS; check the others.

    Raises:
        ValueError: an unknown name, or fp16 on a device that has no use for it.
    """
    if precision not in ("auto", "bf16", "fp16", "fp32"):
        raise ValueError(f"precision: {precision!r} is not one of auto, bf16, fp16, fp32")
    if precision == "auto":
        if multiplies_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision: fp16 needs a CUDA device, this run is on {device.type!r}; use bf16 or fp32")
    if precision == "bf16" and device.type == "cpu" and not multiplies_bf16(device):
        _warn_of_emulation()
    return precision


def multiplies_bf16(device: torch.device) -> bool:
    """Tell whether the device has instructions that multiply bf16; where it has none, bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # on x86 oneDNN also supports bf16 where AVX-512 has to convert each number first, at twice the time of fp32
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache  # once a process
def _warn_of_emulation() -> None:
    logger.warning("precision: bf16 is emulated on this CPU, which has no instructions to multiply it, so that a step can take "
                   "ten times as long as in fp32; use auto or fp32")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the forward pass runs; it does nothing for fp32."""
    return torch.autocast(device.type, dtype=_DTYPES.get(precision), enabled=precision in _DTYPES)


def make_scaler(device: torch.device, precision: str) -> GradScaler:
    """Return a loss scaler, enabled for fp16 only: bf16 has the exponent range of fp32 and needs none."""
    return GradScaler(device.type, enabled=precision == "fp16")


def guarded_step(optimizer: Optimizer, scaler: GradScaler, grad_norm: Tensor) -> Tensor:
    """Update the weights unless `grad_norm` is not finite; return whether the update was skipped, as a 0-dim bool tensor.

    Gradients are averaged over ranks before their norm is taken, so one bad rank makes the norm bad on all of them and
    they agree without a message. With a fused optimizer nothing waits for the device: its kernel looks at the flag, our own or
    the scaler's. For other optimizers the answer has to be known on the host, and the scaler waits for it inside of `step`.
    """
    skipped = ~torch.isfinite(grad_norm)
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    elif all(group.get("fused") for group in optimizer.param_groups):
        optimizer.grad_scale, optimizer.found_inf = None, skipped.float()  # the hand-over that GradScaler itself uses
        optimizer.step()
    elif not skipped.item():  # sync point
        optimizer.step()
    return skipped


class BadStepCounter:
    """Count skipped updates, and stop a run that makes no progress any more.

    On CUDA a flag is read `lag` steps after it was made: the host waits only where it is further ahead of the device than that.
    Every rank reads the same flags at the same steps.
    """

    def __init__(self, device: torch.device, max_in_a_row: int, lag: int = 8) -> None:
        self.max_in_a_row = max_in_a_row
        self.lag = lag if device.type == "cuda" else 0
        self.total = 0
        self.in_a_row = 0
        self._pending: list[tuple[Tensor, torch.cuda.Event | None, int, list]] = []

    def add(self, skipped: Tensor, step: int, image_ids: list) -> None:
        """Note the flag of update number `step`; `image_ids`, values or tensors, are only read if the update was skipped."""
        flag, event = skipped, None
        if skipped.is_cuda:
            flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            flag.copy_(skipped, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((flag, event, step, image_ids))
        while len(self._pending) > self.lag:
            self._read_oldest()

    def flush(self) -> None:
        """Read every flag that is still under way."""
        while self._pending:
            self._read_oldest()

    def _read_oldest(self) -> None:
        flag, event, step, image_ids = self._pending.pop(0)
        if event is not None:
            event.synchronize()
        if not flag.item():
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        names = [int(image_id) for image_id in image_ids]
        logger.warning("step %d: the gradient is not finite, update skipped (%d so far); image ids %s", step, self.total, names)
        if self.in_a_row >= self.max_in_a_row:
            raise FloatingPointError(
                f"{self.in_a_row} updates in a row had non-finite gradients, the last at step {step} with image ids {names}. "
                "The weights were not touched by them and the last checkpoint is good; lower the learning rate, use precision "
                "bf16 or fp32, or look at these images"
            )
