"""Hostile configurations, and settings and names out of files: refused in one message, bounded, and nothing of them is run."""

import random
import sys
import time

import pytest
import torch
import yaml

from rfdetr.data.transforms import make_transforms
from rfdetr.errors import InputError, printable
from rfdetr.training import RunConfig
from rfdetr.training.command_line import run_tool
from rfdetr.training.evaluation import config_of, logger
from rfdetr.training.parsing import plain_dict

BILLION = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize("text", [
    BILLION,
    "hooks: &loop [*loop]\n",
    "train: &loop {seed: *loop}\n",
    "train: {seed: " + "9" * 3000 + "}\n",
    "train: {seed: " + "9" * 100_000 + "}\n",
    "data: {augment: " + "[" * 50 + "]" * 50 + "}\n",
    "data: {augment: " + "[" * 100_000 + "]" * 100_000 + "}\n",
    "# " + "x" * 2**20 + "\n",
    "train: {epochs: 1}\ntrain: {seed: 1}\n", "train: {epochs: 1, epochs: 2}\n", "train: {output_dir: ''}\n",
    "train: null\n", "train: {epochs: null}\n", "train: {epochs: [1]}\n", "train: {max_hours: .nan}\n", "hooks: {a: 1}\n",
    "- 1\n", "",
    "train: {seed: !!python/object/apply:os.system ['echo run >&2']}\n",
    "data: {dataset_dir: 2020-13-45}\n", "train: {1: 2}\n", "? [a]\n: 1\n", "\x00",
    "model: {variant: \"\\e[31mred\"}\n",
], ids=range(24))
def test_a_hostile_file_is_refused_at_once(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(InputError) as refused:
        RunConfig.from_yaml(tmp_path / "run.yaml")
    assert time.monotonic() - started < 10 and len(str(refused.value)) < 5000


def test_anchors_in_an_ordinary_measure_are_read(tmp_path):
    (tmp_path / "run.yaml").write_text("optim: {lr: &rate 1.0e-3, lr_encoder: *rate}\n")
    assert RunConfig.from_yaml(tmp_path / "run.yaml").optim.lr_encoder == 1e-3


ODD = (None, True, -1, 10**18, 2**63, 1e308, float("nan"), float("inf"), "", "x", "\x1b[31m", "../..", "s3://a", [], {}, [1],
       {"a": 1}, [[[]]], "9" * 3000, [None], {"class_path": "os.system"},
       [{"class_path": "os.system", "init_args": {"command": "false"}}],
       "2020-01-01", "é", "null", 3.5, "1e3")


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_mutated_configurations_are_refused_or_read(tmp_path, count):
    generator, path = random.Random(count), tmp_path / "run.yaml"
    for _ in range(count):
        content = plain_dict(RunConfig())
        section = generator.choice([name for name, values in content.items() if values])
        content[section][generator.choice(list(content[section]))] = generator.choice(ODD)
        place = generator.choice([section, section, generator.choice(list(content))])
        content[place] = generator.choice([content[place], *ODD])
        written = bytearray(yaml.safe_dump(content).encode())
        for _ in range(generator.choice([0, 0, 3])):
            written[generator.randrange(len(written))] = generator.randrange(256)
        path.write_bytes(written)
        try:
            RunConfig.from_yaml(path)
        except InputError:
            pass


@pytest.mark.parametrize("class_path", ["os.system", "subprocess.Popen", "builtins.eval", "antigravity.webbrowser",
                                        "functools.partial", "torch.load", "torch.hub.load",
                                        "torch.utils.cpp_extension.load_inline", "numpy.fromfile",
                                        "rfdetr.errors.InputError", "torchvision.transforms.v2.functional.resize"])
def test_what_is_no_transform_is_not_called(class_path):
    with pytest.raises(InputError, match=r"data\.augment: .* (no transforms|not a class of transforms)"):
        make_transforms([{"class_path": class_path, "init_args": {}}])
    assert "antigravity" not in sys.modules


def test_ones_own_transforms_may_be_modules_or_have_call(tmp_path, monkeypatch):
    (tmp_path / "own_transforms.py").write_text("import torch\n\nclass One(torch.nn.Module):\n    pass\n\n"
                                                "class Other:\n    def __call__(self, sample):\n        return sample\n")
    monkeypatch.syspath_prepend(tmp_path)
    make_transforms([{"class_path": "own_transforms.One"}, {"class_path": "own_transforms.Other"}])


@pytest.fixture
def warnings(caplog):
    caplog.set_level("WARNING", logger=logger.name)
    return caplog


@pytest.mark.parametrize("data", [
    {"dataset_dir": "reference://x"}, {"dataset_dir": "s3://bucket/x"}, {"dataset_dir": "file:///etc"},
    {"dataset_dir": "simplecache::zip://x"},
    {"dataset_dir": "data", "splits": {"val": {"annotations": "../../a.json", "images": "x"}}},
    {"dataset_dir": "data", "splits": {"val": {"annotations": "a.json", "images": "/etc"}}},
    {"dataset_dir": "data", "splits": {"val": {"annotations": "a.json", "images": "s3://x"}}},
])
def test_places_elsewhere_are_not_taken_from_a_checkpoint(warnings, data):
    config = config_of({"args": {"data": data}}, {})
    (name, value) = list(data.items())[-1]
    assert getattr(config.data, name) is None
    assert f"data.{name}: {value} is not taken from a checkpoint" in warnings.text
    given = {"dataset_dir": "s3://mine/data"}
    assert config_of({"args": {"data": data}}, {"data": given}).data.dataset_dir == given["dataset_dir"]


def test_settings_of_a_checkpoint_make_and_import_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = {"data": {"dataset_dir": "data", "format": "shapes", "augment": [{"class_path": "os.system"}]},
            "hooks": [{"class_path": "os.x"}]}
    config = config_of({"args": args}, {})
    assert (config.data.dataset_dir, config.data.format, config.data.augment, config.hooks) == ("data", "auto", "default", ())


@pytest.mark.parametrize("args", [
    None, [], 3, {"data": 3}, {"data": {"dataset_dir": 5}}, {"data": {"splits": [1]}}, {"train": {"epochs": "x"}},
    {"model": {"variant": torch.zeros(3)}}, {"loss": {"cls": {"a": []}}},
])
def test_odd_settings_of_a_checkpoint_are_refused_or_left_out(args):
    try:
        config_of({"args": args}, {})
    except InputError:
        pass


HOSTILE = "cat\x1b]0;title\x07\x1b[2J\x9b31m\r\u202edog\x7f"


def test_control_characters_reach_no_terminal(capfd, monkeypatch):
    monkeypatch.setattr("logging.root.handlers", [])

    def main():
        logger.warning("class %s", HOSTILE)
        raise InputError(f"no such class: {HOSTILE}")

    with pytest.raises(SystemExit) as ended:
        run_tool(main)
    shown = capfd.readouterr().err
    assert ended.value.code == 2 and shown.count("cat\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\r\\u202edog\\x7f") == 2
    assert all(character == "\n" or character.isprintable() for character in shown)


def test_texts_are_bounded():
    assert len(printable("x" * 10**7)) < 60_000
    assert printable("Zürich\t猫\n") == "Zürich\t猫\n"
