"""tools/train.py from end to end: files, resuming, users' hooks, and bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from reading import read

from engine import CheckpointError, load_checkpoint
from rfdetr.errors import InputError
from rfdetr.models import RFDETR
from rfdetr.training import build_trainer
from rfdetr.training.command_line import ExitCode
from rfdetr.training.commands import fit
from rfdetr.weights import official_state_dict

TRAIN = Path(__file__).parents[2] / "tools" / "train.py"


@pytest.fixture
def start(config_file, tmp_path, monkeypatch):
    """Start training in the folder "run" of the test, with overrides."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def start_training(*argv: str) -> ExitCode:
        return fit(["--cfg", config_file, "--train.output_dir", str(tmp_path / "run"), *argv])

    return start_training


def assert_equal(one, other):
    """Compare two checkpoints bit by bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other):
            assert_equal(left, right)
    else:
        assert one == other


def metrics_without_clocks(folder: Path) -> list[dict]:
    """Read metrics.jsonl; how fast a run is differs from time to time."""
    clocks = {"train/images_per_s", "train/data_wait"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines]


def test_a_run_leaves_its_files(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {
        "config.yaml", "label_map.json", "metrics.jsonl", "results.json", "checkpoint.pth", "checkpoint_best_regular.pth",
        "checkpoint_best_ema.pth", "checkpoint_best_total.pth", "curves.png", "pr_curve.png", "confusion_matrix.png",
        "val_predictions.png", "train_batch.png",
    }  # fmt: skip
    assert [name for name in names if name.startswith("events.out.tfevents")]
    assert json.loads((finished_run / "label_map.json").read_text())["classes"][1] == {
        "label": 1, "category_id": 2, "name": "dark"
    }  # fmt: skip
    results = json.loads((finished_run / "results.json").read_text())
    assert (results["epochs"], results["stop_reason"]) == (3, None)
    assert "test/mAP_50_95" in results["test"]
    assert results["best"]["metrics"]["val/mAP_50_95"] > 0


def test_the_written_configuration_repeats_the_run(finished_run, config_file):
    again = read("--cfg", str(finished_run / "config.yaml"))
    first = read("--cfg", config_file, "--train.output_dir", str(finished_run), "--eval.run_test", "true")
    assert again == first


def test_a_stopped_run_that_is_resumed_ends_as_if_it_had_not_been_stopped(finished_run, start, tmp_path):
    quietly = ("--log.plots", "false", "--log.tensorboard", "false")
    assert start("--train.max_hours", "1e-9", *quietly) == ExitCode.INTERRUPTED
    stopped = load_checkpoint(tmp_path / "run" / "checkpoint.pth")
    assert (stopped["epoch"], stopped["step"]) == (0, 1)
    assert start("--resume", "auto", *quietly) == ExitCode.DONE
    resumed, straight = (load_checkpoint(folder / "checkpoint.pth") for folder in (tmp_path / "run", finished_run))
    for part in ("model", "ema_model", "optimizer", "lr_scheduler", "epoch", "step", "rng"):
        assert_equal(resumed[part], straight[part])
    assert metrics_without_clocks(tmp_path / "run") == metrics_without_clocks(finished_run)


def test_the_seed_decides_everything_that_is_drawn(start, tmp_path):
    """The weights, the order, augmentation by workers, the scales, drop path and dropout."""

    def metrics(name: str, seed: int) -> list[dict]:
        folder = tmp_path / name
        assert start("--train.output_dir", str(folder), "--train.seed", str(seed), "--train.epochs", "1",
                     "--data.num_workers", "2", "--data.augment", "aggressive", "--data.multi_scale", "true",
                     "--drop.drop_path", "0.2", "--drop.dropout", "0.1", "--log.every_steps", "1",
                     "--log.plots", "false", "--log.tensorboard", "false") == ExitCode.DONE
        return metrics_without_clocks(folder)

    first, second, third, other = (metrics(name, seed) for name, seed in (("1", 42), ("2", 42), ("3", 42), ("4", 43)))
    assert first == second == third
    assert [line["train/loss"] for line in first if "train/loss" in line] != [
        line["train/loss"] for line in other if "train/loss" in line]


def test_resuming_a_finished_run_changes_nothing(finished_run, start, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    assert start("--resume", "auto", "--log.plots", "false") == ExitCode.DONE
    names = ("checkpoint.pth", "checkpoint_best_total.pth")
    before, after = ([load_checkpoint(folder / name)["model"] for name in names] for folder in (finished_run, tmp_path / "run"))
    assert_equal(before, after)


def test_the_model_in_memory_ends_with_the_best_weights(config_file, finished_run):
    config = read("--cfg", str(finished_run / "config.yaml"))
    trainer = build_trainer(config, resumed=True)
    trainer.hooks[-1].after_train(trainer)
    best = load_checkpoint(finished_run / "checkpoint_best_total.pth")["model"]
    assert_equal(dict(official_state_dict(trainer.unwrapped_model)), dict(best))


def test_a_users_hook_sees_all_points_in_order(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points = ("before_train", "before_epoch", "before_step", "after_batch", "before_optimizer_step", "after_step", "after_epoch",
              "after_eval", "after_train")
    methods = "\n".join(f"    def {point}(self, trainer, *arguments): self.write('{point}')" for point in points)
    Path("watching_hooks.py").write_text(
        "from hooks import Hook\n\nclass WatchingHook(Hook):\n    def __init__(self, path: str): self.path = path\n"
        "    def write(self, point): open(self.path, 'a').write(point + '\\n')\n" + methods
    )
    hooks = json.dumps([{"class_path": "watching_hooks.WatchingHook", "init_args": {"path": str(tmp_path / "seen.txt")}}])
    assert start("--hooks", hooks, "--train.epochs", "1", "--train.grad_accum_steps", "2", "--log.plots", "false") == 0
    step = ["before_step", "after_batch", "after_batch", "before_optimizer_step", "after_step"]
    expected = ["before_train", "before_epoch", *step * 5, "after_epoch", "after_eval", "after_train"]
    assert Path("seen.txt").read_text().split() == expected


def test_overwrite_replaces_the_run_and_keeps_other_files(finished_run, start, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="nowhere"):
        start("--overwrite", "--data.dataset_dir", "nowhere")
    assert (tmp_path / "run" / "checkpoint.pth").exists(), "bad input costs nothing"
    assert start("--overwrite", "--train.epochs", "1", "--log.plots", "false") == ExitCode.DONE
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "curves.png").exists()
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 6


def test_a_run_that_is_there_is_not_touched(finished_run, start, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="already holds a run .* --resume auto, .* --overwrite"):
        start()
    with pytest.raises(InputError, match="contradict"):
        start("--resume", "auto", "--overwrite")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.device", "cuda:63"], r"^train\.device: .*cuda:63"),
        (["--train.device", "gpu"], r"^train\.device: 'gpu'"),
        (["--eval.precision", "fp16"], r"^eval\.precision: fp16 needs a CUDA device"),
        (["--data.dataset_dir", "nowhere"], "nowhere: there is no such folder"),
        (["--data.format", "yolo"], "no data set found"),
        (["--model.num_classes", "1"], r"^model\.num_classes: 1 are too few, the data set has 2 \(bright, dark\)"),
        (["--model.weights", "nowhere.pth"], r"nowhere\.pth"),
        (["--optim.optimizer_args", '{"beta": 1}'], r"^optim\.optimizer: AdamW refuses its arguments .*'beta'"),
        (["--train.sync_bn", "true"], r"^train\.sync_bn: the model has no batch norm"),
        (["--resume", "nowhere.pth"], r"nowhere\.pth: no such checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_anything_is_written(start, tmp_path, argv, message):
    with pytest.raises((InputError, CheckpointError), match=message):
        start(*argv, "--train.output_dir", str(tmp_path / "new" / "run"))
    assert not (tmp_path / "new").exists()


def test_two_hooks_for_one_place_are_refused_and_block_nothing(start):
    for _ in range(2):
        with pytest.raises(InputError, match="EMAHook and EMAHook both take the place of EMAHook"):
            start("--hooks", '[{"class_path": "hooks.EMAHook"}, {"class_path": "hooks.EMAHook"}]')


def test_a_test_split_that_is_asked_for_has_to_be_there(start, tmp_path, write_split):
    for split in ("train", "valid"):
        write_split(tmp_path / "data" / split, 4)
    with pytest.raises(InputError, match=r"eval\.run_test: true, but .* has no test split"):
        start("--data.dataset_dir", str(tmp_path / "data"), "--eval.run_test", "true")


def test_weights_of_another_variant_or_of_other_classes_are_refused(finished_run, start, tmp_path, write_split):
    best = str(finished_run / "checkpoint_best_total.pth")
    with pytest.raises(InputError, match="made for another architecture"):
        start("--model.weights", best, "--model.variant", "nano")
    for split in ("train", "valid"):
        write_split(tmp_path / "data" / split, 4, names=("cat", "dog"))
    other_data = ("--data.dataset_dir", str(tmp_path / "data"))
    with pytest.raises(InputError, match=r"trained on other classes(.|\n)*'bright'(.|\n)*'cat'"):
        start("--model.weights", best, *other_data)
    with pytest.raises(InputError, match=r"checkpoint was trained on other classes: .*'bright'.*'cat'"):
        start("--resume", str(finished_run / "checkpoint.pth"), *other_data)


def test_resuming_needs_a_checkpoint_of_the_same_model(finished_run, start):
    with pytest.raises(InputError, match="holds weights only"):
        start("--resume", str(finished_run / "checkpoint_best_total.pth"))
    checkpoint = str(finished_run / "checkpoint.pth")
    with pytest.raises(InputError, match="another model: model.num_queries 10 there, 20 here"):
        start("--resume", checkpoint, "--model.num_queries", "20")
    with pytest.raises(InputError, match="does not fit the settings of this run: the optimizer is SGD now and was AdamW"):
        start("--resume", checkpoint, "--optim.optimizer", "SGD")


def test_from_the_shell_bad_input_is_one_line_and_exit_code_2(config_file):
    command = [sys.executable, str(TRAIN), "--cfg", config_file, "--train.epoch", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: --train.epoch: there is no such option; did you mean --train.epochs?\n"


def test_print_config_shows_the_result_and_trains_nothing(config_file, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        fit(["--cfg", config_file, "--train.epochs", "7", "--print_config"])
    assert stop.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["epochs"] == 7
    assert "resume" not in shown


def test_rectangular_input_trains_at_several_scales_and_evaluates(start, tmp_path, monkeypatch):
    """The pictures are square: what is learned from them stretched must be found in them stretched alike."""
    shapes = set()
    forward = RFDETR.forward

    def noting_forward(model, samples, targets=None):
        shapes.add((model.training, *samples.tensors.shape[-2:]))
        return forward(model, samples, targets)

    monkeypatch.setattr(RFDETR, "forward", noting_forward)
    assert start("--model.resolution", "[64, 96]", "--data.multi_scale", "true", "--log.plots", "false", "--train.epochs",
                 "10", "--eval.every_epochs", "5") == ExitCode.DONE
    sizes = {shape[1:] for shape in shapes if shape[0]}
    assert len(sizes) > 2 and all(width == round(height * 1.5 / 16) * 16 for height, width in sizes)
    assert {shape[1:] for shape in shapes if not shape[0]} == {(64, 96)}
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["best"]["metrics"]
    assert metrics["val/mAP_50"] > 0.1


def test_a_segmentation_model_refuses_data_without_masks(start, tmp_path):
    with pytest.raises(InputError, match="a segmentation model needs masks, but no annotation has a segmentation"):
        start("--model.variant", "pico_seg")
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_not_measured_is_refused_unless_a_hook_may_publish_it(start, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"eval\.monitor: 'mAP_5' is not measured; did you mean mAP_\d+\?"):
        start("--eval.monitor", "mAP_5")
    monkeypatch.chdir(tmp_path)
    Path("quiet_hooks.py").write_text("from hooks import Hook\n\nclass QuietHook(Hook): pass\n")
    hooks = json.dumps([{"class_path": "quiet_hooks.QuietHook"}])
    assert start("--eval.monitor", "mAP_5", "--hooks", hooks, "--train.epochs", "1", "--log.plots", "false") == ExitCode.DONE
    assert start("--overwrite", "--eval.monitor", "AP/dark", "--train.epochs", "1", "--log.plots", "false") == ExitCode.DONE
