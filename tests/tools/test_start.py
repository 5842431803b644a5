"""What a run starts from: checkpoints and their averages, DINOv2 weights, frozen parts, compiled and divided models."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reading import read

from engine import load_checkpoint
from engine.sharding import can_shard_on_cpu
from hooks import EMAHook
from rfdetr import VARIANTS, build_model
from rfdetr.errors import InputError
from rfdetr.training import build_trainer
from rfdetr.training.command_line import ExitCode
from rfdetr.weights import official_state_dict

TRAIN = Path(__file__).parents[2] / "tools" / "train.py"


@pytest.fixture
def build(config_file, tmp_path):
    """Build the trainer of a configuration with overrides."""

    def build_from(*argv: str):
        return build_trainer(read("--cfg", config_file, "--train.output_dir", str(tmp_path / "run"), *argv))

    return build_from


def ema_of(trainer) -> EMAHook:
    return next(hook for hook in trainer.hooks if isinstance(hook, EMAHook))


def test_the_averaged_weights_of_a_checkpoint_start_the_model_or_the_average(build, finished_run):
    checkpoint = str(finished_run / "checkpoint.pth")
    content = load_checkpoint(checkpoint)
    both = build("--model.weights", checkpoint)
    torch.testing.assert_close(both.unwrapped_model.state_dict(), content["model"], rtol=0, atol=0)
    both.stop("it only has to start")
    both.train()
    torch.testing.assert_close(ema_of(both).average.state_dict(), content["ema_model"], rtol=0, atol=0)
    assert ema_of(both).num_updates > 5 * ema_of(both).tau, "the decay does not grow from 0 again"

    averaged = build("--model.weights", checkpoint, "--model.ema_weights", "true")
    torch.testing.assert_close(averaged.unwrapped_model.state_dict(), content["ema_model"], rtol=0, atol=0)
    assert ema_of(averaged).num_updates == 0


def test_a_converted_legacy_file_goes_on_with_its_average(build, finished_run, tmp_path):
    content = load_checkpoint(finished_run / "checkpoint.pth")
    model = build_model(replace(VARIANTS["pico"], resolution=64, positional_encoding_size=4, num_queries=10, num_select=10,
                                group_detr=4, num_classes=2))
    states = []
    for part in ("model", "ema_model"):
        model.load_state_dict(content[part])
        states.append({name: tensor.clone() for name, tensor in official_state_dict(model).items()})
    legacy = {"state_dict": {f"model.{name}": tensor for name, tensor in states[0].items()}, "epoch": 3,
              "legacy_checkpoint_format": True, "legacy_ema_state_dict": states[1], "hyper_parameters": {}}
    torch.save(legacy, tmp_path / "legacy.ckpt")
    trainer = build("--model.weights", str(tmp_path / "legacy.ckpt"))
    trainer.stop("it only has to start")
    trainer.train()
    torch.testing.assert_close(trainer.eval_models["ema"].state_dict(), content["ema_model"], rtol=0, atol=0)


def test_the_vit_starts_from_dinov2(build, tmp_path):
    donor = build_model(replace(VARIANTS["pico"], patch_size=14, resolution=518, positional_encoding_size=37)).backbone.encoder
    torch.save(donor.state_dict(), tmp_path / "dinov2.pth")
    model = build("--model.backbone_weights", str(tmp_path / "dinov2.pth")).unwrapped_model
    torch.testing.assert_close(model.backbone.encoder.blocks[0].attn.qkv.weight, donor.blocks[0].attn.qkv.weight)
    assert model.backbone.encoder.patch_embed.proj.weight.shape[-2:] == (16, 16)
    with pytest.raises(InputError, match=r"nowhere\.pth: no such file"):
        build("--model.backbone_weights", str(tmp_path / "nowhere.pth"))
    with pytest.raises(InputError, match="filled twice"):
        build("--model.backbone_weights", "timm", "--model.weights", "x.pth")


def test_frozen_parts_do_not_change_and_the_rest_does(build):
    trainer = build("--model.freeze", '["backbone.encoder", "*.norm1.bias"]', "--train.epochs", "1", "--log.plots", "false")
    before = {name: tensor.clone() for name, tensor in trainer.unwrapped_model.state_dict().items()}
    trainer.train()
    after = trainer.unwrapped_model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith("backbone.encoder.") or name.endswith(".norm1.bias")]
    assert any(name.startswith("backbone.projector.") for name in changed)
    assert "transformer.decoder.layers.0.norm1.weight" in changed


@pytest.mark.parametrize(("patterns", "message"), [
    ('["backbone.encodr"]', r"'backbone\.encodr' fits no part of the model; did you mean 'backbone\.encoder'"),
    ('["*"]', "leaves nothing to train"),
])  # fmt: skip
def test_what_cannot_be_frozen_is_refused(build, patterns, message):
    with pytest.raises(InputError, match=message):
        build("--model.freeze", patterns)


def test_parts_are_compiled_on_request(build):
    trainer = build("--train.compile", "true")
    units = [*trainer.unwrapped_model.compile_units, *trainer.criterion.compile_units]
    assert all(unit._compiled_call_impl is not None for unit in units)
    assert all(block._compiled_call_impl is None for block in build().unwrapped_model.blocks)


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(build, tmp_path):
    """In fp32: compiled bf16 code rounds at other places, and a detector's choices follow."""
    plain, compiled = (build("--train.compile", value, "--train.epochs", "1", "--log.plots", "false", "--train.precision", "fp32",
                             "--train.output_dir", str(tmp_path / value)) for value in ("false", "true"))
    plain.train()
    compiled.train()
    torch.testing.assert_close(compiled.losses["loss"], plain.losses["loss"], rtol=1e-2, atol=0)


def test_settings_that_need_each_other_are_refused(build):
    with pytest.raises(InputError, match="sync_bn: the model has no batch norm"):
        build("--train.sync_bn", "true")
    with pytest.raises(InputError, match="fsdp divides the weights .* set ema.enabled to false"):
        build("--train.strategy", "fsdp")
    with pytest.raises(InputError, match="fsdp: sharding needs several processes"):
        build("--train.strategy", "fsdp", "--ema.enabled", "false")


@pytest.mark.skipif(not can_shard_on_cpu(), reason="FSDP2 on a CPU fails inside this PyTorch")
def test_two_processes_with_divided_weights_train_what_one_trains(config_file, tmp_path, build):
    """The frozen part and gradient checkpointing are there to show that neither gets in the way of dividing."""
    options = ["--ema.enabled", "false", "--train.epochs", "1", "--log.plots", "false", "--log.tensorboard", "false",
               "--loss.normalize", "window", "--model.freeze", '["backbone.encoder.patch_embed"]',
               "--model.gradient_checkpointing", "true", "--log.every_steps", "1", "--train.precision", "fp32"]
    folder = tmp_path / "divided"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(TRAIN), "--cfg",
               config_file, "--train.output_dir", str(folder), "--train.strategy", "fsdp", "--data.batch_size", "2", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == ExitCode.DONE, done.stderr[-3000:]
    one = build(*options)
    one.train()

    written = [(path / "metrics.jsonl").read_text() for path in (folder, one.output_dir)]
    lines = [[json.loads(line) for line in text.splitlines()] for text in written]
    losses, expected = ([line["train/loss"] for line in run if "train/loss" in line] for run in lines)
    assert len(losses) == 6 and losses == pytest.approx(expected, rel=1e-2)
    assert losses[:4] == pytest.approx(expected[:4], rel=1e-3)  # then other roundings choose other queries here and there
    assert any("val/mAP_50_95" in line for line in lines[0])
    # what the divided run saved is whole: it goes on in one process
    one.load_state_dict(load_checkpoint(folder / "checkpoint.pth"))
    best = load_checkpoint(folder / "checkpoint_best_regular.pth")["model"]
    torch.testing.assert_close(dict(official_state_dict(one.unwrapped_model)), dict(best), rtol=0, atol=0)
