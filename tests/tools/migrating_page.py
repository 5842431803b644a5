"""Write the page for those who come from other trainers: ``python tests/tools/migrating_page.py [--write tools/MIGRATING.md]``.

The tables of settings are those that ``rfdetr migrate`` goes by,
         the table of methods is the one by which a hook refuses Lightning's;
what is here are classes, commands and another package's arguments, which have no values to translate.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.hook import LIGHTNING_METHODS
from rfdetr.training.command_line import ExitCode, run_tool
from rfdetr.training.migration_table import LEGACY, MODEL, TRAIN, TRAINER, Row, is_option

EFFECT = "tests/tools/test_every_option.py::test_changing_an_option_has_an_effect"
HERE = "tests/rfdetr/training/test_migration.py::"
TRAINING, HOOKS, TOOLS = "tests/rfdetr/training/", "tests/hooks/", "tests/tools/"


class Line(NamedTuple):
    """A row of a table: theirs and ours, as code where it is code."""

    theirs: str
    ours: str
    note: str
    test: str


def _effect(option: str) -> str:
    return f"{EFFECT}[{option}]"


CLASSES = [
    Line("RFDETRNano().train(**settings)", "rfdetr.training.train(rfdetr.training.RunConfig.from_yaml(FILE)); rfdetr "
         "fit --cfg FILE",
         "one configuration of sections instead of two of fields",
         f"{TRAINING}test_run.py::test_every_door_leads_to_the_same_run"),
    Line("RFDETRNano().export(...)", "rfdetr export", "ONNX with the same names of input and outputs; also PyTorch's program",
         "tests/rfdetr/export/test_export.py::test_deployments_find_names_and_preprocessing_in_the_file"),
    Line("RFDETRNano().predict(images, threshold)", "rfdetr.load(FILE).predict(images, threshold); rfdetr predict",
         "always in evaluation mode; to_supervision() gives their Detections", "tests/rfdetr/test_detector.py::"
         "test_a_picture_of_any_kind_alone_in_a_list_and_in_a_folder"),
    Line("RFDETRNano().evaluate(split)", "rfdetr.training.evaluate(FILE, split); rfdetr validate; rfdetr test", "",
         f"{TRAINING}test_run.py::test_evaluate_returns_the_numbers_of_training"),
    Line("RFDETR.from_checkpoint(FILE)", "rfdetr.load(FILE)",
         "the variant is found in the file; trust_checkpoint is not needed, code "
         "in a file is never run", "tests/rfdetr/weights/test_reading.py::test_every_writer"),
    Line("RFDETRModule, RFDETRModelModule", "rfdetr.build_model, rfdetr.build_criterion, rfdetr.build_postprocess, "
         "engine.Trainer",
         "a module, a loss and a loop instead of one class of methods", f"{TRAINING}test_run.py::test_a_run_of_ones_own_parts"),
    Line("RFDETRModule.configure_optimizers", "optim.lr, optim.groups, optim.schedule; rfdetr.optim.param_groups", "",
         "tests/rfdetr/test_optim.py::test_param_groups_golden"),
    Line("RFDETRModule.training_step", "hooks.Hook.before_step, hooks.Hook.after_batch; train(config, model=..., criterion=...)",
         "",
         f"{TRAINING}test_run.py::test_a_run_of_ones_own_parts"),
    Line("RFDETRDataModule", "data.dataset_dir, data.format; train(config, train_set=..., val_set=...)",
         "names of the classes are in label_map.json and in every checkpoint",
         f"{TRAINING}test_run.py::test_ones_own_data_resume_in_the_middle_of_an_epoch"),
    Line("RFDETRDataModule.on_after_batch_transfer", "data.augment, data.multi_scale; hooks.Hook.before_step", "",
         "tests/engine/test_hook.py::test_every_point_is_called_in_the_documented_order"),
    Line("build_trainer(train_config, model_config, **trainer_kwargs)", "rfdetr.training.build_trainer(config, hooks)",
         "trainer.train() instead of trainer.fit(module, datamodule)",
         f"{TRAINING}test_run.py::test_every_door_leads_to_the_same_run"),
    Line("convert_legacy_checkpoint", "model.weights, rfdetr.load", "files of 1.4.1 open as they are",
         f"{TOOLS}test_start.py::test_a_converted_legacy_file_goes_on_with_its_average"),
    Line("checkpoint_best_*.pth, last.ckpt, training_config.json, metrics.csv",
         "checkpoint_best_*.pth, checkpoint.pth, config.yaml, metrics.jsonl", "the best files open in both packages",
         "tests/interop/test_round_trip.py::test_best_files_open_and_give_the_same_outputs"),
]
CALLBACKS = [
    Line("RFDETREMACallback(decay, tau)", "ema.decay, ema.tau; hooks.EMAHook(decay=, tau=)", "the formula of 1.4.1",
         f"{HOOKS}test_ema.py::test_legacy_formula"),
    Line("RFDETREMACallback(use_buffers)", "ema.use_buffers; hooks.EMAHook(use_buffers=)", "integers are copied",
         f"{HOOKS}test_ema.py::test_buffers_may_be_copied"),
    Line("RFDETREMACallback(update_interval_steps)", "ema.update_every; hooks.EMAHook(update_every=)", "",
         f"{HOOKS}test_ema.py::test_update_every_counts_updates"),
    Line("BestModelCallback(monitor_regular, monitor_ema)",
         "eval.monitor; hooks.BestCheckpointHook(monitor_regular=, monitor_ema=)",
         "both tracks begin at minus infinity, and what is not finite is never best",
         f"{HOOKS}test_best_checkpoint.py::test_goldens"),
    Line("BestModelCallback(output_dir)", "train.output_dir", "", _effect("train.output_dir")),
    Line("BestModelCallback(run_test)", "eval.run_test", "off by default", _effect("eval.run_test")),
    Line("BestModelCallback(skip_best_epochs)", "eval.skip_first_epochs", "also for early stopping",
         _effect("eval.skip_first_epochs")),
    Line("BestModelCallback(smooth_alpha)", "train.keep_top", "there is no smoothed metric; the mean of the best weights instead",
         f"{TRAINING}test_average.py::test_it_is_used_where_it_is_better"),
    Line("BestModelCallback(evaluates_base_model)", "eval.models", "", _effect("eval.models")),
    Line("RFDETREarlyStopping(patience, min_delta, use_ema)", "early_stopping.patience, early_stopping.min_delta, "
         "early_stopping.use_ema; hooks.EarlyStopHook(patience=, min_delta=, use_ema=)", "patience counts evaluations",
         f"{HOOKS}test_early_stop.py::test_goldens"),
    Line("RFDETREarlyStopping(monitor_regular, monitor_ema)", "eval.monitor; hooks.EarlyStopHook(monitor_regular=, monitor_ema=)",
         "the better of the two counts", f"{HOOKS}test_early_stop.py::test_own_monitors"),
    Line("RFDETREarlyStopping(verbose, skip_best_epochs)", "early_stopping.verbose, eval.skip_first_epochs", "",
         f"{HOOKS}test_early_stop.py::test_each_decision_is_told_if_asked_for"),
    Line("DropPathCallback(drop_path, dropout, cutoff_epoch, mode, schedule)",
         "drop.drop_path, drop.dropout, drop.cutoff_epoch, drop.mode, drop.schedule; hooks.DropPathHook(drop_path=, dropout=)",
         "vit_encoder_num_layers is not needed", f"{HOOKS}test_drop_path.py::test_schedules_of_the_goldens"),
    Line("COCOEvalCallback(max_dets, eval_interval)",
         "eval.max_dets, eval.every_epochs; hooks.COCOEvalHook(max_dets=, every_epochs=)",
         "equal to pycocotools in float64",
         "tests/rfdetr/evaluation/test_coco.py::test_equal_to_pycocotools_in_float64"),
    Line("COCOEvalCallback(log_per_class_metrics, eval_base_model)", "eval.per_class, eval.models", "",
         _effect("eval.per_class")),
    Line("COCOEvalCallback(segmentation, eval_backend, in_notebook)", "", "follow from the variant; one backend",
         "tests/rfdetr/evaluation/test_metrics.py::test_masks_add_names_and_give_f1"),
    Line("GPUMemoryTQDMProgressBar, GPUMemoryRichProgressBar", "log.progress; hooks.ProgressHook(every_steps=)", "",
         f"{HOOKS}test_progress.py::test_bar_with_its_values"),
]
COMMANDS = [
    Line("rfdetr fit --config FILE", "rfdetr fit --config FILE",
         "rfdetr migrate FILE makes the file; there the loop's settings of "
         "train_config did nothing", f"{HERE}test_a_file_of_their_command_line"),
    Line("rfdetr validate --ckpt_path FILE", "rfdetr validate --ckpt_path FILE", "settings come out of the checkpoint",
         f"{TOOLS}test_eval.py::test_it_gives_the_logged_metrics"),
    Line("rfdetr test --ckpt_path FILE", "rfdetr test --ckpt_path FILE", "",
         f"{TOOLS}test_eval.py::test_the_test_split_gives_what_training_wrote_at_its_end"),
    Line("rfdetr predict --ckpt_path FILE", "rfdetr predict --ckpt_path FILE --input FOLDER",
         "writes predictions.json and pictures",
         f"{TOOLS}test_predict.py::test_it_finds_exactly_what_evaluation_finds"),
    Line("--print_config", "rfdetr fit --print_config", "",
         f"{TOOLS}test_train.py::test_print_config_shows_the_result_and_trains_nothing"),
    Line("python -m rfdetr.cli.webdataset", "rfdetr pack", "", f"{TOOLS}test_pack_shards.py::test_all_splits_are_packed"),
]
ULTRALYTICS = [
    Line("model=yolo11n.pt", "model.variant, model.weights", "nano and published", _effect("model.weights")),
    Line("data=data.yaml", "data.dataset_dir", "the folder of data.yaml", "tests/rfdetr/data/test_yolo.py::test_layouts"),
    Line("epochs", "train.epochs", "a DETR needs fewer: 50 are a start", _effect("train.epochs")),
    Line("time", "train.max_hours", "can be resumed", _effect("train.max_hours")),
    Line("patience", "early_stopping.enabled, early_stopping.patience", "off by default; counts evaluations",
         f"{HOOKS}test_early_stop.py::test_goldens"),
    Line("batch", "data.batch_size", "in each process, where theirs is over all; -1 is auto with train.effective_batch",
         f"{TRAINING}test_memory.py::test_the_run_is_that_with_the_number_given"),
    Line("nbs", "train.effective_batch", "updates of so many images, whatever fits",
         _effect("train.effective_batch")),
    Line("imgsz", "model.resolution", "a multiple of patch size times windows; [height, width] too", _effect("model.resolution")),
    Line("rect", "data.resize", "letterbox, in training too", _effect("data.resize")),
    Line("save_period", "train.keep_every_epochs", "", _effect("train.keep_every_epochs")),
    Line("cache", "data.cache", "ram keeps the files, not the pixels", _effect("data.cache")),
    Line("device", "train.device", "several devices by torchrun", _effect("train.device")),
    Line("workers", "data.num_workers", "", _effect("data.num_workers")),
    Line("project, name, exist_ok", "train.output_dir", "one folder; --overwrite replaces a run",
         f"{TOOLS}test_train.py::test_overwrite_replaces_the_run_and_keeps_other_files"),
    Line("pretrained", "model.weights", "published, a file, or null", f"{TOOLS}test_start.py::"
         "test_the_averaged_weights_of_a_checkpoint_start_the_model_or_the_average"),
    Line("optimizer", "optim.optimizer", "AdamW; there is no auto, which there sets lr0 too", _effect("optim.optimizer")),
    Line("seed, deterministic", "train.seed, train.deterministic", "", _effect("train.deterministic")),
    Line("single_cls, classes", "data.single_class, data.classes", "by name instead of number",
         f"{TRAINING}test_data_options.py::"
         "test_a_part_of_the_classes_and_of_the_images"),
    Line("fraction", "data.fraction", "", _effect("data.fraction")),
    Line("multi_scale", "data.multi_scale", "on by default, eleven scales", _effect("data.multi_scale")),
    Line("cos_lr", "optim.schedule", "cosine", "tests/rfdetr/test_optim.py::test_lr_multiplier_golden"),
    Line("lr0", "optim.lr, optim.lr_encoder", "not the same numbers: 1e-4 and 1.5e-4 for 16 images an update",
         _effect("optim.lr")),
    Line("lrf", "optim.lr_min_factor", "", _effect("optim.lr_min_factor")),
    Line("momentum", "optim.optimizer_args", "{betas: [0.9, 0.999]} of AdamW, {momentum: 0.9} of SGD",
         _effect("optim.optimizer_args")),
    Line("weight_decay", "optim.weight_decay", "", _effect("optim.weight_decay")),
    Line("warmup_epochs", "optim.warmup_epochs", "", _effect("optim.warmup_epochs")),
    Line("box, cls, dfl", "loss.bbox_loss_coef, loss.giou_loss_coef, loss.cls_loss_coef", "other losses, so other numbers",
         _effect("loss.bbox_loss_coef")),
    Line("resume", "rfdetr fit --resume auto", "exact, in the middle of an epoch too",
         f"{TOOLS}test_train.py::test_a_stopped_run_that_is_resumed_ends_as_if_it_had_not_been_stopped"),
    Line("amp, half", "train.precision, eval.precision", "", _effect("train.precision")),
    Line("freeze", "model.freeze", "names instead of a number of layers", f"{TOOLS}test_start.py::"
         "test_frozen_parts_do_not_change_and_the_rest_does"),
    Line("val, split", "eval.every_epochs; rfdetr validate --split test", "", _effect("eval.every_epochs")),
    Line("plots", "log.plots", "", _effect("log.plots")),
    Line("hsv_h, hsv_s, hsv_v, degrees, translate, scale, shear, perspective, flipud, fliplr", "data.augment",
         "a recipe by name, or torchvision v2 transforms", "tests/rfdetr/data/test_transforms.py::test_class_path_and_init_args"),
    Line("mosaic, mixup, copy_paste, close_mosaic", "data.mosaic, data.mixup, data.copy_paste, data.mix_off_epochs",
         "off by default",
         f"{TRAINING}test_data_options.py::test_mixing_ends_before_the_run_does"),
    Line("max_det", "eval.max_dets, model.num_queries", "an image has at most num_queries detections", _effect("eval.max_dets")),
    Line("conf, iou, agnostic_nms", "rfdetr predict --threshold", "a DETR needs no NMS",
         f"{TOOLS}test_predict.py::test_a_threshold_that_no_score_can_have_is_refused"),
    Line("compile", "train.compile", "", f"{TOOLS}test_start.py::test_parts_are_compiled_on_request"),
]
PROOFS = {  # test -> the settings, by their first name, that it is about; those of others show the effect of their option
    "tests/test_equivalence.py::test_one_batch_accumulated_batches_and_two_processes_train_the_same_detector": "grad_accum_steps",
    "tests/rfdetr/training/test_memory.py::test_the_run_is_that_with_the_number_given": "auto_batch_target_effective",
    "tests/rfdetr/training/test_memory.py::test_the_worst_step_has_the_largest_scale_and_the_most_crowded_images":
        "auto_batch_max_targets_per_image",
    "tests/rfdetr/test_optim.py::test_param_groups_golden": "lr lr_encoder weight_decay lr_vit_layer_decay lr_component_decay",
    "tests/rfdetr/test_optim.py::test_optimizer_by_name_or_path": "optimizer",
    "tests/rfdetr/test_optim.py::test_lr_multiplier_golden": "lr_scheduler warmup_epochs lr_drop lr_min_factor",
    "tests/rfdetr/training/test_migration.py::test_schedules": "lr_scheduler_kwargs",
    "tests/tools/test_train.py::test_the_seed_decides_everything_that_is_drawn": "seed",
    "tests/hooks/test_ema.py::test_legacy_formula": "ema_decay ema_tau",
    "tests/hooks/test_ema.py::test_update_every_counts_updates": "ema_update_interval",
    "tests/hooks/test_drop_path.py::test_schedules_of_the_goldens": "drop_path drop_mode drop_schedule cutoff_epoch",
    "tests/rfdetr/losses/test_criterion.py::test_golden_losses_and_gradients":
        "cls_loss_coef mask_ce_loss_coef mask_dice_loss_coef mask_point_sample_ratio ia_bce_loss "
        "bbox_loss_coef giou_loss_coef focal_alpha sum_group_losses use_varifocal_loss",
    "tests/rfdetr/training/test_data_options.py::test_a_part_of_the_classes_and_of_the_images": "class_names",
    "tests/rfdetr/data/test_multi_scale.py::test_golden_sizes_and_draws":
        "multi_scale expanded_scales do_random_resize_via_padding",
    "tests/rfdetr/training/test_migration.py::test_augmentation": "aug_config scale_jitter",
    "tests/rfdetr/data/test_recipes.py::test_same_samples_for_any_number_of_workers_and_after_a_resume": "augmentation_backend",
    "tests/hooks/test_coco_eval.py::test_every_epochs_and_the_last": "eval_interval",
    "tests/rfdetr/evaluation/test_coco.py::test_equal_to_pycocotools_in_float64": "eval_max_dets",
    "tests/rfdetr/evaluation/test_coco.py::test_tables_are_those_of_pycocotools": "eval_backend",
    "tests/hooks/test_early_stop.py::test_goldens":
        "early_stopping early_stopping_patience early_stopping_min_delta early_stopping_use_ema",
    "tests/rfdetr/training/test_memory.py::test_preflight_refuses_what_does_not_fit_and_changes_nothing": "num_sanity_val_steps",
    "tests/rfdetr/training/test_foreign.py::test_weights_average_and_epoch_are_taken": "resume ckpt_path",
    "tests/hooks/test_trackers.py::test_wandb_itself_offline": "run",
    "tests/tools/test_two_nodes.py::test_two_nodes_train_what_one_process_trains": "devices trainer.devices",
    "tests/tools/test_every_option.py::test_changing_an_option_has_an_effect[train.sync_bn]": "sync_bn trainer.sync_batchnorm",
    "tests/rfdetr/weights/test_names.py::test_names_and_shapes_equal_the_published_ones": "model_name encoder two_stage",
    "tests/rfdetr/weights/test_class_head.py::test_rows_go_by_name": "pretrain_weights",
    "tests/rfdetr/training/test_config.py::test_classes_come_from_the_data_unless_given": "num_classes",
    "tests/rfdetr/training/test_config.py::test_a_position_table_as_large_as_the_input_follows_the_resolution": "resolution",
    "tests/rfdetr/training/test_config.py::test_the_number_of_queries_is_also_the_number_of_detections": "num_queries",
    "tests/tools/test_start.py::test_frozen_parts_do_not_change_and_the_rest_does": "freeze_encoder",
    "tests/tools/test_start.py::test_parts_are_compiled_on_request": "compile",
    "tests/rfdetr/test_optim.py::test_fused_kernels_are_used_where_the_device_has_them": "fused_optimizer",
    "tests/rfdetr/losses/test_matcher.py::test_golden": "set_cost_class set_cost_bbox set_cost_giou",
    "tests/hooks/test_drop_path.py::test_the_model_is_told_only_of_changes": "dropout",
    "tests/tools/test_train.py::test_a_users_hook_sees_all_points_in_order": "trainer.callbacks",
}
INTRODUCTION = """# Coming from another trainer

<!-- made by tests/tools/migrating_page.py; `python tests/tools/migrating_page.py --write tools/MIGRATING.md` after a change -->

```bash
rfdetr migrate checkpoint_best_total.pth > run.yaml   # or training_config.json, last.ckpt, the YAML of their command line
rfdetr fit --cfg run.yaml
```

prints our configuration for the settings that a file of the published package holds, and comments on what means something
else here or has no counterpart. It goes by these tables; each row names the test that shows it."""
SECTIONS = [
    ("`RFDETR...().train(...)`, `TrainConfig`", TRAIN), ("`RFDETR...(...)`, `ModelConfig`", MODEL),
    ("Arguments of 1.4.1 that 1.11.2 has no more", LEGACY), ("`trainer:` of the command line, `build_trainer(**trainer_kwargs)`",
         TRAINER),
    ("Classes and files", CLASSES), ("Callbacks", CALLBACKS), ("Commands", COMMANDS), ("Ultralytics", ULTRALYTICS),
]


def all_lines() -> dict[str, list[Line]]:
    """Return the rows of all tables by heading."""
    found = {heading: [_line(row) if isinstance(row, Row) else row for row in rows] for heading, rows in SECTIONS}
    refused = "tests/engine/test_hook.py::test_a_method_of_lightning_is_refused_with_what_takes_its_place"
    methods = [Line(name, ", ".join(f"hooks.Hook.{point}" for point in re.findall(r"\w*_\w+|close", place)), "", refused)
               for name, place in LIGHTNING_METHODS.items()]
    return {**found, "Methods of Lightning's callbacks, which a hook with one of them is refused for": methods}


def _line(row: Row) -> Line:
    option = row.ours.split(",")[0]
    usual = _effect(option) if is_option(option) else f"{HERE}test_what_has_no_counterpart_is_said"
    test = next((test for test, names in PROOFS.items() if row.names[0] in names.split()), usual)
    return Line(", ".join(row.names), row.ours, row.note, test)


def page() -> str:
    """Return the whole page."""
    return "\n\n".join([INTRODUCTION, *(_table(heading, lines) for heading, lines in all_lines().items())]) + "\n"


def _table(heading: str, lines: Iterable[Line]) -> str:
    rows = [f"| {_code(line.theirs)} | {_code(line.ours) or 'none'} | {_text(line.note)} | {_test(line.test)} |"
            for line in lines]
    return "\n".join([f"## {heading}", "", "| theirs | here | what differs | test |", "|---|---|---|---|", *rows])


def _code(text: str) -> str:
    parts = re.split(r"; |, (?![^(]*\))", text) if text else []
    return ", ".join(f"`{part}`" for part in parts)


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _test(name: str) -> str:
    path, _, function = name.partition("::")
    return f"[{function.replace('test_changing_an_option_has_an_effect', 'test_every_option')}](../{path})"


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description="Make the page for those who come from other trainers.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="where to")
    path = parser.parse_args(argv).write
    if path is None:
        sys.stdout.write(page())
    else:
        path.write_text(page(), encoding="utf-8")
    return ExitCode.DONE


if __name__ == "__main__":
    run_tool(main)
