"""Put a Trainer together out of finished objects: `build_trainer`, to be read from top to bottom."""

import copy
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from engine import Trainer
from engine.distributed import world_size
from engine.randomness import seed_everything, seed_rank, set_deterministic
from engine.sharding import shard
from rfdetr import optim
from rfdetr.build import build_criterion, build_model
from rfdetr.data.recipes import find_recipe
from rfdetr.data.transforms import make_transforms
from rfdetr.errors import InputError
from rfdetr.models.freeze import find_parameters
from rfdetr.schedules import SCHEDULES
from rfdetr.training.command_line import bad_input
from rfdetr.training.config import RunConfig
from rfdetr.training.data import (
    RunData,
    build_eval_loader,
    build_train_loader,
    class_weights,
    data_splits,
    eval_set,
    open_eval_sets,
    open_run_data,
)
from rfdetr.training.device import choose_device
from rfdetr.training.finish import FinishHook
from rfdetr.training.memory import accumulated, fit_batch_size
from rfdetr.training.parsing import plain_dict
from rfdetr.training.run_folder import RunFolderHook
from rfdetr.training.standard_hooks import UserHook, Wish, build_hooks, build_writers, check_metrics, user_wishes
from rfdetr.training.start import best_content, compile_parts, continue_average, make_model, read_start
from rfdetr.training.without_effect import warn_of_settings_without_effect

logger = logging.getLogger(__name__)

MakesOptimizer = Callable[[nn.Module], Optimizer]


def build_trainer(
    config: RunConfig,
    hooks: Sequence[UserHook] = (),
    *,
    model: nn.Module | None = None,
    criterion: nn.Module | None = None,
    train_set: Dataset | None = None,
    val_set: Dataset | None = None,
    optimizer: Optimizer | MakesOptimizer | None = None,
    overwrite: bool = False,
    resumed: bool = False,
) -> Trainer:
    """Put a Trainer together; its ``train()`` is a whole run, up to results.json.

    Args:
        hooks: your own, beside those of the configuration. A subclass of a standard hook takes that hook's place.
        model: in place of the configuration's, with the classes of the data: called as ``model(samples, targets)``.
        criterion: in place of the configuration's loss: ``criterion(outputs, targets) -> dict of losses``, with a `weight_dict`.
        train_set, val_set: any torch Dataset of pairs, see `rfdetr.training.own_data.OwnDataset`.
        optimizer: of your own model's parameters, or a function that makes one of the model.
        overwrite, resumed: the folder holds a run that is replaced, or that is gone on with by ``load_state_dict``.

    Raises:
        InputError: a setting, the data or a file is not what it should be; nothing was written.
    """
    config = accumulated(config)
    wishes = check_before_data(config, hooks, model, criterion)
    device = choose_device(config)
    start = read_start(config.model) if model is None and not resumed else None  # a resumed run has its weights
    seed_everything(config.train.seed)  # before the model is made, so that its random weights repeat
    set_deterministic(config.train.deterministic)

    data = open_run_data(config, train_set, val_set)
    check_followed(config, wishes, criterion, data.label_map.names)
    model = (make_model(config, data.architecture, start, data.label_map) if model is None else model).to(device)
    eval_model = divide(model, device) if config.train.strategy == "fsdp" else None
    optimizer = build_optimizer(config, model, optimizer)
    if criterion is None:
        criterion = build_criterion(data.architecture, config.loss, class_weights(config.loss, data))
    if config.train.compile:
        compile_parts(model, criterion, blocks_only=config.train.strategy == "fsdp")
    config = fit_batch_size(config, data, model, optimizer, criterion, device)
    train_loader = build_train_loader(config, data, device)
    val_loader = build_eval_loader(config.data, data.val_set, data.architecture, device)
    sets = open_eval_sets(config, data, device)
    all_hooks = assemble_hooks(config, data, val_loader, sets, wishes, overwrite=overwrite, resumed=resumed)
    if start is not None and start["ema_model"] is not None and not config.model.ema_weights:
        continue_average(all_hooks, model, start, data.label_map)
    seed_rank(config.train.seed)  # from here on every process draws its own numbers
    with bad_input(""):
        trainer = Trainer(
            model, criterion, optimizer, train_loader,
            max_epochs=config.train.epochs, max_steps=config.train.max_steps,
            lr_scheduler=build_lr_scheduler(config, optimizer, len(train_loader) // config.train.grad_accum_steps),
            hooks=all_hooks, grad_accum_steps=config.train.grad_accum_steps, clip_grad_norm=config.optim.clip_max_norm,
            precision=config.train.precision, device=device, output_dir=config.train.output_dir,
            loss_normalize=config.loss.normalize, max_bad_steps=config.train.max_bad_steps, eval_model=eval_model,
        )
    say_what_is_trained(trainer, config)
    return trainer


def check_before_data(
    config: RunConfig, hooks: Sequence[UserHook], own_model: nn.Module | None = None, own_criterion: nn.Module | None = None
) -> list[Wish]:
    """Refuse names of things that are not there, which takes no data to find out; return the users' hooks."""
    if isinstance(config.data.augment, str):
        find_recipe(config.data.augment)
    else:
        make_transforms(config.data.augment)
    optim.optimizer_class(config.optim.optimizer)
    if config.optim.schedule not in SCHEDULES:
        optim.scheduler_class(config.optim.schedule)
    if config.optim.groups and own_model is None:
        with torch.device("meta"):  # names alone
            model = build_model(config.model.architecture())
        for group in config.optim.groups:
            find_parameters(model, group["match"], "optim.groups")
    for name in config.eval.sets:
        eval_set(config, name)
    wishes = user_wishes(config.hooks, hooks)
    check_followed(config, wishes, own_criterion)
    build_writers(config)  # for a logger that is not installed
    if config.eval.run_test and "test" not in data_splits(config.data):
        raise InputError(f"eval.run_test: true, but {config.data.dataset_dir} has no test split")
    warn_of_settings_without_effect(config)
    return wishes


def check_followed(
    config: RunConfig, wishes: Sequence[Wish], own_criterion: nn.Module | None, class_names: Sequence[str] | None = None
) -> None:
    """Refuse to follow metrics that nobody publishes; somebody's own hooks or criterion may publish any."""
    if not wishes and not (own_criterion is not None and config.eval.loss):
        check_metrics(config, class_names)


def assemble_hooks(
    config: RunConfig, data: RunData, val_loader: Any, sets: dict[str, Any], wishes: Sequence[Wish], **folder: bool
) -> list:
    """Make all hooks of a run: the folder's first, the end's last."""
    settings = plain_dict(config)
    settings["data"]["white_level"] = getattr(data.train_set, "white_level", None)  # so that evaluation and prediction know it
    metadata = {"args": settings, "model_config": plain_dict(data.architecture), "label_map": data.label_map.to_dict()}
    payload = partial(best_content, config=data.architecture, args=settings, label_map=data.label_map)
    return [
        RunFolderHook(metadata, **folder),
        *build_hooks(config, data.architecture, val_loader, metadata, payload, wishes, sets=sets, writers=build_writers(config),
                     facts=data.facts),
        FinishHook(config, data.architecture, data.label_map),
    ]


def divide(model: nn.Module, device: torch.device) -> nn.Module:
    """Divide the model over the processes (FSDP2), and return the whole twin that evaluations need."""
    whole = copy.deepcopy(model)
    parts: Any = model
    with bad_input("train.strategy: fsdp: "):
        shard(model, parts.blocks, device)
    return whole


def build_optimizer(config: RunConfig, model: nn.Module, own: Optimizer | MakesOptimizer | None = None) -> Optimizer:
    """Make the optimizer on parameter groups with layer-wise learning rates; the model is on its device already."""
    if own is not None:
        made = own if isinstance(own, Optimizer) else own(model)
        known = {id(parameter) for parameter in model.parameters()}
        if not all(id(parameter) in known for group in made.param_groups for parameter in group["params"]):
            raise InputError("optimizer: it is of other parameters than the model's; pass a function that makes it of the model, "
                             "optimizer=lambda model: SGD(model.parameters(), lr=0.01), or the model too")
        return made
    groups = optim.param_groups(
        model, lr=config.optim.lr, lr_encoder=config.optim.lr_encoder, lr_vit_layer_decay=config.optim.lr_vit_layer_decay,
        lr_component_decay=config.optim.lr_component_decay, weight_decay=config.optim.weight_decay, rules=config.optim.groups,
    )
    return optim.build_optimizer(groups, config.optim.optimizer, init_args=config.optim.optimizer_args)


def build_lr_scheduler(config: RunConfig, optimizer: Optimizer, steps_per_epoch: int) -> Any:
    """Make the learning rate schedule, which advances with every optimizer step."""
    total_steps = min(config.train.epochs * steps_per_epoch, config.train.max_steps or sys.maxsize)
    return optim.build_lr_scheduler(
        optimizer, config.optim.schedule, total_steps=total_steps, steps_per_epoch=steps_per_epoch,
        warmup_epochs=config.optim.warmup_epochs, lr_drop=config.optim.lr_drop, min_factor=config.optim.lr_min_factor,
        init_args=config.optim.schedule_args,
    )


def say_what_is_trained(trainer: Trainer, config: RunConfig) -> None:
    """Log in one line what is going to happen."""
    millions = sum(parameter.numel() for parameter in trainer.unwrapped_model.parameters()) / 1e6
    images = config.data.batch_size * config.train.grad_accum_steps * world_size()
    logger.info("%s, %.1f million parameters, on %s in %s; %d steps of %d images, %d an epoch", config.model.variant, millions,
                trainer.device, trainer.precision, trainer.max_steps, images, trainer.steps_per_epoch)
