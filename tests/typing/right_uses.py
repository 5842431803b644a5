"""The public names as a user's own code has them: a type checker finds nothing wrong here. It is read, not run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import HOOK_POINTS, CheckpointError, Trainer, evaluate, load_checkpoint, save_checkpoint
from hooks import BestCheckpointHook, CheckpointHook, EarlyStopHook, EMAHook, Hook
from rfdetr import (
    VARIANTS,
    InputError,
    LossConfig,
    ModelConfig,
    Prediction,
    build_criterion,
    build_model,
    build_postprocess,
    load,
    load_weights,
)
from rfdetr.training import DataConfig, DetectorConfig, RunConfig, TrainConfig, build_trainer, train


class Mine(Hook):
    """A hook with arguments of its own, state, and metrics."""

    def __init__(self, every: int = 2) -> None:
        self.every = every

    def after_step(self, trainer: Trainer) -> None:
        if trainer.step % self.every == 0:
            trainer.stop("enough")

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        worst: float = min(metrics.values())
        (trainer.output_dir / f"{trainer.epoch + 1}.txt").write_text(f"{worst:.3f}")

    def measured(self, trainer: Trainer, name: str) -> dict[str, float]:
        return {f"{name}/mine": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {"every": self.every}


def run(folder: Path) -> dict[str, Any]:
    config = RunConfig(model=DetectorConfig(variant="pico", resolution=(64, 96)), data=DataConfig(batch_size="auto"),
                       train=TrainConfig(epochs=3, effective_batch=8, output_dir=str(folder)))
    trainer: Trainer = build_trainer(RunConfig.from_yaml(folder / "run.yaml"), [Mine()])
    trainer.train()
    return train(config, hooks=[Mine(3), EarlyStopHook(patience=3)], resume="auto")


def own_loop(batches: list[tuple[Tensor, list[dict[str, Tensor]]]]) -> list[str]:
    config: ModelConfig = VARIANTS["pico"]
    model: nn.Module = build_model(config)
    criterion = build_criterion(config, LossConfig(cls="focal"))
    optimizer = torch.optim.AdamW(model.parameters())
    hooks: list[Hook] = [EMAHook(decay=0.9), CheckpointHook(keep=2), BestCheckpointHook()]
    trainer = Trainer(model, criterion, optimizer, batches, max_epochs=2, hooks=hooks, precision="fp32")
    trainer.train()
    save_checkpoint(trainer.state_dict(), Path("checkpoint.pth"))
    report = load_weights(model, load_checkpoint("checkpoint.pth"))
    evaluate({"regular": model}, batches, build_postprocess(config), {})
    return [*report.missing, HOOK_POINTS[0]]


def use(picture: Path) -> list[str]:
    try:
        found = load("rf-detr-nano.pth", device="cpu").predict([picture, torch.zeros(3, 8, 8)], threshold=0.3)
    except (InputError, CheckpointError) as error:
        return [str(error)]
    prediction: Prediction = found[0]
    prediction.draw().save("drawn.png")
    return [str(name) for name in prediction.names]
