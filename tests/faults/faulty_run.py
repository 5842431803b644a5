"""A toy run in one of several processes in which something goes wrong: ``python faulty_run.py FOLDER FAULT TIMEOUT_SECONDS``."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

import torch
from toy import make_trainer, weights

from engine import Hook
from engine.distributed import gather_objects, process_group, rank, world_size
from hooks import CheckpointHook, InterruptHook
from rfdetr.errors import InputError
from rfdetr.training.command_line import ExitCode, run_tool

FOLDER, FAULT, TIMEOUT = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
STEP = 3  # in which it happens, to the last rank


class Fault(Hook):
    """What goes wrong within a step."""

    def before_step(self, trainer, batches):
        self.happens = trainer.step + 1 == STEP and rank() == world_size() - 1
        if FAULT == "long steps":
            (FOLDER / f"in_step{trainer.step + 1}_of_rank{rank()}").touch()
            time.sleep(2)
        if self.happens and FAULT == "exception":
            raise KeyError("in a hook")
        if self.happens and FAULT == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.happens and FAULT == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.happens and FAULT == "hangs":
            time.sleep(1000)

    def before_optimizer_step(self, trainer):
        if self.happens and FAULT == "NaN":
            trainer.unwrapped_model.first.weight.grad[0, 0] = float("nan")


class FaultyLoader:
    """Passes on the batches of a loader until something happens."""

    def __init__(self, loader):
        self.loader, self.batch_sampler = loader, loader.batch_sampler

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for number, batch in enumerate(self.loader, start=1):
            if number == STEP and rank() == world_size() - 1:
                if FAULT == "bad image":
                    raise InputError("7.png: cannot be read")
                if FAULT == "waiting":
                    (FOLDER / "waiting").touch()
                    time.sleep(1000)
            yield batch


def main() -> ExitCode:
    logging.basicConfig(level=logging.INFO)
    with process_group(torch.device("cpu"), TIMEOUT / 60):
        hooks = [Fault(), InterruptHook(), CheckpointHook()]
        made = make_trainer(FOLDER, rank=rank(), world_size=world_size())
        loader = FaultyLoader(made.train_loader)
        trainer = type(made)(made.unwrapped_model, made.criterion, made.optimizer, loader, max_epochs=4, hooks=hooks,
                             device="cpu", output_dir=FOLDER)
        trainer.train()
        own = weights(trainer)
        same = all(torch.equal(own, other) for other in gather_objects(own))
        sys.stdout.write(f"\nrank {rank()} at step {trainer.step}, skipped {trainer.bad_steps}, equal weights: {same}\n")
        return ExitCode.INTERRUPTED if trainer.interrupted else ExitCode.DONE


if __name__ == "__main__":
    run_tool(main)
