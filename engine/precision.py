"""Numeric precision of a run: choosing it, autocast, the gradient scaler, and updates that skip non-finite gradients."""

import logging
import platform
from functools import cache

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from engine.distributed import all_reduce_max

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


FINE, OVERFLOW, BAD = 0, 1, 2  # verdicts about an update


def judge(grad_norm: Tensor, loss: Tensor, scaler: GradScaler) -> Tensor:
    """Return whether an update may be made: FINE, OVERFLOW (only the loss scale of fp16 was too large) or BAD, as a 0-dim tensor.

    The worst over the ranks, so that all of them make the update or none does. Nothing waits for the device.
    """
    verdict = (~torch.isfinite(grad_norm)).to(loss.device, torch.float32) * BAD
    if scaler.is_enabled():
        is_search = torch.isfinite(loss) & (scaler._get_scale_async() > 1)  # type: ignore[operator]  # it is enabled
        verdict = torch.where(is_search, verdict.clamp(max=OVERFLOW), verdict)
    return all_reduce_max(verdict)


def guarded_step(optimizer: Optimizer, scaler: GradScaler, verdict: Tensor) -> None:
    """Update the weights if the verdict is FINE.

    With a fused optimizer nothing waits for the device: its kernel looks at the flag, our own or the scaler's. For other
    optimizers the answer has to be known on the host, and the scaler waits for it inside of `step`.
    """
    if scaler.is_enabled():
        for found in scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
            found.copy_(verdict > FINE)  # the scaler looked before the hooks had the gradients, and on this rank alone
        scaler.step(optimizer)
        scaler.update()
    elif all(group.get("fused") for group in optimizer.param_groups):
        vars(optimizer).update(grad_scale=None, found_inf=(verdict > FINE).float())  # the hand-over that GradScaler itself uses
        optimizer.step()
    elif verdict.item() == FINE:  # sync point
        optimizer.step()
