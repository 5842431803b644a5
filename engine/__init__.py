"""The training loop: a `Trainer`, the `Hook` interface it calls, checkpoints and evaluation. Knows PyTorch, not RF-DETR."""

from engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from engine.evaluate import evaluate
from engine.hook import HOOK_POINTS, Hook
from engine.trainer import Trainer

__all__ = ["HOOK_POINTS", "CheckpointError", "Hook", "Trainer", "evaluate", "load_checkpoint", "save_checkpoint"]
