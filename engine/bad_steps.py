"""Counting the updates that were skipped, and writing down whose images they were."""

import json
import logging
from pathlib import Path

import torch
from torch import Tensor

from engine.distributed import gather_objects, is_main_process
from engine.precision import FINE, OVERFLOW
from engine.watch import NonFiniteError

logger = logging.getLogger(__name__)


class BadStepCounter:
    """Count skipped updates, and stop a run that makes no progress any more.

    On CUDA a verdict is read `lag` steps after it was made: the host waits only where it is further ahead of the device than
    that. Every rank reads the same verdicts at the same steps.

    Args:
        max_in_a_row: so many bad updates in a row raise NonFiniteError; those that only search for fp16's loss scale count
            in `total` alone.
        file: gets a line of JSON for each bad update.
    """

    def __init__(self, device: torch.device, max_in_a_row: int, file: Path, lag: int = 8) -> None:
        self.max_in_a_row = max_in_a_row
        self.file = file
        self.lag = lag if device.type == "cuda" else 0
        self.total = 0
        self.in_a_row = 0
        self._pending: list[tuple[Tensor, torch.cuda.Event | None, int, list]] = []

    def add(self, verdict: Tensor, loss: Tensor, step: int, image_ids: list) -> None:
        """Note the verdict of update number `step`; `image_ids`, values or tensors, are only read if the update was bad."""
        flags, event = torch.stack([verdict, (~torch.isfinite(loss)).to(verdict.dtype)]), None
        if flags.is_cuda:
            on_device, flags = flags, torch.empty_like(flags, device="cpu", pin_memory=True)
            flags.copy_(on_device, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((flags, event, step, image_ids))
        while len(self._pending) > self.lag:
            self._read_oldest()

    def state_dict(self) -> dict[str, int]:
        """Return the counts. Collective."""
        self.flush()
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def flush(self) -> None:
        """Read every verdict that is still under way."""
        while self._pending:
            self._read_oldest()

    def _read_oldest(self) -> None:
        flags, event, step, image_ids = self._pending.pop(0)
        if event is not None:
            event.synchronize()
        verdict, is_loss_bad = flags.tolist()
        if verdict == FINE:
            self.in_a_row = 0
            return
        self.total += 1
        if verdict == OVERFLOW:
            logger.info("step %d: update skipped, since fp16's loss scale was too large; it is halved", step)
            return
        self.in_a_row += 1
        names = self._write(step, [int(image_id) for image_id in image_ids], bool(is_loss_bad))
        logger.warning("step %d: the gradient is not finite, update skipped (%d so far); image ids %s", step, self.total, names)
        if self.in_a_row >= self.max_in_a_row:
            raise NonFiniteError(
                f"{self.in_a_row} updates in a row had non-finite gradients, the last at step {step} with image ids {names}. "
                "The weights were not touched by them and the last checkpoint is good; lower the learning rate, use precision "
                "bf16 or fp32, or look at these images"
            )

    def _write(self, step: int, own_names: list[int], is_loss_bad: bool) -> list[int]:
        """Return the images of the ranks whose own losses were bad, of all ranks where none was. Collective."""
        ranks = gather_objects((own_names, is_loss_bad))
        suspects = [names for names, is_bad in ranks if is_bad] or [names for names, _ in ranks]
        found = [name for names in suspects for name in names]
        if is_main_process():
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with open(self.file, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, "image_ids": found, "in_a_row": self.in_a_row}) + "\n")
            except OSError as error:  # a full disk must not end the training
                logger.warning("%s: not written (%s)", self.file, error)
        return found
