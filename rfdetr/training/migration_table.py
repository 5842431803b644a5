"""The settings of the published package (1.11.2, and 1.4.1 before it) and ours: the table behind ``rfdetr migrate``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rfdetr.training import migration_rules as rules
from rfdetr.training.migration_rules import Rule, elsewhere, one_of, tracker, unless

QUIET = (None, False, 0, 0.0, "", "auto")  # values at which a setting without a counterpart has nothing to say
DEVICES = {None: None, "auto": None, "cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}
SECTIONS = ("model", "data", "loss", "optim", "train", "ema", "drop", "early_stopping", "eval", "log")


@dataclass(frozen=True)
class Row:
    """What a setting of theirs is here.

    Attributes:
        theirs: its name, or names with spaces between.
        ours: our option, or options with commas between; or code or a command; empty where there is none.
        note: where the meaning differs, or why there is no counterpart.
        rule: makes our options of the stored value; without one, `ours` takes it as it is.
        quiet: further values that need no word.
    """

    theirs: str
    ours: str = ""
    note: str = ""
    rule: Rule | None = None
    quiet: tuple[Any, ...] = ()

    @property
    def names(self) -> list[str]:
        return self.theirs.split()

    def settings(self, value: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return our options for a stored value, and what to say under `REMARK`."""
        if self.rule is not None:
            return self.rule(value, stored)
        if is_option(self.ours):
            return {self.ours: value}
        said = any(value is other or type(value) is type(other) and value == other for other in (*QUIET, *self.quiet))
        return {} if said or value in ([], {}) else {rules.REMARK: f"{value!r}: {self.note}"}


def is_option(name: str) -> bool:
    """Tell whether this is a setting of ours."""
    section, _, key = name.partition(".")
    return section in SECTIONS and key.isidentifier()


TRAIN = (
    Row("epochs", "train.epochs"),
    Row("batch_size", "data.batch_size", rule=rules.batch_size),
    Row("grad_accum_steps", "train.grad_accum_steps", rule=rules.accumulation),
    Row("auto_batch_target_effective", "train.effective_batch", "with batch_size auto, which is measured here with the largest "
        "scale, the most crowded images and the average, on CPUs too", rule=elsewhere),
    Row("auto_batch_max_targets_per_image auto_batch_ema_headroom", "", "with batch_size auto the worst step of the run itself "
        "is measured", quiet=(100, 0.7)),
    Row("eval_batch_size", "data.eval_batch_size"),
    Row("lr", "optim.lr"),
    Row("lr_encoder", "optim.lr_encoder"),
    Row("weight_decay", "optim.weight_decay"),
    Row("lr_vit_layer_decay", "optim.lr_vit_layer_decay"),
    Row("lr_component_decay", "optim.lr_component_decay"),
    Row("clip_max_norm", "optim.clip_max_norm"),
    Row("optimizer", "optim.optimizer, optim.optimizer_args", "groups have their rates for imported optimizers too",
        rule=rules.optimizer),
    Row("optimizer_kwargs", "optim.optimizer_args", "with optimizer", rule=elsewhere),
    Row("lr_scheduler", "optim.schedule, optim.schedule_args", "cosine ends at its minimum and stays there; one of torch "
        "counts optimizer steps, plateau evaluations", rule=rules.schedule),
    Row("lr_scheduler_kwargs lr_scheduler_interval lr_scheduler_monitor", "optim.schedule_args", "with lr_scheduler; lr_drop "
        "and min_factor are optim.lr_drop and optim.lr_min_factor", rule=elsewhere),
    Row("warmup_epochs", "optim.warmup_epochs"),
    Row("seed", "train.seed", "also the weights and the data order are drawn with it; without one it is 42",
        rule=unless("train.seed", None)),
    Row("amp_dtype", "train.precision", "evaluations have eval.precision, fp32 unless told otherwise", rule=rules.precision),
    Row("use_ema", "ema.enabled"),
    Row("ema_decay", "ema.decay", "the average starts from the first weights, as in 1.4.1; 1.11.2 forgets them at its first "
        "update"),
    Row("ema_tau", "ema.tau"),
    Row("ema_update_interval", "ema.update_every"),
    Row("drop_path", "drop.drop_path"),
    Row("cls_loss_coef", "loss.cls_loss_coef"),
    Row("mask_ce_loss_coef", "loss.mask_ce_loss_coef"),
    Row("mask_dice_loss_coef", "loss.mask_dice_loss_coef"),
    Row("mask_point_sample_ratio", "loss.mask_point_sample_ratio"),
    Row("keypoint_flip_pairs keypoint_l1_loss_coef keypoint_findable_loss_coef keypoint_visible_loss_coef "
        "keypoint_nll_loss_coef keypoint_oks_sigmas", "", "key points are not trained here"),
    Row("dataset_dir coco_path", "data.dataset_dir", rule=unless("data.dataset_dir", None)),
    Row("dataset_file", "data.format", "roboflow is auto here, which finds any layout by looking", rule=rules.dataset_file),
    Row("class_names", "", "names are those of the data set; data.classes chooses among them", rule=elsewhere),
    Row("square_resize_div_64", "data.resize", "letterbox fits pictures into the input, instead of their short side to it",
        rule=rules.square_resize),
    Row("multi_scale", "data.multi_scale", "one scale a step, to which each picture is resized once, with antialiasing",
        rule=one_of("data.multi_scale", {True: True, False: False, "per-batch": True, "off": False, "per-sample": True})),
    Row("expanded_scales", "data.expanded_scales"),
    Row("aug_config", "data.augment", "a recipe's name, or torchvision v2 transforms; strengths of the named recipes are our "
        "own", rule=rules.augmentation),
    Row("scale_jitter", "data.augment", "part of the recipe default", rule=elsewhere),
    Row("augmentation_backend", "", "there is one implementation; samples do not depend on what is installed", quiet=("cpu",)),
    Row("num_workers", "data.num_workers"),
    Row("persistent_workers", "data.persistent_workers", rule=unless("data.persistent_workers", None)),
    Row("prefetch_factor", "data.prefetch_factor", rule=unless("data.prefetch_factor", None)),
    Row("pin_memory pack_targets pad_targets_to", "", "done where it helps, without a switch", quiet=(True,)),
    Row("eval_interval", "eval.every_epochs"),
    Row("eval_max_dets", "eval.max_dets", "equal to pycocotools in float64; theirs reads up to 0.0066 low"),
    Row("eval_base_model", "eval.models", "both, or the average alone; val/ is then not filled with the average's numbers",
        rule=rules.eval_base_model),
    Row("log_per_class_metrics", "eval.per_class"),
    Row("eval_backend", "", "there is one, equal to pycocotools", quiet=("vernier", "hotcoco", "faster_coco_eval", "ufcoco")),
    Row("eval_masks_head_resolution", "", "masks are compared at the size of the picture"),
    Row("compute_val_loss", "eval.loss", "of the test split as well; auto is off", rule=rules.compute_val_loss),
    Row("compute_test_loss", "eval.loss", "with compute_val_loss", rule=elsewhere),
    Row("compute_train_metrics", "", "training images are not evaluated; eval.sets takes any further data set"),
    Row("run_test", "eval.run_test"),
    Row("best_model_metric", "eval.monitor", "map is the default; any published metric may decide",
        rule=rules.best_model_metric),
    Row("skip_best_epochs", "eval.skip_first_epochs", rule=rules.skip_best_epochs),
    Row("smooth_alpha", "", "the metric itself decides; train.keep_top takes the mean of the best weights"),
    Row("early_stopping", "early_stopping.enabled"),
    Row("early_stopping_patience", "early_stopping.patience"),
    Row("early_stopping_min_delta", "early_stopping.min_delta"),
    Row("early_stopping_use_ema", "early_stopping.use_ema", rule=rules.early_stopping_use_ema),
    Row("num_sanity_val_steps", "", "data are checked before training; train.preflight tries the worst step"),
    Row("output_dir", "train.output_dir", rule=rules.output_dir),
    Row("resume", "rfdetr fit --resume FILE", "exact to the step and bit; of their files weights, average and epoch go on",
        rule=rules.resume),
    Row("checkpoint_interval", "train.keep_every_epochs", "checkpoint.pth is there after every epoch anyhow",
        rule=rules.checkpoint_interval),
    Row("tensorboard", "log.tensorboard"),
    Row("wandb", "log.wandb", "the name of the project", rule=tracker("log.wandb")),
    Row("mlflow", "log.mlflow", "the name of the experiment", rule=tracker("log.mlflow")),
    Row("project", "log.wandb, log.mlflow", "with these", rule=elsewhere),
    Row("clearml", "", "a hook may log to it (trainer.metrics in after_eval)"),
    Row("run", "", "trackers name a run after train.output_dir"),
    Row("progress_bar", "log.progress", "on by default where there is a terminal",
        rule=one_of("log.progress", {None: None, True: True, False: False, "tqdm": True, "rich": True})),
    Row("save_dataset_grids", "log.plots", "train_batch.png; on by default", rule=elsewhere),
    Row("notes", "", "a note belongs into the configuration, as a comment"),
    Row("train_log_on_step", "log.every_steps", "the mean of so many steps, and of an epoch", rule=elsewhere),
    Row("train_log_sync_dist compact_train_metrics", "", "logged values are of all processes, each loss term once and by layer",
        quiet=(True,)),
    Row("device", "train.device", "auto takes the GPU if there is one; what a file says was that machine's", rule=elsewhere),
    Row("accelerator", "train.device", rule=one_of("train.device", DEVICES)),
    Row("devices num_nodes", "torchrun --nproc-per-node N --no-python rfdetr fit ...", "a process for each device",
        rule=rules.processes),
    Row("strategy", "train.strategy", "ddp whenever there are several processes", rule=rules.strategy),
    Row("sync_bn", "", "the model has no batch norms"),
    Row("dont_save_weights eval_ema_only fp16_eval", "", "without effect in 1.11.2, and not here"),
)

MODEL = (
    Row("model_name", "model.variant", "nano for RFDETRNano, seg_nano for RFDETRSegNano and so on", rule=elsewhere),
    Row("encoder out_feature_indexes dec_layers projector_scale hidden_dim dim_feedforward patch_size num_windows sa_nheads "
        "ca_nheads dec_n_points segmentation_head mask_downsample_ratio", "model.variant", "part of the variant; another value "
        "needs a model of one's own: rfdetr.training.train(config, model=...)", rule=elsewhere),
    Row("pretrain_weights", "model.weights, model.resize_head", "published are those of the variant; rows of the class head "
        "are taken over by the names of the classes", rule=elsewhere),
    Row("num_classes", "model.num_classes", "leave it out: the data set says it", rule=elsewhere),
    Row("resolution positional_encoding_size", "model.resolution", "the position table follows", rule=elsewhere),
    Row("num_queries num_select", "model.num_queries", "one number for both", rule=elsewhere),
    Row("group_detr", "model.group_detr", rule=elsewhere),
    Row("gradient_checkpointing", "model.gradient_checkpointing"),
    Row("freeze_encoder", "model.freeze", "[backbone.encoder]; any part by name", rule=rules.freeze),
    Row("backbone_lora", "", "LoRA is not trained here; model.freeze trains less than all"),
    Row("compile", "train.compile", "compiles model and loss in training"),
    Row("cuda_graphs", "", "no graphs are captured; train.compile makes steps faster"),
    Row("fused_optimizer", "", "fused wherever the device can, with any precision", quiet=(True,)),
    Row("amp", "train.precision", "false is fp32, while amp_dtype is auto",
        rule=lambda value, stored: {} if value or stored.get("amp_dtype", "auto") != "auto" else {"train.precision": "fp32"}),
    Row("ia_bce_loss", "loss.cls", "ia_bce, varifocal, position or focal", rule=rules.classification_loss),
    Row("two_stage bbox_reparam lite_refpoint_refine layer_norm keypoint_cross_attn", "", "always so here, as in every "
        "published model", quiet=(True,)),
    Row("num_channels postprocess_trace_alpha grouppose_keypoint_dim_downscale", "", "pictures are RGB, and key points are not "
        "here", quiet=(3, 0.2, 1)),
    Row("use_grouppose_keypoints inter_instance_kp_attn dual_projector dual_projector_kp_only num_keypoints_per_class "
        "num_decoder_registers", "", "parts of key-point models, which are not here"),
    Row("license", "", "the published files up to large and all segmentation files are Apache-2.0", quiet=("Apache-2.0",)),
)

LEGACY = (
    Row("lr_drop", "optim.lr_drop"),
    Row("lr_min_factor", "optim.lr_min_factor"),
    Row("bbox_loss_coef", "loss.bbox_loss_coef"),
    Row("giou_loss_coef", "loss.giou_loss_coef"),
    Row("focal_alpha", "loss.focal_alpha", "also in the matching, where 1.4.1 has 0.25"),
    Row("set_cost_class", "loss.set_cost_class"),
    Row("set_cost_bbox", "loss.set_cost_bbox"),
    Row("set_cost_giou", "loss.set_cost_giou"),
    Row("sum_group_losses", "loss.sum_group_losses"),
    Row("use_varifocal_loss use_position_supervised_loss", "loss.cls", "where ia_bce_loss is off", rule=elsewhere),
    Row("dropout", "drop.dropout"),
    Row("drop_mode", "drop.mode", rule=unless("drop.mode", "standard")),
    Row("drop_schedule", "drop.schedule",
        rule=lambda value, stored: {"drop.schedule": value} if stored.get("drop_mode") == "early" else {}),
    Row("cutoff_epoch", "drop.cutoff_epoch",
        rule=lambda value, stored: {"drop.cutoff_epoch": value} if stored.get("drop_mode", "standard") != "standard" else {}),
    Row("do_random_resize_via_padding", "data.multi_scale", "one scale a step"),
)

TRAINER = (  # of Lightning, in the CLI's files and as build_trainer(**trainer_kwargs)
    Row("trainer.max_epochs", "train.epochs", rule=unless("train.epochs", -1)),
    Row("trainer.max_steps", "train.max_steps", rule=unless("train.max_steps", -1)),
    Row("trainer.accumulate_grad_batches", "train.grad_accum_steps"),
    Row("trainer.gradient_clip_val", "optim.clip_max_norm"),
    Row("trainer.precision", "train.precision", rule=lambda value, stored: rules.precision(str(value), {})),
    Row("trainer.accelerator", "train.device", rule=one_of("train.device", DEVICES)),
    Row("trainer.devices trainer.num_nodes", "torchrun --nproc-per-node N --no-python rfdetr fit ...", "a process for each "
        "device", rule=rules.processes),
    Row("trainer.strategy", "train.strategy", rule=rules.strategy),
    Row("trainer.check_val_every_n_epoch", "eval.every_epochs"),
    Row("trainer.log_every_n_steps", "log.every_steps", "the mean of so many steps"),
    Row("trainer.default_root_dir", "train.output_dir"),
    Row("trainer.deterministic", "train.deterministic", rule=lambda value, stored: {"train.deterministic": bool(value)}),
    Row("trainer.enable_progress_bar", "log.progress"),
    Row("trainer.fast_dev_run", "train.max_steps", "the number of steps",
        rule=lambda value, stored: {"train.max_steps": int(value)} if value else {}),
    Row("trainer.max_time", "train.max_hours", "hours, as a number; the run can be resumed",
        rule=lambda value, stored: {rules.REMARK: f"{value}: set train.max_hours, in hours"}),
    Row("trainer.callbacks", "hooks", "see the hook points below; standard ones are switched on by their options",
        rule=lambda value, stored: {rules.REMARK: "callbacks become hooks: a list of class_path and init_args"} if value else {}),
    Row("trainer.logger", "log.tensorboard, log.csv, log.wandb, log.mlflow",
        rule=lambda value, stored: {
            rules.REMARK: "loggers are switched on by log.tensorboard, log.csv, log.wandb, log.mlflow"} if value else {}),
    Row("trainer.sync_batchnorm", "", "the model has no batch norms"),
    Row("trainer.num_sanity_val_steps trainer.benchmark trainer.enable_checkpointing trainer.enable_model_summary "
        "trainer.inference_mode trainer.use_distributed_sampler trainer.reload_dataloaders_every_n_epochs", "", "has no "
        "counterpart, and none is needed", quiet=(True, 2)),
    Row("trainer.gradient_clip_algorithm", "", "gradients are clipped by their norm", quiet=("norm",)),
    Row("seed_everything", "train.seed",
        rule=lambda value, stored: {} if value in (None, True, False) else {"train.seed": value}),
    Row("ckpt_path", "rfdetr fit --resume FILE, rfdetr validate --ckpt_path FILE", rule=rules.resume),
)

TABLES = {"train": TRAIN, "model": MODEL, "legacy": LEGACY, "trainer": TRAINER}
ROWS = {name: row for rows in TABLES.values() for row in rows for name in row.names}
