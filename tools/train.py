"""Train a detector: ``python tools/train.py --cfg FILE [--section.key VALUE ...] [--resume PATH|auto] [--overwrite]``.

Under ``torchrun --nproc-per-node N tools/train.py ...`` it trains in N processes. `build_trainer` is the example of putting a
Trainer together by hand: it may be copied into a notebook and changed.
"""

# isort: off
import installation  # noqa: F401  first: explains a torchvision that does not fit torch, before anything imports it
# isort: on
import copy
import difflib
import logging
import math
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from command_line import ExitCode, bad_input, choose_device, make_parser, parse, plain_dict, run_config, run_tool
from evaluation import evaluate_split, finite_or_none, iou_types
from run_folder import METRICS, METRICS_TABLE, check_same_run, clear_folder, prepare_folder, write_json, write_settings
from torch import nn

from engine import Hook, Trainer
from engine.distributed import is_main_process, process_group, rank, sync_batch_norms, world_size
from engine.randomness import seed_everything, seed_rank, set_deterministic
from engine.sharding import shard
from hooks.trackers import MlflowWriter, WandbWriter
from hooks.writers import ConsoleWriter, CsvWriter, JsonlWriter, TensorBoardWriter, Writer
from hooks import (
    BestCheckpointHook,
    CheckpointHook,
    COCOEvalHook,
    DropPathHook,
    EarlyStopHook,
    EMAHook,
    InterruptHook,
    LogHook,
    PlotsHook,
    ProgressHook,
)
from rfdetr import build
from rfdetr.config import ModelConfig, RunConfig
from rfdetr.data import DetectionLoader, LabelMap
from rfdetr.data.annotations import RawSplit
from rfdetr.errors import InputError
from rfdetr.evaluation import DetectionMetrics, RunPictures
from rfdetr.models.freeze import freeze
from rfdetr.weights import checkpoint_payload, load_backbone_weights, load_weights, read_checkpoint

logger = logging.getLogger(__name__)


def build_trainer(config: RunConfig, user_hooks: Sequence[Hook] = ()) -> Trainer:
    """Put a Trainer together out of finished objects; ``build_trainer(RunConfig(...)).train()`` is a whole run."""
    device = choose_device(config)
    writers = build_writers(config)
    start = read_checkpoint(config.model.weights) if config.model.weights else None
    seed_everything(config.train.seed)  # before the model is made, so that its random weights repeat
    set_deterministic(config.train.deterministic)

    splits = check_data(config) if is_main_process() else {}
    train_set = build.build_dataset(config.data, config.model.architecture(), "train", raw=splits.get("train"))
    label_map = train_set.label_map
    architecture = architecture_for(config, label_map)
    val_set = build.build_dataset(config.data, architecture, "val", label_map, raw=splits.get("val"))
    share = {"rank": rank(), "world_size": world_size(), "pin_memory": device.type == "cuda"}
    train_loader = build.build_loader(train_set, config.data, architecture, train=config.train, **share)
    val_loader = build.build_loader(val_set, config.data, architecture, **share)

    model = build_network(config, architecture, start, label_map).to(device)
    eval_model = None
    if config.train.strategy == "fsdp":
        eval_model = copy.deepcopy(model)
        with bad_input("train.strategy: fsdp: "):
            shard(model, model.blocks, device)
    criterion = build.build_criterion(architecture, config.loss)
    optimizer = build.build_optimizer(config.optim, model)
    lr_scheduler = build.build_lr_scheduler(
        config.optim, optimizer, epochs=config.train.epochs, steps_per_epoch=len(train_loader) // config.train.grad_accum_steps
    )
    hooks = build_hooks(config, architecture, val_loader, writers, user_hooks)
    if start is not None and start["ema_model"] is not None and not config.model.ema_weights:
        continue_average(hooks, model, start, resize_head=config.model.resize_head)
    seed_rank(config.train.seed)  # from here on every process draws its own numbers
    return Trainer(
        model,
        criterion,
        optimizer,
        train_loader,
        max_epochs=config.train.epochs,
        lr_scheduler=lr_scheduler,
        hooks=hooks,
        grad_accum_steps=config.train.grad_accum_steps,
        clip_grad_norm=config.optim.clip_max_norm,
        precision=config.train.precision,
        device=device,
        output_dir=config.train.output_dir,
        loss_normalize=config.loss.normalize,
        max_bad_steps=config.train.max_bad_steps,
        eval_model=eval_model,
    )


def check_data(config: RunConfig) -> dict[str, RawSplit]:
    """Refuse data that would break or falsify the run, say what it will be evaluated on, and return the splits as read."""
    model = config.model.architecture()
    check = build.check_data(config.data, model.input_size, model.num_queries, quick=True, with_masks=model.segmentation_head)
    tolerated = ["same_image"]  # training on the images of the evaluation is a way to see whether a model learns at all
    tolerated += ["missing_image", "no_image_size"] if config.data.on_bad_image == "skip" else []
    check.findings.refuse_errors(config.data.dataset_dir, but=tolerated)
    for split, when in {"val": "during training", "test": "at the end"}.items():
        if split == "val" or config.eval.run_test:
            numbers = check.statistics[split]
            logger.info("evaluated %s: the %s split, %d images with %d boxes, of %s", when, split, numbers.images, numbers.boxes,
                        check.splits[split].raw.source)
    return {name: split.raw for name, split in check.splits.items()}


def build_network(
    config: RunConfig, architecture: ModelConfig, start: dict[str, Any] | None, label_map: LabelMap
) -> nn.Module:
    """Make the model as it starts: its weights, what is frozen of it, what is compiled."""
    model = build.build_model(architecture, gradient_checkpointing=config.model.gradient_checkpointing)
    if start is not None:
        start_from_weights(model, start, config, label_map)
    if config.model.backbone_weights is not None:
        load_backbone_weights(model, config.model.backbone_weights)
    freeze(model, config.model.freeze)
    if config.train.sync_bn:
        with bad_input("train."):
            model = sync_batch_norms(model)
    if config.train.compile:
        for block in model.blocks:  # one by one: they share their code, so it is compiled once
            block.compile()
    return model


def build_hooks(
    config: RunConfig, architecture: ModelConfig, val_loader: DetectionLoader, writers: Sequence[Writer],
    user_hooks: Sequence[Hook] = (),
) -> list[Hook]:
    """Make the hooks of a run in their order: users' hooks follow ours, then the one that saves, the one that evaluates last."""
    label_map = val_loader.dataset.label_map
    if not user_hooks:  # theirs may publish metrics of their own
        check_monitor(config, label_map.names, iou_types(architecture))
    postprocess = build.build_postprocess(architecture)
    coco_eval = COCOEvalHook(
        val_loader,
        postprocess,
        label_map.names,
        every_epochs=config.eval.every_epochs,
        max_dets=config.eval.max_dets,
        per_class=config.eval.per_class,
        models=("regular", "ema") if config.eval.models == "both" else (config.eval.models,),
        iou_types=iou_types(architecture),
        precision=config.eval.precision,
    )
    payload = partial(checkpoint_payload, config=architecture, args=plain_dict(config), label_map=label_map)
    ema, drop, stopping = config.ema, config.drop, config.early_stopping
    selection = {
        "monitor_regular": f"val/{config.eval.monitor}",
        "monitor_ema": f"val/ema_{config.eval.monitor}",
        "skip_first_epochs": config.eval.skip_first_epochs,
    }
    hooks: list[Hook] = []
    if ema.enabled:
        hooks.append(EMAHook(ema.decay, ema.tau, update_every=ema.update_every, use_buffers=ema.use_buffers))
    hooks.append(
        DropPathHook(drop.drop_path, drop.dropout, cutoff_epoch=drop.cutoff_epoch, mode=drop.mode, schedule=drop.schedule)
    )
    if stopping.enabled:
        hooks.append(
            EarlyStopHook(
                stopping.patience,
                stopping.min_delta,
                use_ema=stopping.use_ema,
                check_finite=stopping.check_finite,
                stopping_threshold=stopping.stopping_threshold,
                divergence_threshold=stopping.divergence_threshold,
                verbose=stopping.verbose,
                **selection,
            )
        )
    hooks += [BestCheckpointHook(payload, **selection), LogHook(writers, every_steps=config.log.every_steps)]
    if config.log.progress:
        hooks.append(ProgressHook())
    if config.log.plots:
        hooks.append(PlotsHook(RunPictures(label_map.names), val_loader.dataset, postprocess, coco_eval=coco_eval))
    metadata = run_metadata(config, architecture, label_map)
    saver = CheckpointHook(every_steps=config.train.save_every_steps, keep=config.train.keep, metadata=metadata)
    hooks += [InterruptHook(max_hours=config.train.max_hours), *user_hooks, saver, coco_eval]
    names = [hook.name for hook in hooks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"hooks: {', '.join(twice)} would be there twice; a run has ours already, and yours need distinct names")
    return hooks


def build_writers(config: RunConfig) -> list[Writer]:
    """Make what the scalars are written with; only the main process writes."""
    if not is_main_process():
        return []
    folder = Path(config.train.output_dir)
    writers: list[Writer] = [ConsoleWriter(), JsonlWriter(folder / METRICS)]
    if config.log.csv:
        writers.append(CsvWriter(folder / METRICS_TABLE))
    if config.log.tensorboard:
        writers.append(TensorBoardWriter(folder))
    if config.log.wandb is not None:
        with bad_input("log.wandb: "):
            writers.append(WandbWriter(folder, config.log.wandb, plain_dict(config)))
    if config.log.mlflow is not None:
        with bad_input("log.mlflow: "):
            writers.append(MlflowWriter(folder, config.log.mlflow, plain_dict(config)))
    return writers


def architecture_for(config: RunConfig, label_map: LabelMap) -> ModelConfig:
    """Return the model's architecture, with as many classes as the data have unless the configuration asks for more."""
    architecture = config.model.architecture(label_map.num_classes)
    if architecture.num_classes < label_map.num_classes:
        raise InputError(
            f"model.num_classes: {architecture.num_classes} are too few, the data set has {label_map.num_classes} "
            f"({', '.join(label_map.names)}); leave it out, or make it larger"
        )
    return architecture


def start_from_weights(model: nn.Module, start: dict[str, Any], config: RunConfig, label_map: LabelMap) -> None:
    """Load ``model.weights``; a class head for other classes is refused unless a new one is asked for."""
    differences = ""
    if start["label_map"] is not None and not config.model.resize_head:
        differences = LabelMap.from_dict(start["label_map"]).differences(label_map, mine="checkpoint", theirs="data set")
    # of an architecture that does not fit either, load_weights has more to say
    load_weights(model, start, ema=config.model.ema_weights, resize_head=config.model.resize_head or bool(differences))
    if differences:
        raise InputError(
            f"model.weights: {config.model.weights} was trained on other classes. Use --model.resize_head true to fit the "
            f"head to yours, or a data set with the same classes.\n{differences}"
        )


def continue_average(hooks: Sequence[Hook], model: nn.Module, start: dict[str, Any], *, resize_head: bool) -> None:
    """Let the EMA go on from the average that a checkpoint holds beside its weights, instead of starting as a copy of these."""
    for hook in hooks:
        if isinstance(hook, EMAHook):
            average = copy.deepcopy(model)
            load_weights(average, start, ema=True, resize_head=resize_head)
            warmed_up = math.ceil(10 * hook.tau)  # its decay must not grow from 0 again, or the average would be lost at once
            hook.load_state_dict({"num_updates": warmed_up, "average": average.state_dict()})
            logger.info("the average goes on from the checkpoint's own")


def check_monitor(config: RunConfig, class_names: Sequence[str], types: tuple[str, ...]) -> None:
    """Refuse to follow a metric that evaluations do not have."""
    known = list(DetectionMetrics([], iou_types=types).compute())
    known += [f"{prefix}AP/{name}" for prefix in ("", "segm_")[: len(types)] for name in class_names if config.eval.per_class]
    if config.eval.monitor not in known:
        close = difflib.get_close_matches(config.eval.monitor, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise InputError(f"eval.monitor: {config.eval.monitor!r} is not measured; {hint}")


def say_what_is_trained(trainer: Trainer, config: RunConfig) -> None:
    """Log in one line what is going to happen."""
    millions = sum(parameter.numel() for parameter in trainer.unwrapped_model.parameters()) / 1e6
    images = config.data.batch_size * config.train.grad_accum_steps * world_size()
    logger.info("%s, %.1f million parameters, on %s in %s; %d epochs of %d steps of %d images", config.model.variant, millions,
                trainer.device, trainer.precision, trainer.max_epochs, trainer.steps_per_epoch, images)


def run_metadata(config: RunConfig, architecture: ModelConfig, label_map: LabelMap) -> dict[str, Any]:
    """Return what checkpoint.pth says about its run."""
    return {"args": plain_dict(config), "model_config": plain_dict(architecture), "label_map": label_map.to_dict()}


def finish(trainer: Trainer, config: RunConfig) -> None:
    """Put the best weights into the model, evaluate the test split if asked for, and write results.json."""
    results: dict[str, Any] = {"epochs": trainer.epoch, "steps": trainer.step, "stop_reason": trainer.stop_reason}
    model = trainer.eval_models["regular"]
    best = trainer.output_dir / "checkpoint_best_total.pth"
    if best.exists():
        content = read_checkpoint(best)
        load_weights(model, content)
        results["best"] = {"epoch": content["epoch"], "metrics": finite_or_none(content["metrics"])}
    if config.eval.run_test:
        label_map = trainer.train_loader.dataset.label_map
        architecture = architecture_for(config, label_map)
        metrics, _ = evaluate_split(model, config, architecture, label_map, "test", device=trainer.device)
        results["test"] = finite_or_none(metrics)
    if is_main_process():
        write_json(trainer.output_dir / "results.json", results)
        logger.info("done after %d epochs; everything is in %s", trainer.epoch, trainer.output_dir)


def train(config: RunConfig, user_hooks: Sequence[Hook], *, resume: str | None, overwrite: bool) -> ExitCode:
    """Run a training from its configuration to its last file."""
    folder = Path(config.train.output_dir)
    with process_group(choose_device(config)):
        state = prepare_folder(folder, resume=resume, overwrite=overwrite)
        if config.eval.run_test and "test" not in build.data_splits(config.data):
            raise InputError(f"eval.run_test: true, but {config.data.dataset_dir} has no test split")
        build.check_names(config.data, config.optim)
        build_writers(config)  # now already, for a logger that is not installed to be reported before the data are read
        trainer = build_trainer(config, user_hooks)
        say_what_is_trained(trainer, config)
        label_map = trainer.train_loader.dataset.label_map
        metadata = run_metadata(config, architecture_for(config, label_map), label_map)
        if state is not None:
            check_same_run(state, metadata)
            with bad_input("--resume: the checkpoint does not fit the settings of this run: "):
                trainer.load_state_dict(state)
        if overwrite:
            clear_folder(folder)
        write_settings(folder, metadata["args"], metadata["label_map"])
        trainer.train()
        if any(getattr(hook, "interrupted", False) for hook in trainer.hooks):
            logger.info("stopped (%s) with a valid checkpoint; go on with --resume auto", trainer.stop_reason)
            return ExitCode.INTERRUPTED
        finish(trainer, config)
        non_finite = any(getattr(hook, "found_non_finite", False) for hook in trainer.hooks)
    return ExitCode.NON_FINITE if non_finite else ExitCode.DONE


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Read the command line and train."""
    parser = make_parser("Train an RF-DETR detector.")
    parser.add_argument("--resume", default=SUPPRESS, help="checkpoint to go on from; auto: the newest in output_dir, if any")
    parser.add_argument("--overwrite", action="store_true", default=SUPPRESS, help="replace the run that is in output_dir")
    arguments = parse(parser, sys.argv[1:] if argv is None else argv)
    config, user_hooks = run_config(parser, arguments)
    return train(config, user_hooks, resume=arguments.get("resume"), overwrite=arguments.get("overwrite", False))


if __name__ == "__main__":
    run_tool(main)
