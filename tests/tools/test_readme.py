"""What the README and its two further pages show is run as it stands there: their Python, their hooks and their commands."""

import re
import shlex
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rfdetr import build_model, load_weights
from rfdetr.training import DataConfig, DetectorConfig, LogConfig, RunConfig, TrainConfig, benchmark_work, train
from rfdetr.training.benchmark import Side
from rfdetr.training.commands import COMMANDS
from rfdetr.video import VideoWriter
from rfdetr.weights import model_config_from_checkpoint, read_checkpoint

PAGES = ("README.md", "tools/GUIDE.md", "hooks/README.md")
README = "\n".join((Path(__file__).parents[2] / page).read_text(encoding="utf-8") for page in PAGES)
TOOLS = {"train": "fit", "eval": "validate", "predict": "predict", "export": "export", "check_dataset": "check",
         "pack_shards": "pack", "benchmark": "benchmark", "convert": "convert", "report": "report"}  # fmt: skip
SMALL = {
    "model": {"variant": "pico", "resolution": 64, "num_queries": 10, "group_detr": 2},
    "data": {"dataset_dir": "data/mine", "batch_size": 2, "num_workers": 0, "multi_scale": False},
    "train": {"epochs": 1, "device": "cpu", "output_dir": "output/a"}, "log": {"plots": False, "tensorboard": False},
}  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def example(word: str) -> str:
    """Return the one Python example with this word in it; starting workers takes longer than all the rest."""
    (found,) = [block for block in blocks("python") if re.search(rf"\b{word}\b", block)]
    return found.replace("batch_size=4", "batch_size=4, num_workers=0")


@pytest.fixture
def workplace(tmp_path, monkeypatch, write_split):
    """A working directory with what the README takes for granted."""
    for split, num_images in (("train", 4), ("valid", 5), ("test", 6)):  # other pictures in each
        write_split(tmp_path / "data" / "mine" / split, num_images)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


def test_a_whole_run_from_python(workplace, capsys):
    exec(example("RunConfig, TrainConfig, evaluate"), {})
    status, value, m_ap, *_ = capsys.readouterr().out.split()
    assert status == "done" and 0 <= float(value) <= 1 and 0 <= float(m_ap) <= 1
    assert (workplace / "output" / "mine" / "checkpoint_best_total.pth").exists()


def test_a_trained_model_is_used(workplace, capsys):
    settings = {**SMALL, "train": {**SMALL["train"], "output_dir": "output/mine"}}
    (workplace / "run.yaml").write_text(yaml.safe_dump(settings))
    assert COMMANDS["fit"](["--cfg", "run.yaml"]) == 0
    capsys.readouterr()
    exec(example("detector = rfdetr.load"), {})
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if ".png" in line] == [f"{number}.png" for number in range(5)]
    assert Image.open(workplace / "found.png").size == (64, 64)


@pytest.mark.parametrize(("word", "folder"), [("Squares", "squares"), ("SmallFirst", "a"), ("SGD", "a")])
def test_parts_of_ones_own(workplace, word, folder):
    exec(example(word), {"__name__": "__main__"})
    assert (workplace / "output" / folder / "results.json").exists()


def test_a_loop_of_ones_own(workplace, capsys):
    code = example("zero_grad")
    assert not re.search(r"\b(engine|hooks|tools|training) import", code)
    names: dict = {}
    exec(code, names)
    assert re.findall(r"epoch (\d): loss [\d.]+\n", capsys.readouterr().out) == ["0", "1"]
    updates = {state["step"].item() for state in names["optimizer"].state.values()}
    assert updates == {2 * len(names["loader"])}, "every parameter was trained"
    assert names["found"].boxes.shape[1:] == (4,)
    content = read_checkpoint(workplace / "mine.pth")
    assert [row["name"] for row in content["label_map"]["classes"]] == ["bright", "dark"]
    again = build_model(model_config_from_checkpoint(content))
    assert load_weights(again, content).missing == []
    assert torch.equal(again.class_embed.weight, names["model"].class_embed.weight.cpu())


# --- hooks ---


@pytest.fixture
def run_with(workplace, monkeypatch):
    """Train for some epochs with one of the README's hooks, named in the configuration as the README says."""

    def start(name: str, epochs: int = 2, **init_args) -> Path:
        (workplace / "my_hooks.py").write_text(example(f"class {name}"))
        monkeypatch.delitem(sys.modules, "my_hooks", raising=False)
        config = RunConfig(
            model=DetectorConfig(variant="pico", resolution=64, num_queries=10, group_detr=2),
            data=DataConfig(dataset_dir="data/mine", num_workers=0, batch_size=2, augment="none"),
            train=TrainConfig(epochs=epochs, device="cpu", output_dir=name), log=LogConfig(plots=False, tensorboard=False),
            hooks=({"class_path": f"my_hooks.{name}", "init_args": init_args},),
        )
        assert train(config)["status"] == "done"
        return workplace / name

    return start


def test_gradient_norms_are_in_tensorboard(run_with):
    (settings,) = [yaml.safe_load(block) for block in blocks("yaml") if "GradientNormsHook" in block]
    assert settings == {"hooks": [{"class_path": "my_hooks.GradientNormsHook", "init_args": {"every_steps": 50}}]}
    events = EventAccumulator(str(run_with("GradientNormsHook", every_steps=5)))
    events.Reload()
    steps = [(event.step, event.value > 0) for event in events.Scalars("grad_norm/backbone")]
    assert steps == [(0, True), (5, True)]
    assert "grad_norm/transformer" in events.Tags()["scalars"]


def test_a_metric_of_ones_own_stops_the_run(run_with):
    folder = run_with("StopWhenCountedHook", epochs=3, share=1.0, threshold=0.0)
    assert '"epochs": 3' in (folder / "results.json").read_text(), "10 detections an image, one object"
    folder = folder.rename(folder.with_name("never"))
    results = (run_with("StopWhenCountedHook", epochs=3, share=0.0) / "results.json").read_text()
    assert '"epochs": 1' in results and "counted right on" in results


def test_the_best_evaluations_are_kept(run_with):
    folder = run_with("KeepTopHook", epochs=4, top=2)
    kept = sorted(folder.glob("checkpoint_epoch_*.pth"))
    assert len(kept) == 2 and (folder / "checkpoint_best_total.pth").exists()
    content = read_checkpoint(kept[0])
    assert content["label_map"]["classes"][0]["name"] == "bright"
    assert len(torch.load(folder / "checkpoint.pth", weights_only=True)["hooks"]["BestCheckpointHook"]["kept"]) == 2


def test_a_part_is_trained_from_some_epoch_on(run_with):
    folder = run_with("UnfreezeHook", epochs=1, part="backbone.encoder")
    frozen = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert all(state["step"] > 0 for state in frozen["optimizer"]["state"].values())
    assert 0 < len(frozen["optimizer"]["state"]) < sum(len(group["params"]) for group in frozen["optimizer"]["param_groups"])
    folder.rename(folder.with_name("one"))
    trained = torch.load(run_with("UnfreezeHook", epochs=2) / "checkpoint.pth", weights_only=True)
    assert len(trained["optimizer"]["state"]) > len(frozen["optimizer"]["state"])
    name = "backbone.encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(trained["model"][name], frozen["model"][name])


def test_validation_pictures_are_written(run_with):
    folder = run_with("PicturesHook", epochs=1, num_images=3)
    names = [f"{name}_{number}.png" for name in ("ema", "regular") for number in range(3)]
    assert sorted(path.name for path in folder.glob("*.png")) == names


# --- commands ---


def commands() -> list[str]:
    """Every call of a tool, of torchrun with one, and of `rfdetr` in the README's shell examples."""
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if re.match(r"(python|torchrun) .*tools/\w+\.py|rfdetr ", part)]


def as_words(command: str) -> tuple[str, list[str]]:
    """Return which command it is, and its words; paths that stand for the reader's own become those of the test."""
    for theirs, ours in {
        "/path/to/data": "data/mine", "/path/to/shards": "shards", "s3://bucket/shards": "shards",
        "output/quickstart/": "output/a/", "picture.jpg": "data/mine/valid/0.png", "frames/": "data/mine/valid",
        "--checkpoint FILE": "--checkpoint output/a/checkpoint_best_total.pth", "/path/to/venv/bin/python": sys.executable,
    }.items():  # fmt: skip
        command = command.replace(theirs, ours)
    words = shlex.split(command)
    if words[0] == "rfdetr":
        return words[1], words[2:]
    place = next(index for index, word in enumerate(words) if word.startswith("tools/"))
    return TOOLS[Path(words[place]).stem], words[place + 1 :]


def measured(side: Side, job: str, settings: dict) -> dict:
    """Stand in for the processes that a benchmark starts; tests/tools/test_benchmark.py has real ones."""
    return {**benchmark_work.main("facts", settings), **dict.fromkeys(
        ("seconds", "process_seconds", "megabytes", "count", "flop", "peak_flop_per_s", "product_size", "steps", "step_seconds",
         "data_wait", "train_images", "evaluation_seconds", "evaluation_images"), 1)}


def test_every_command_runs(workplace, monkeypatch):
    """In the order of the README, in one folder; trainings are cut short by settings behind the README's own."""
    clip = VideoWriter(workplace / "clip.mp4", Fraction(10))
    clip.write(Image.new("RGB", (64, 48), "green"), 0.0)
    clip.close()
    assert len(commands()) > 15
    (workplace / "tools").symlink_to(Path(__file__).parents[2] / "tools")
    monkeypatch.setattr(Side, "measure", measured)
    short = ["--model.variant=pico", "--model.resolution=64", "--model.num_queries=10", "--model.group_detr=2",
             "--train.epochs=1", "--train.device=cpu", "--data.num_workers=0", "--log.plots=false"]
    assert COMMANDS["fit"](["--cfg", "run.yaml"]) == 0
    for number, command in enumerate(commands()):
        name, words = as_words(command)
        if name == "fit":
            words += short + ["--model.weights=null"] * ("finetune" in command)
            words += [] if "--resume" in words else ["--overwrite"]
            words += ["--data.dataset_dir=data/mine", "--data.format=auto"] if "quickstart" in command else []
        if name == "predict":
            words += ["--overwrite"]
        if {"--help", "--print_config"} & set(words):
            with pytest.raises(SystemExit):
                COMMANDS[name](words)
            continue
        assert COMMANDS[name](words) == 0, f"{number}: {command}"
