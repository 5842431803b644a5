"""Train a small detector for 20 steps on eight images a step, in the way asked for, in float64 and again in float32.

Rank 0 writes weights and losses.

Usage: python equivalence_run.py DATA OUT BATCH_SIZE GRAD_ACCUM_STEPS (under torchrun for several processes)
"""

import sys

import torch

from engine import Hook, Trainer
from engine.distributed import all_reduce_sum, is_main_process, process_group, world_size
from rfdetr import LossConfig, build_criterion, build_model
from rfdetr.training import DataConfig, DetectorConfig, RunConfig, TrainConfig
from rfdetr.training.data import build_train_loader, open_run_data


class Recorder(Hook):
    """Turn the batches into `dtype`, keep the losses, stop after 20 steps."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.losses: list[torch.Tensor] = []

    def before_step(self, trainer: Trainer, batches: list) -> None:
        for index, (samples, targets) in enumerate(batches):
            targets = [{**target, "boxes": target["boxes"].to(self.dtype)} for target in targets]
            batches[index] = (samples.to("cpu", dtype=self.dtype), targets)

    def after_step(self, trainer: Trainer) -> None:
        self.losses.append(all_reduce_sum(trainer.losses["loss"]) / world_size())  # over all eight images
        if trainer.step == 20:
            trainer.stop("20 steps")


def run(dtype: torch.dtype, data: str, batch_size: int, grad_accum_steps: int) -> dict:
    torch.manual_seed(0)
    config = RunConfig(
        model=DetectorConfig(variant="pico", num_classes=4, resolution=64, num_queries=6, group_detr=3),
        data=DataConfig(dataset_dir=data, batch_size=batch_size, num_workers=0, augment="default", multi_scale=True),
        train=TrainConfig(grad_accum_steps=grad_accum_steps, seed=3),
    )
    opened = open_run_data(config)
    loader = build_train_loader(config, opened, torch.device("cpu"))
    model = build_model(opened.architecture).to(dtype)
    criterion = build_criterion(opened.architecture, LossConfig(normalize="window"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    recorder = Recorder(dtype)
    Trainer(
        model, criterion, optimizer, loader, max_epochs=20, grad_accum_steps=grad_accum_steps, clip_grad_norm=0.1,
        loss_normalize="window", device="cpu", precision="fp32", hooks=[recorder],
    ).train()
    return {"model": model.state_dict(), "losses": torch.stack(recorder.losses)}


if __name__ == "__main__":
    folder, out, *sizes = sys.argv[1:]
    with process_group(torch.device("cpu")):
        results = {str(dtype): run(dtype, folder, *map(int, sizes)) for dtype in (torch.float64, torch.float32)}
        if is_main_process():
            torch.save(results, out)
