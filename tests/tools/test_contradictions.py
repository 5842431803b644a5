"""Options that contradict each other, or name what is not there, are refused in one message before any work starts."""

import sys

import pytest
from reading import read

from rfdetr.errors import InputError
from rfdetr.training import assemble
from rfdetr.training.commands import fit

FSDP = ("--train.strategy", "fsdp", "--ema.enabled", "false")
SCHEDULE, ARGUMENTS = ("--optim.schedule",), ("--optim.schedule_args",)
EARLY = ("--early_stopping.enabled", "true")
REFUSED = [
    (("--eval.monitor", "ema_mAP_50_95"), r"^eval\.monitor: 'ema_mAP_50_95' .* without val/ or ema_"),
    (("--eval.monitor", "val/mAP_50"), r"^eval\.monitor: 'val/mAP_50'"),
    (("--eval.monitor", "segm_mAP_50"), r"^eval\.monitor: segm_mAP_50 is a metric of masks, which pico .*; use mAP_50"),
    (("--ema.enabled", "false", "--eval.models", "ema"), r'^eval\.models: "ema" needs the average'),
    (("--ema.enabled", "false", *EARLY, "--early_stopping.use_ema", "true"), r"^early_stopping\.use_ema: .* ema\.enabled"),
    (("--eval.models", "regular", *EARLY, "--early_stopping.use_ema", "true"), r"^early_stopping\.use_ema: .* eval\.models to"),
    ((*EARLY, "--early_stopping.stopping_threshold", "0.2", "--early_stopping.divergence_threshold", "0.3"),
     r"^early_stopping\.stopping_threshold: 0\.2 is worse than divergence_threshold, 0\.3"),
    (("--eval.skip_first_epochs", "3"), r"^eval\.skip_first_epochs: with 3 of 3 epochs"),
    ((*EARLY, "--early_stopping.stopping_threshold", "3", "--early_stopping.divergence_threshold", "2", "--eval.monitor", "loss",
      "--eval.loss", "true"), r"^early_stopping\.stopping_threshold: 3\.0 is worse than divergence_threshold, 2\.0"),
    (("--eval.monitor", "loss"), r"^eval\.monitor: 'loss' is not measured; set eval\.loss to true"),
    (("--eval.monitor", "loss_bboxes", "--eval.loss", "true"), r"^eval\.monitor: 'loss_bboxes' is not .* mean loss_bbox\?"),
    (("--drop.mode", "late", "--drop.cutoff_epoch", "4"), r"^drop\.cutoff_epoch: 4 is after the last epoch \(3\)"),
    (("--drop.cutoff_epoch", "1"), r'^drop\.cutoff_epoch: 1 changes nothing with drop\.mode "standard"'),
    (("--drop.schedule", "linear"), r'^drop\.schedule: "linear" falls to 0 at the cutoff'),
    (("--optim.schedule_args", '{"gamma": 0.1}'), r"^optim\.schedule_args: 'step' takes none"),
    ((*SCHEDULE, "flat_cosine", *ARGUMENTS, '{"power": 2}'),
     r"^optim\.schedule_args: 'flat_cosine' takes no power, only flat"),
    ((*SCHEDULE, "flat_cosine", *ARGUMENTS, '{"flat": 1.0}'),
     r"^optim\.schedule_args: flat: 1\.0 is not possible; it must be 0 or more"),
    ((*SCHEDULE, "plateau", *ARGUMENTS, '{"patience": "x"}'), r"^optim\.schedule_args: patience: 'x' is not"),
    ((*SCHEDULE, "plateau", *ARGUMENTS, '{"metric": "val/mAP50"}'),
     r"^optim\.schedule_args: metric: 'val/mAP50' is not measured; did you mean val/mAP_50\?"),
    ((*SCHEDULE, "plateau", *ARGUMENTS, '{"metric": "val/ema_F1"}', "--eval.models", "regular"),
     r"^optim\.schedule_args: metric: 'val/ema_F1' is not measured"),
    ((*SCHEDULE, "plateau", *ARGUMENTS, '{"metric": "val/loss"}'),
     r"^optim\.schedule_args: metric: 'val/loss' is not measured; set eval\.loss to true"),
    (("--optim.groups", '[{"match": "*.biass", "lr_scale": 2.0}]'), r"^optim\.groups: '\*\.biass' fits no part of the model"),
    (("--optim.groups", '[{"match": "*.bias"}]'), r"^optim\.groups: .* it must be a list of \{match: pattern\} with lr_scale"),
    (("--optim.groups", '[{"match": "*.bias", "lr": 2.0}]'), r"^optim\.groups: "),
    (("--train.keep_top", "1"), r"^train\.keep_top: 1 is not possible; it must be 0, or 2 or more"),
    (("--train.keep_top", "3", "--eval.every_epochs", "2"), r"^train\.keep_top: 3, but only 2 evaluations count"),
    (("--train.keep_every_epochs", "4"), r"^train\.keep_every_epochs: 4 is after the last epoch \(3\)"),
    (("--data.batch_size", "auto"), r'^data\.batch_size: "auto" needs train\.effective_batch'),
    (("--data.batch_size", "auto", "--train.effective_batch", "8", "--train.grad_accum_steps", "2"),
     r'^data\.batch_size: "auto"'),
    (("--data.batch_size", "many"), r"^data\.batch_size: "),
    (("--data.batch_size", "0"), r"^data\.batch_size: 0 is not possible; it must be 1 or more, or auto"),
    (("--train.effective_batch", "6"), r"^train\.effective_batch: 6 images cannot be divided into batches of 4 in 1"),
    (("--train.effective_batch", "8", "--train.grad_accum_steps", "4"), r"^train\.grad_accum_steps: 4, but .* takes 2 batches"),
    (("--train.effective_batch", "0"), r"^train\.effective_batch: 0 is not possible"),
    ((*FSDP, "--train.preflight", "true"), r"^train\.preflight: true tries a step in each process alone"),
    ((*FSDP, "--data.batch_size", "auto", "--train.effective_batch", "8"), r"^data\.batch_size: auto tries a step in each"),
    (("--train.max_steps", "0"), r"^train\.max_steps: 0 is not possible; it must be 1 or more, or null"),
    (("--eval.monitor", "mAP50"), r"^eval\.monitor: 'mAP50' is not measured; did you mean mAP_50\?"),
    (("--optim.optimizer_args", '{"lr": 1.0}'), r"^optim\.optimizer_args: lr changes nothing there, .* set optim\.lr"),
    (("--optim.optimizer", "Adamm"), r"^optim\.optimizer: 'Adamm' is no class of torch\.optim .* did you mean Adam\?"),
    (("--optim.optimizer", "nowhere.Lion"), r"^optim\.optimizer: cannot import 'nowhere\.Lion'"),
    (("--optim.schedule", "Cosine"), r"^optim\.schedule: 'Cosine' is no class of torch\.optim\.lr_scheduler"),
    (("--optim.schedule", "ReduceLROnPlateau"), r"^optim\.schedule: ReduceLROnPlateau follows a metric"),
    (("--data.repeat_threshold", "0"), r"^data\.repeat_threshold: 0\.0 is not possible; it must be above 0 and at most 1"),
    (("--loss.class_weights", '{"bright": 0}'), r"^loss\.class_weights: .*weight above 0"),
    (("--data.fraction", "0"), r"^data\.fraction: 0\.0 is not possible; it must be above 0 and at most 1"),
    (("--data.classes", "[]"), r"^data\.classes: \(\) is not possible; it must be a list of different names"),
    (("--data.single_class", "true", "--loss.class_weights", "balanced"), r"^loss\.class_weights: tells classes apart"),
    (("--data.single_class", "true", "--data.sampling", "repeat_factor"), r"^data\.sampling: tells classes apart"),
    (("--eval.sets", '{"val": "somewhere"}'), r"^eval\.sets: .*not train, val, test, ema, lr"),
    (("--eval.sets", '{"night": "nowhere"}'), r"^eval\.sets: night: nowhere: there is no such folder"),
    (("--data.mosaic", "1.5"), r"^data\.mosaic: 1\.5 is not possible; it must be between 0 and 1"),
    (("--data.mixup", "0.5", "--data.mix_off_epochs", "3"), r"^data\.mix_off_epochs: with 3 of 3 epochs .* nothing is mixed"),
    (("--data.augment", "wild"), r"^data\.augment: there is no recipe 'wild'; the recipes are none, default"),
    (("--data.augment", '[{"class_path": "torchvision.transforms.v2.Rotate"}]'), r"^data\.augment: there is no torchvision"),
    (("--hooks", '[{"class_path": "nowhere.MyHook"}]'), r"^hooks: .*'nowhere\.MyHook': No module named 'nowhere'"),
    (("--model.resize_head", "true"), r"^model\.resize_head: true without model\.weights changes nothing"),
    (("--model.ema_weights", "true"), r"^model\.ema_weights: true without model\.weights changes nothing"),
    (("--train.precision", "fp16"), r"^train\.precision: fp16 needs a CUDA device"),
    (("--train.strategy", "fsdp"), r"^train\.strategy: fsdp .* set ema\.enabled to false"),
    (("--train.strategy", "fsdp", "--ema.enabled", "false", "--train.precision", "fp16"), r"^train\.precision: fp16 is not"),
]


@pytest.mark.parametrize(("argv", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_contradictions_are_refused_before_the_data_are_read(config_file, tmp_path, monkeypatch, argv, message):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(assemble, "open_run_data", lambda *arguments: pytest.fail("the data were read"))
    with pytest.raises(InputError, match=message):
        fit(["--cfg", config_file, "--train.output_dir", str(tmp_path / "run"), *argv])
    assert not list(tmp_path.glob("run/*"))


def test_a_users_metric_may_be_monitored(config_file):
    """Only what is known to be contradictory is refused: hooks may publish metrics of any name."""
    config = read("--cfg", config_file, "--eval.monitor", "my_metric")
    assert config.eval.monitor == "my_metric"
