"""The README's Python is run as it stands there."""

import re
import sys
from pathlib import Path

import pytest
import torch

from rfdetr import build_model, load_weights
from rfdetr.training import DataConfig, DetectorConfig, RunConfig, TrainConfig, build_trainer
from rfdetr.weights import model_config_from_checkpoint, read_checkpoint

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def example(first_line: str) -> str:
    """Return the one Python example that starts like this."""
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(first_line)]
    return found.replace("batch_size=4", "batch_size=4, num_workers=0")  # starting them takes longer than all the rest


@pytest.fixture
def workplace(tmp_path, monkeypatch, write_split):
    """A working directory with a small data set where the README has one."""
    for split in ("train", "valid"):
        write_split(tmp_path / "data" / "mine" / split, 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_whole_run_from_python(workplace, capsys):
    exec(example("import logging"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1
    assert (workplace / "output" / "mine" / "checkpoint_best_total.pth").exists()


def test_a_loop_of_ones_own(workplace, capsys):
    code = example("from dataclasses import replace")
    assert not re.search(r"\b(engine|hooks|tools|train) import", code)
    names: dict = {}
    exec(code, names)
    assert re.findall(r"epoch (\d): loss [\d.]+\n", capsys.readouterr().out) == ["0", "1"]
    updates = {state["step"].item() for state in names["optimizer"].state.values()}
    assert updates == {2 * len(names["loader"])}, "every parameter was trained"
    assert names["found"][0]["boxes"].shape[1:] == (4,)
    content = read_checkpoint(workplace / "mine.pth")
    assert [row["name"] for row in content["label_map"]["classes"]] == ["bright", "dark"]
    again = build_model(model_config_from_checkpoint(content))
    assert load_weights(again, content).missing == []
    assert torch.equal(again.class_embed.weight, names["model"].class_embed.weight.cpu())


def test_the_hook_saves_the_best_of_a_class(workplace, monkeypatch):
    module = "my_hooks"
    (workplace / f"{module}.py").write_text(example("from engine import save_checkpoint"))
    monkeypatch.syspath_prepend(str(workplace))
    hook = __import__(module).BestOfClassHook("bright")
    monkeypatch.delitem(sys.modules, module)
    config = RunConfig(
        model=DetectorConfig(variant="pico", resolution=64),
        data=DataConfig(dataset_dir="data/mine", num_workers=0, batch_size=2),
        train=TrainConfig(epochs=1, device="cpu", output_dir="run"),
    )  # fmt: skip
    build_trainer(config, [hook]).train()
    assert hook.state_dict() == {"best": hook.best} and 0 <= hook.best <= 1
    assert torch.load("run/best_of_class.pth", weights_only=True)["epoch"] == 1
