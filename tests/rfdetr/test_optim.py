"""Parameter groups and schedules against the goldens of the published tool; optimizers and schedulers by name."""

import functools
import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from rfdetr.build import build_model
from rfdetr.config import VARIANTS
from rfdetr.errors import InputError
from rfdetr.optim import build_lr_scheduler, build_optimizer, lr_multiplier, param_groups

GOLDENS = Path(__file__).parents[1] / "goldens" / "training"
SCHEDULES = json.loads((GOLDENS / "lr_schedule.json").read_text())["managed"]
GROUPS = json.loads((GOLDENS / "param_groups.json").read_text())
RATES = ("lr", "lr_encoder", "lr_vit_layer_decay", "lr_component_decay", "weight_decay")


def golden_entries(case: dict) -> Counter:
    """(lr, weight decay, shape) of all parameters of a golden that ours has too.

    Decision 28: the mask token never gets a gradient, so it is not trained here.
    """
    entries = Counter()
    for name, index, shape in case["params"]:
        if not name.endswith("mask_token"):
            group = case["groups"][index]
            entries[f"{group['lr']:.9g}", group["effective_weight_decay"], tuple(shape)] += 1
    return entries


def our_entries(model: nn.Module, groups: list[dict]) -> Counter:
    """The same for our groups; our one query-key-value projection is the three of the golden."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    entries = Counter()
    for group in groups:
        for parameter in group["params"]:
            parts = parameter.chunk(3) if ".attn.qkv." in names[parameter] else (parameter,)
            for part in parts:
                entries[f"{group['lr']:.9g}", group["weight_decay"], tuple(part.shape)] += 1
    return entries


@functools.cache
def nano() -> nn.Module:
    return build_model(VARIANTS["nano"])


def variant_name(case: dict) -> str:
    return re.fullmatch(r"RFDETR(\w+)Config", case["model"])[1].lower()


@pytest.mark.parametrize("case", GROUPS, ids=lambda case: f"{case['model']}-{case['lr']}-{case['model_kwargs']}")
def test_param_groups_golden(case):
    model = nano() if variant_name(case) == "nano" else build_model(VARIANTS[variant_name(case)])
    model.backbone.encoder.requires_grad_(not case["model_kwargs"].get("freeze_encoder"))
    try:
        groups = param_groups(model, **{name: case[name] for name in RATES})
    finally:
        model.backbone.encoder.requires_grad_(True)
    assert our_entries(model, groups) == golden_entries(case)
    assert [group["lr"] for group in groups] == pytest.approx([group["lr"] for group in case["groups"]], rel=1e-9)
    assert [group["weight_decay"] for group in groups] == [group["effective_weight_decay"] for group in case["groups"]]


def test_blocks_after_the_last_tap_have_no_group():
    """Decision 28: the last block of base never gets a gradient, which leaves 26 of the published 28 groups."""
    model = build_model(VARIANTS["base"])
    groups = param_groups(model, **dict(zip(RATES, (1e-4, 1.5e-4, 0.8, 0.7, 1e-4))))
    assert len(groups) == 26
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(trained) and set(grouped) == set(trained)
    assert groups[0]["lr"] == 1e-4 and model.class_embed.weight in set(groups[0]["params"])


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: f"{case['lr_scheduler']}-{case['total']}-{case['warm']}")
def test_lr_multiplier_golden(case):
    """Decision 4: past the end the cosine stays at its minimum, where the golden rises again."""
    total, options = case["total"], dict(case["kw"])
    for step, golden in enumerate(case["multipliers"]):
        value = lr_multiplier(
            step, schedule=case["lr_scheduler"], total_steps=total, steps_per_epoch=case["steps_per_epoch"],
            warmup_epochs=case["warm"], **options,
        )
        if case["lr_scheduler"] == "cosine" and step > total:
            golden = options.get("min_factor", 0.0)
        assert value == pytest.approx(golden, abs=1e-9), step


@pytest.mark.parametrize(("options", "expected"), [
    ({"schedule": "flat_cosine", "flat": 0.5}, [1, 1, 1, 0.75, 0.5, 0.5]),
    ({"schedule": "flat_cosine", "flat": 0.0}, [1, 0.5 + 0.25 * (1 + 2**-0.5), 0.75, 0.5 + 0.25 * (1 - 2**-0.5), 0.5, 0.5]),
    ({"schedule": "flat_cosine", "warmup_epochs": 1.5}, [0, 1 / 3, 2 / 3, 1, 0.5, 0.5]),  # longer than the flat part
    ({"schedule": "polynomial", "power": 1.0}, [1, 0.875, 0.75, 0.625, 0.5, 0.5]),
    ({"schedule": "polynomial", "power": 2.0, "warmup_epochs": 0.5}, [0, 1, 0.5 + 0.5 * (2 / 3) ** 2, 0.5 + 0.5 / 9, 0.5, 0.5]),
    ({"schedule": "plateau", "warmup_epochs": 1.0}, [0, 0.5, 1, 1, 1, 1]),
], ids=str)  # fmt: skip
def test_schedules_in_four_steps_of_two_epochs(options, expected):
    found = [lr_multiplier(step, total_steps=4, steps_per_epoch=2, min_factor=0.5, **options) for step in range(6)]
    assert found == pytest.approx(expected)


RULES = [{"match": "*.bias", "lr_scale": 2.0, "weight_decay": 0}, {"match": "transformer.decoder", "lr_scale": 0.5}]


def test_rules_go_on_top_of_the_published_groups():
    model = build_model(VARIANTS["pico"])
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = dict(zip(RATES, (1e-4, 1.5e-4, 0.8, 0.7, 1e-4)))

    def settings(**rules) -> dict:
        groups = param_groups(model, **rates, **rules)
        assert groups[0]["lr"] == 1e-4 and groups[0]["weight_decay"] == 1e-4, "what is logged as train/lr"
        return {names[parameter]: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}

    before, after = settings(), settings(rules=RULES)
    assert before.keys() == after.keys()
    for name, (rate, decay) in before.items():
        factor = (2.0 if name.endswith(".bias") else 1.0) * (0.5 if name.startswith("transformer.decoder.") else 1.0)
        assert after[name] == pytest.approx((rate * factor, 0.0 if name.endswith(".bias") else decay)), name
    with pytest.raises(InputError, match=r"^optim\.groups: 'backbones' fits no part of the model; did you mean 'backbone'"):
        param_groups(model, **rates, rules=[{"match": "backbones", "lr_scale": 2.0}])


def test_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="'linear'.*step, cosine"):
        lr_multiplier(0, schedule="linear", total_steps=10, steps_per_epoch=5)


@pytest.fixture
def groups() -> list[dict]:
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    settings = [{"lr": 0.1, "weight_decay": 0.01}, {"lr": 0.2, "weight_decay": 0.0}]
    return [{"params": list(layer.parameters())} | setting for layer, setting in zip(layers, settings)]


def take_steps(optimizer, scheduler, count: int) -> list[float]:
    """Learning rate of the first group before each step."""
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_default_optimizer_is_fused_adamw(groups):
    optimizer = build_optimizer(groups)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"]
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.1, 0.01), (0.2, 0.0)]
    assert not build_optimizer(groups, fused=False).defaults["fused"]


@pytest.mark.parametrize("name", ["sgd", "SGD", "torch.optim.SGD", "torch.optim.sgd.SGD"])
def test_optimizer_by_name_or_path(groups, name):
    optimizer = build_optimizer(groups, name, init_args={"momentum": 0.9})
    assert type(optimizer) is torch.optim.SGD
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_fused_kernels_are_used_where_the_device_has_them():
    """Adagrad has none on CUDA, which it says in its first step; "meta" stands for that."""
    for device, is_fused in (("cpu", True), ("meta", False)):
        groups = [{"params": [nn.Parameter(torch.zeros(2, device=device))], "lr": 0.1, "weight_decay": 0.0}]
        assert bool(build_optimizer(groups, "Adagrad").defaults["fused"]) == is_fused


def test_optimizer_without_fused_kernels_or_weight_decay(groups):
    optimizer = build_optimizer(groups, "Rprop")
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert not any("weight_decay" in group for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("name", "init_args", "message"),
    [
        ("adamx", {}, "'adamx' is no class of torch.optim"),
        ("Tensor", {}, "'Tensor' is no class"),
        ("torch.optim.NoSuch", {}, "cannot import 'torch.optim.NoSuch'"),
        ("no_such_package.Adam", {}, "cannot import"),
        ("torch.nn.Linear", {}, "no import path of a Optimizer"),
        ("AdamW", {"momentum": 0.9}, "AdamW refuses .*momentum"),
        ("AdamW", {"betas": (2.0, 0.9)}, "AdamW refuses .*beta"),
    ],
)
def test_bad_optimizers_are_refused(groups, name, init_args, message):
    with pytest.raises(InputError, match=message):
        build_optimizer(groups, name, init_args=init_args)


def test_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="no parameter to train"):
        build_optimizer([])


def test_preset_scheduler_follows_the_multiplier_and_resumes(groups):
    options = {"total_steps": 10, "steps_per_epoch": 4, "warmup_epochs": 0.5, "min_factor": 0.1}
    optimizer = build_optimizer(groups, "SGD")
    scheduler = build_lr_scheduler(optimizer, "cosine", **options)
    rates = take_steps(optimizer, scheduler, 6)
    assert rates == pytest.approx([0.1 * lr_multiplier(step, schedule="cosine", **options) for step in range(6)])

    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = build_optimizer(groups, "SGD")
    resumed_scheduler = build_lr_scheduler(resumed, "cosine", **options)
    resumed.load_state_dict(state[0])
    resumed_scheduler.load_state_dict(state[1])
    assert take_steps(resumed, resumed_scheduler, 6) == take_steps(optimizer, scheduler, 6)


@pytest.mark.parametrize("name", ["ExponentialLR", "torch.optim.lr_scheduler.ExponentialLR"])
def test_scheduler_by_name_follows_a_warmup(groups, name):
    optimizer = build_optimizer(groups, "SGD")
    options = {"total_steps": 10, "steps_per_epoch": 4, "init_args": {"gamma": 0.5}}
    scheduler = build_lr_scheduler(optimizer, name, warmup_epochs=1.0, **options)
    assert take_steps(optimizer, scheduler, 7) == pytest.approx([0.025, 0.04375, 0.0625, 0.08125, 0.1, 0.05, 0.025])


@pytest.mark.parametrize(
    ("name", "init_args", "message"),
    [
        ("ReduceLROnPlateau", {}, "follows a metric"),
        ("ExponentialLR", {}, "ExponentialLR refuses .*gamma"),
        ("cosin", {}, "'cosin' is no class"),
    ],
)
def test_bad_schedulers_are_refused(groups, name, init_args, message):
    with pytest.raises(InputError, match=message):
        build_lr_scheduler(build_optimizer(groups), name, total_steps=10, steps_per_epoch=4, init_args=init_args)
