"""A training step: the same numbers as on a CPU, in every precision, without waiting for the device, in flat memory."""

import copy
import gc
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import engine.trainer
import rfdetr.training.device
from engine import Hook
from engine.loss import total_loss
from rfdetr import VARIANTS, build_criterion, build_model

STOPPED = "seen enough"
WARM_UP = 4


class StopAfter(Hook):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def after_step(self, trainer) -> None:
        if trainer.step == self.steps:
            trainer.stop(STOPPED)


@pytest.mark.parametrize("variant", ["pico", "pico_seg"])
def test_losses_and_gradients_are_those_of_a_cpu(gpu, variant):
    """In float64, so that both match the same pairs; masks are measured at random points, which the devices draw differently."""
    torch.manual_seed(0)
    config = replace(VARIANTS[variant], resolution=64, positional_encoding_size=6, num_queries=10, num_select=10, group_detr=2)
    model, criterion = build_model(config).double().train(), build_criterion(config).train()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    targets = [{"boxes": torch.rand(3, 4).double() * 0.3 + 0.2, "labels": torch.randint(80, (3,)),
                "masks": torch.rand(3, 64, 64) > 0.5} for _ in range(2)]
    found = []
    for device in (torch.device("cpu"), gpu):
        twin, on_device = copy.deepcopy(model).to(device), criterion.to(device)
        losses = on_device(twin(images.to(device)), [{k: v.to(device) for k, v in target.items()} for target in targets])
        losses = {name: value for name, value in losses.items() if "mask" not in name}
        total_loss(criterion, losses).backward()
        gradients = {name: p.grad.cpu() for name, p in twin.named_parameters() if p.grad is not None}
        found.append(({name: value.detach().cpu() for name, value in losses.items()}, gradients))
    if variant == "pico":
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)
    else:
        assert all(value.isfinite().all() for value in found[1][1].values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(device, precision, build):
    if device.type == "cpu" and precision != "fp32":
        pytest.skip("16 bits take long on a CPU")
    losses = Losses()
    trainer = build(device, [losses], train={"precision": precision, "epochs": 6}, eval={"every_epochs": 6})
    trainer.train()
    assert trainer.bad_steps <= 8 and trainer.scaler.is_enabled() == (precision == "fp16")
    first, *_, last = torch.tensor(losses.values).split(trainer.steps_per_epoch)
    assert torch.isfinite(last).all() and last.mean() < 0.9 * first.mean()


class Losses(Hook):
    def __init__(self) -> None:
        self.values = []

    def after_step(self, trainer) -> None:
        self.values.append(trainer.losses["loss"].item())


def allow_fp16_on_a_cpu(device: torch.device, precision: str, monkeypatch) -> None:
    """PyTorch can do it there, slowly; no run has a use for it."""
    if device.type == "cpu" and precision == "fp16":
        for module in (engine.trainer, rfdetr.training.device):
            monkeypatch.setattr(module, "resolve_precision", lambda asked, _: asked)


def test_an_overflow_skips_the_update_and_halves_the_scale(device, build, monkeypatch):
    """With fused AdamW, several parameter groups and clipping; it is counted, but not as a step that went wrong."""
    allow_fp16_on_a_cpu(device, "fp16", monkeypatch)
    seen = Overflow(at=5)
    trainer = build(device, [seen, StopAfter(7)], train={"precision": "fp16"}, optim={"clip_max_norm": 0.1})
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 256.0})  # which nothing else overflows with
    assert len(trainer.optimizer.param_groups) > 5 and trainer.optimizer.defaults["fused"]
    trainer.train()
    assert [seen.scales[step] for step in range(1, 8)] == [256] * 5 + [128] * 2
    assert seen.unchanged == [6]
    assert trainer.bad_steps == 1 and trainer._bad_steps.in_a_row == 0
    assert not (trainer.output_dir / "bad_steps.jsonl").exists()


class Overflow(Hook):
    """Plant an infinite gradient at a step, and note the scale and whether the weights moved after each."""

    def __init__(self, at: int) -> None:
        self.at, self.scales, self.unchanged = at, {}, []

    def before_optimizer_step(self, trainer) -> None:
        self.before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        if trainer.step == self.at:
            next(p for p in trainer.model.parameters() if p.grad is not None).grad.view(-1)[0] = float("inf")

    def after_step(self, trainer) -> None:
        self.scales[trainer.step] = trainer.scaler.get_scale()
        if all(torch.equal(*pair) for pair in zip(self.before, trainer.model.parameters())):
            self.unchanged.append(trainer.step)


class NoWaits(Hook):
    """Refuse to wait for the device after the warm-up, but for the one copy of a batch's costs, by `Tensor.cpu`.

    On CUDA that is PyTorch's to find, loading included; on a CPU the operations that would wait are looked out for within steps.
    """

    def __init__(self, monkeypatch) -> None:
        self.copies, self._watch = [], ExitStack()
        copy_to_host = torch.Tensor.cpu

        def permitted(tensor):
            if self.is_watching:
                self.copies.append(tuple(tensor.shape))
            mode = torch.cuda.get_sync_debug_mode() if tensor.is_cuda else 0
            try:
                if mode:
                    torch.cuda.set_sync_debug_mode("default")
                return copy_to_host(tensor)
            finally:
                if mode:
                    torch.cuda.set_sync_debug_mode(mode)

        monkeypatch.setattr(torch.Tensor, "cpu", permitted)
        self.is_watching = False

    def before_step(self, trainer, batches) -> None:
        self.is_watching = trainer.step >= WARM_UP
        if self.is_watching and trainer.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        elif self.is_watching:
            self._watch.enter_context(RefusedReads())

    def after_step(self, trainer) -> None:
        self._watch.close()
        if trainer.stop_reason:
            self.close()

    def close(self) -> None:
        self.is_watching = False
        self._watch.close()
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")


class RefusedReads(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.partition("::")[2]
        assert name not in ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal"), name
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(("precision", "accum", "variant"), [
    ("fp32", 1, "pico"), ("bf16", 2, "pico"), ("fp16", 1, "pico"), ("fp32", 1, "pico_seg"),
])  # fmt: skip
def test_a_step_waits_for_the_costs_alone(device, precision, accum, variant, build, monkeypatch):
    allow_fp16_on_a_cpu(device, precision, monkeypatch)
    waits = NoWaits(monkeypatch)
    trainer = build(device, [StopAfter(WARM_UP + 4), waits], model={"variant": variant}, log={"every_steps": 100},
                    data={"batch_size": 1}, train={"precision": precision, "grad_accum_steps": accum},
                    drop={"drop_path": 0.1}, optim={"clip_max_norm": 0.1, "warmup_epochs": 1.0})
    trainer.train()
    assert trainer.stop_reason == STOPPED and trainer.step == WARM_UP + 4
    assert 0 < len(waits.copies) <= 4 * accum, "one copy a batch at most"


def test_memory_is_flat(device, build):
    """Over 200 steps on a GPU, over 40 on a CPU, where the tensors are counted; from the first save on."""
    far = 200 if device.type == "cuda" else 40
    memory = Memory(every=far // 4)
    trainer = build(device, [memory, StopAfter(far)], train={"epochs": 100}, eval={"every_epochs": 100}, log={"every_steps": 10})
    trainer.train()
    assert len(memory.found) == 4
    assert max(memory.found[1:]) <= memory.found[0] * 1.01 + (2**20 if device.type == "cuda" else 4), memory.found


class Memory(Hook):
    def __init__(self, every: int) -> None:
        self.every, self.found = every, []

    def after_step(self, trainer) -> None:
        if trainer.step % self.every == 0:
            gc.collect()
            on_cuda = trainer.device.type == "cuda"
            tensors = [] if on_cuda else [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
            self.found.append(torch.cuda.memory_allocated(trainer.device) if on_cuda else len(tensors))
