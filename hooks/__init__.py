"""What watches and steers a training run; subclass `Hook` for your own."""

from engine.hook import Hook
from hooks.best_checkpoint import BestCheckpointHook
from hooks.checkpoint import CheckpointHook
from hooks.coco_eval import COCOEvalHook
from hooks.drop_path import DropPathHook
from hooks.early_stop import EarlyStopHook
from hooks.ema import EMAHook
from hooks.eval_loss import EvalLossHook
from hooks.interrupt import InterruptHook
from hooks.log import LogHook
from hooks.plateau import PlateauHook
from hooks.plots import PlotsHook
from hooks.progress import ProgressHook

__all__ = [
    "BestCheckpointHook",
    "COCOEvalHook",
    "CheckpointHook",
    "DropPathHook",
    "EMAHook",
    "EarlyStopHook",
    "EvalLossHook",
    "Hook",
    "InterruptHook",
    "LogHook",
    "PlateauHook",
    "PlotsHook",
    "ProgressHook",
]
