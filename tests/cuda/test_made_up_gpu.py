"""A step's operations on CUDA tensors that are only made up, without any GPU: no mixing of devices, and nothing to wait for.

PyTorch's fake tensors know their device and refuse to be read. Backward, which needs the driver's threads, is left to a GPU.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.loss import total_loss, window_normalizer
from engine.precision import guarded_step, judge, make_scaler
from hooks.log import RunningMeans
from rfdetr import VARIANTS, LossConfig, ModelConfig, build_criterion, build_model, build_postprocess
from rfdetr.optim import build_optimizer, param_groups

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 14) and not torch.cuda.is_available(),
                                reason="an older PyTorch (2.6) asks the driver for made-up tensors' streams, and aborts")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def empty_caches():
    """Tables that are made once and kept would be made-up ones afterwards, or real ones now."""
    clear_caches()
    yield
    clear_caches()


def clear_caches() -> None:
    modules = [module for name, module in sys.modules.items() if name.startswith("rfdetr.")]
    for value in [value for module in modules for value in vars(module).values()]:
        if hasattr(value, "cache_clear"):
            value.cache_clear()


class RefusedWaits(TorchDispatchMode):
    """Refuse copies between devices that the host waits for, and note their sources where they are allowed."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation._schema.name.partition("::")[2]
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            target = kwargs.get("device") or source.device if name == "_to_copy" else args[0].device
            is_waiting = source.numel() and not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            assert torch.device(target).type == source.device.type or not is_waiting, f"a copy to {target} is waited for"
        if name in ("index", "index_put_", "index_put"):
            indices = [index for index in args[1] if index is not None]
            assert all(index.device == args[0].device for index in indices), "indices are copied, which is waited for"
            assert not any(index.dtype == torch.bool for index in indices), "the size of a selection is waited for"
        return operation(*args, **kwargs)


def small_config(variant: str) -> ModelConfig:
    return replace(VARIANTS[variant], resolution=64, num_queries=10, num_select=10, group_detr=2)


def move(model: nn.Module) -> nn.Module:
    """Put tensors of the made-up GPU in the place of a model's own."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            moved = torch.empty(parameter.shape, device=GPU)
            module.register_parameter(name, nn.Parameter(moved, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU))
    return model


def inputs() -> tuple[torch.Tensor, list[dict]]:
    targets = [{"boxes": torch.rand(count, 4, device=GPU), "labels": torch.randint(80, (count,), device=GPU),
                "masks": torch.rand(count, 64, 64, device=GPU) > 0.5} for count in (3, 1)]
    return torch.randn(2, 3, 64, 64, device=GPU), targets


def step(model, criterion, optimizer, means) -> None:
    images, targets = inputs()
    window = window_normalizer(criterion, [(images, targets)], GPU)
    losses = criterion(model(images, targets), targets, **window)
    loss = total_loss(criterion, losses)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    nn.utils.clip_grads_with_norm_(model.parameters(), 0.1, norm)
    scaler = make_scaler(GPU, "fp32")
    guarded_step(optimizer, scaler, judge(norm, loss.detach(), scaler))
    means.add({name: value.detach() for name, value in losses.items()})
    assert {value.device for value in (loss, norm, means.totals, *losses.values())} == {GPU}


@pytest.mark.parametrize(("variant", "loss"), [
    ("pico", "ia_bce"), ("pico", "position"), ("pico", "varifocal"), ("pico", "focal"), ("pico_seg", "ia_bce"),
])  # fmt: skip
def test_a_step_stays_on_the_gpu_and_waits_for_the_costs_alone(variant, loss, monkeypatch):
    torch.manual_seed(0)
    model = build_model(small_config(variant))
    criterion = build_criterion(small_config(variant), LossConfig(cls=loss)).train()
    copied = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda costs: copied.append(costs) or costs)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda costs: np.random.default_rng(0).random(costs.shape))
    with FakeTensorMode():
        move(model).train()
        optimizer = build_optimizer(param_groups(model, lr=1e-4, lr_encoder=1e-4, lr_vit_layer_decay=0.8, lr_component_decay=0.7,
                                                 weight_decay=1e-4))
        means = RunningMeans()
        with RefusedWaits():
            for _ in range(3):
                step(model, criterion, optimizer, means)
    assert optimizer.defaults["fused"]
    assert len(copied) == 3 and {costs.device for costs in copied} == {GPU}


def test_an_evaluation_stays_on_the_gpu():
    model, postprocess = build_model(small_config("pico")), build_postprocess(small_config("pico"))
    with FakeTensorMode(), torch.no_grad(), RefusedWaits():
        outputs = move(model).eval()(inputs()[0])
        results = postprocess(outputs, torch.empty(2, 2, dtype=torch.int64, device=GPU))
    assert {value.device for result in results for value in result.values()} == {GPU}


@pytest.mark.parametrize("wait", [
    lambda x: x.cpu(), lambda x: x + torch.ones(2), lambda x: x[torch.tensor([0, 1])], lambda x: x[x > 0], lambda x: x.nonzero(),
    lambda x: bool(x.sum()), lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: torch.ones(2).to(GPU),
    lambda x: torch.tensor([1.0], device=GPU),
])
def test_what_this_finds(wait):
    with FakeTensorMode(), RefusedWaits(), pytest.raises(Exception):  # noqa: B017  each has its own
        wait(torch.ones(2, device=GPU))
