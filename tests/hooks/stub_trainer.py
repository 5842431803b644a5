"""A trainer without a loop: just what hooks may use."""

import io
import json
from pathlib import Path

import torch
from torch import nn

GOLDENS = Path(__file__).parents[1] / "goldens" / "training"


def golden(name):
    """Read a golden; NaN and infinities are written as strings there."""
    special = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}

    def restored(value):
        if isinstance(value, list):
            return [restored(item) for item in value]
        if isinstance(value, dict):
            return {key: restored(item) for key, item in value.items()}
        return special.get(value, value) if isinstance(value, str) else value

    return restored(json.loads((GOLDENS / f"{name}.json").read_text()))


def through_a_file(state):
    """Save and load a state the way a checkpoint does."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class StubTrainer:
    def __init__(self, output_dir=".", model=None, hooks=(), max_epochs=10, steps_per_epoch=4):
        self.unwrapped_model = self.model = model if model is not None else nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        self.device = torch.device("cpu")
        self.output_dir = Path(output_dir)
        self.hooks = list(hooks)
        self.max_epochs, self.steps_per_epoch, self.max_steps = max_epochs, steps_per_epoch, max_epochs * steps_per_epoch
        self.epoch = self.step = self.epoch_step = 0
        self.train_loader = []
        self.losses, self.grad_norm, self.metrics = {}, torch.zeros(()), {}
        self.eval_models = {"regular": self.unwrapped_model}
        self.stop_reason, self.interrupted = None, False
        self.num_images, self.data_seconds, self.bad_steps = 0, 0.0, 0

    @property
    def is_finished(self):
        return self.epoch >= self.max_epochs or self.step >= self.max_steps

    def stop(self, reason):
        self.stop_reason = self.stop_reason or reason

    def interrupt(self, reason):
        self.interrupted = True
        self.stop(reason)

    def publish_metrics(self, metrics):
        self.metrics = dict(metrics)
        for hook in self.hooks:
            hook.after_eval(self, self.metrics)

    def state_dict(self):
        return {
            "model": self.model.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "hooks": {hook.name: hook.state_dict() for hook in self.hooks},
        }


class Constant(nn.Module):
    """A model of one number."""

    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))

    def set(self, value):
        self.weight.data.fill_(value)
