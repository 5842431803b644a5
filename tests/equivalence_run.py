"""Train a small detector in float64 for 20 steps on eight images a step, in the way asked for; rank 0 writes its weights.

Usage: python equivalence_run.py DATA OUT BATCH_SIZE GRAD_ACCUM_STEPS (under torchrun for several processes)
"""

import sys
from dataclasses import replace

import torch

from engine import Hook, Trainer
from engine.distributed import is_main_process, process_group, rank, world_size
from rfdetr import VARIANTS, DataConfig, LossConfig, TrainConfig, build_criterion, build_model
from rfdetr.build import build_dataset, build_loader


class InDouble(Hook):
    """Turn the batches into float64, keep the losses, stop after 20 steps."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []

    def before_step(self, trainer: Trainer, batches: list) -> None:
        for index, (samples, targets) in enumerate(batches):
            targets = [{**target, "boxes": target["boxes"].double()} for target in targets]
            batches[index] = (samples.to("cpu", dtype=torch.float64), targets)

    def after_step(self, trainer: Trainer) -> None:
        self.losses.append(trainer.losses["loss"])
        if trainer.step == 20:
            trainer.stop("20 steps")


def run(data: str, out: str, batch_size: int, grad_accum_steps: int) -> None:
    torch.manual_seed(0)
    model_config = replace(VARIANTS["pico"], resolution=64, positional_encoding_size=4, num_queries=6, group_detr=3, num_classes=6)
    data_config = DataConfig(dataset_dir=data, batch_size=batch_size, num_workers=0, augment="default", multi_scale=True)
    dataset = build_dataset(data_config, model_config, "train")
    train = TrainConfig(grad_accum_steps=grad_accum_steps, seed=3)
    loader = build_loader(dataset, data_config, model_config, train=train, rank=rank(), world_size=world_size())
    model = build_model(model_config).double()
    hook = InDouble()
    Trainer(
        model, build_criterion(model_config, LossConfig(normalize="window")), torch.optim.AdamW(model.parameters(), lr=1e-4), loader,
        max_epochs=20, grad_accum_steps=grad_accum_steps, clip_grad_norm=0.1, loss_normalize="window", device="cpu",
        output_dir=out, hooks=[hook],
    ).train()  # fmt: skip
    if is_main_process():
        torch.save({"model": model.state_dict(), "losses": torch.stack(hook.losses)}, out)


if __name__ == "__main__":
    with process_group(torch.device("cpu")):
        run(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
