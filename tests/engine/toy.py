"""A regression model with dropout, and data that are a function of their position: enough to test the loop."""

import torch
from torch import nn

from engine import Hook, Trainer


class ToyModel(nn.Module):
    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8, dtype=dtype), nn.Linear(8, 1, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, samples, targets=None):
        return {"pred": self.second(self.dropout(self.first(samples).relu()))[:, 0]}


class ToyCriterion(nn.Module):
    """Squared error, a sum over images divided by the number of "boxes"."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_dict = {"loss_fit": 2.0}

    def count_boxes(self, targets) -> int:
        return sum(target["boxes"] for target in targets)

    def forward(self, outputs, targets, num_boxes=None):
        y = torch.stack([target["y"] for target in targets])
        total = ((outputs["pred"] - y) ** 2).sum()
        divisor = num_boxes if num_boxes is not None else max(self.count_boxes(targets), 1)
        return {"loss_fit": total / divisor, "diagnostic": total.detach()}


class ToySampler:
    """Batches of positions; the order is a function of the epoch."""

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples, self.batch_size, self.rank, self.world_size = num_samples, batch_size, rank, world_size
        self.samples_per_batch = batch_size * world_size
        self.epoch = self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        return self.num_samples // self.samples_per_batch

    def __iter__(self):
        order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for batch in range(self.start_batch, len(self)):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield order[first : first + self.batch_size]


class ToyLoader:
    def __init__(self, batch_sampler, dtype: torch.dtype = torch.float64) -> None:
        self.batch_sampler, self.dtype = batch_sampler, dtype

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self):
        torch.rand(1)  # as a real loader draws a seed when it starts
        return self._batches()

    def _batches(self):
        for indices in self.batch_sampler:
            samples = torch.stack([sample(index, self.dtype) for index in indices])
            targets = [{"y": x.sin().sum(), "boxes": i % 4, "image_id": torch.tensor([i])} for x, i in zip(samples, indices)]
            yield samples, targets


def sample(index: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(4, generator=torch.Generator().manual_seed(1000 + index), dtype=dtype)


def make_trainer(
    output_dir, *, batch_size=4, dropout=0.0, num_samples=24, rank=0, world_size=1, fused=False, dtype=torch.float64, **arguments
) -> Trainer:
    torch.manual_seed(0)
    model = ToyModel(dropout, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 10))
    loader = ToyLoader(ToySampler(num_samples, batch_size, rank, world_size), dtype)
    defaults = {"max_epochs": 2, "device": "cpu", "precision": "fp32", "lr_scheduler": scheduler, "output_dir": output_dir}
    return Trainer(model, ToyCriterion(), optimizer, loader, **{**defaults, **arguments})


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.unwrapped_model.parameters()])


class StopAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer) -> None:
        if trainer.step == self.step:
            trainer.stop(f"step {self.step}")
