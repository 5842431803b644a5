"""From a YAML file and overrides to a RunConfig; whatever is wrong becomes one message."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tqdm import tqdm

from engine import CheckpointError, Hook
from rfdetr.errors import InputError
from rfdetr.training.command_line import PACKAGES, ExitCode, run_tool, shown_log
from rfdetr.training.commands import main
from rfdetr.training.config import RunConfig
from rfdetr.training.parsing import make_config, make_parser, parse, plain_dict
from rfdetr.training.standard_hooks import user_wishes

CONFIGS = Path(__file__).parents[3] / "tools" / "configs"

HOOK_FILE = """
from hooks import Hook

class {name}(Hook):
    def __init__(self, every_steps: int = 1) -> None:
        self.every_steps = every_steps

    def {point}(self, trainer) -> None:
        pass
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file into a folder that the import path forgets after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write_file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


def read(*argv: str):
    parser = make_parser(RunConfig, "test")
    return make_config(RunConfig, parser, parse(RunConfig, parser, argv))


def test_without_arguments_everything_has_its_default():
    assert read() == RunConfig()


def test_overrides_go_over_the_file_and_the_file_over_the_defaults(write):
    path = write("run.yaml", "optim: {lr: 1e-3, weight_decay: 0}\nmodel: {variant: pico, resolution: [128, 256]}\n")
    config = read("--cfg", path, "--optim.weight_decay", "0.5", "--train.epochs=3")
    assert (config.optim.lr, config.optim.weight_decay, config.train.epochs) == (1e-3, 0.5, 3)
    assert config.model.resolution == (128, 256)


def test_lists_and_dicts_are_settings_too(write):
    flip = {"class_path": "torchvision.transforms.v2.RandomHorizontalFlip", "init_args": {"p": 0.5}}
    path = write("run.yaml", yaml.safe_dump({"data": {"augment": [flip]}, "optim": {"optimizer_args": {"betas": [0.9, 0.99]}}}))
    config = read("--cfg", path)
    assert config.data.augment == [flip]
    assert config.optim.optimizer_args == {"betas": [0.9, 0.99]}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_that_come_along_are_valid(path):
    read("--cfg", str(path))


def test_the_plain_dict_gives_the_same_configuration_again(write):
    write("plain_hooks.py", HOOK_FILE.format(name="PlainHook", point="after_step"))
    path = write("run.yaml", "model: {resolution: [384, 448]}\nhooks: [{class_path: plain_hooks.PlainHook}]\n")
    config = read("--cfg", path)
    again = read("--cfg", write("again.yaml", yaml.safe_dump(plain_dict(config))))
    assert again == config


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("train: {epoch: 3}", [], r"run\.yaml: train\.epoch: there is no such key; did you mean train\.epochs\?"),
        ("train: {lr: 3}", [], r"train\.lr: there is no such key; did you mean optim\.lr\?"),
        ("trane: {epochs: 3}", [], r"trane: there is no such section; did you mean train\?"),
        ("epochs: 3", [], r"epochs: there is no such section; did you mean train\.epochs\?"),
        ("train: 3", [], r"train: has to hold keys and values, it holds 3"),
        ("- 3", [], r"run\.yaml: has to hold sections .* it holds list"),
        ("train: {epochs: 3\nmodel: 4", [], r"run\.yaml: not readable as YAML: .* line 2"),
        ("train: {epochs: many}", [], r"^train\.epochs: Expected a int\. Got value: many"),
        ("data: {batch_size: many}", [], r"^data\.batch_size: Expected one of int, Literal\['auto'\]\. Got value: many$"),
        ("data: {classes: cat}", [], r"^data\.classes: Expected one of tuple\[str, \.\.\.\], null\. Got value: cat$"),
        ("train: {epochs: 2.5}", [], r"^train\.epochs: .*2\.5"),
        ("train: {epochs: 0}", [], r"^train\.epochs: 0 is not possible"),
        ("loss: {cls: quality}", [], r"^loss\.cls: .*ia_bce.*quality"),
        ("model: {resolution: 100}", [], r"nearest valid side is 96"),
        ("model: {variant: nano}", ["--model.variant", "nona"], r"model\.variant: 'nona'"),
        ("hooks: {class_path: hooks.Hook}", [], r"^hooks: .*list"),
        ("train: {}", ["--train.epoch", "3"], r"--train\.epoch: there is no such option; did you mean --train\.epochs\?"),
        ("train: {}", ["--train.epochs", "x"], r"^train\.epochs: .*x"),
        ("train: {}", ["--train.epochs"], r"--train\.epochs: expected one argument"),
        ("train: {}", ["stray"], r"stray"),
    ],
)
def test_bad_input_is_one_message(write, text, argv, message):
    with pytest.raises(InputError, match=message) as error:
        read("--cfg", write("run.yaml", text), *argv)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"nowhere\.yaml: there is no such file"):
        read("--cfg", "nowhere.yaml")


def hook_of(path: str) -> Hook:
    (wish,) = user_wishes(read("--cfg", path).hooks, [])
    return wish.make({})


def test_a_hook_is_found_beside_the_configuration(write):
    write("beside_hooks.py", HOOK_FILE.format(name="MyHook", point="after_step"))
    path = write("run.yaml", "hooks: [{class_path: beside_hooks.MyHook, init_args: {every_steps: 7}}]")
    hook = hook_of(path)
    assert (hook.name, hook.every_steps) == ("MyHook", 7)
    assert read("--cfg", path).hooks == ({"class_path": "beside_hooks.MyHook", "init_args": {"every_steps": 7}},)


@pytest.mark.parametrize(("spec", "message"), [
    ("{class_path: not_there.MyHook}", r"^hooks: cannot import 'not_there.MyHook': No module named 'not_there'"),
    ("{class_path: engine.Trainer}", r"^hooks: engine\.Trainer is not a subclass of Hook"),
    ("{class_path: hooks.Hook, init_args: {a: 1}}", r"^hooks: Hook: .*'?a'?"),
    ("{class_path: hooks.EMAHook, init_args: {decay: much}}", r"^hooks: EMAHook: .*decay.*much"),
    ("{class_path: hooks.EMAHook, init_args: {decay: 2.0}}", r"^hooks: EMAHook: .*decay is between 0 and 1"),
    ("{init_args: {a: 1}}", r"^hooks: .* does not name a hook; give class_path"),
    ("{class_path: hooks.EMAHook, args: {a: 1}}", r"^hooks: .* does not name a hook"),
])  # fmt: skip
def test_hooks_that_cannot_be_made_are_one_message(write, spec, message):
    with pytest.raises(InputError, match=message) as error:
        hook_of(write("run.yaml", f"hooks: [{spec}]"))
    assert "\n" not in str(error.value)


def test_a_misspelled_hook_point_is_refused(write):
    write("misspelled_hooks.py", HOOK_FILE.format(name="MyHook", point="after_stepp"))
    with pytest.raises(InputError, match="after_stepp is not a hook point; did you mean 'after_step'"):
        hook_of(write("run.yaml", "hooks: [{class_path: misspelled_hooks.MyHook}]"))


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("bad"), 2), (CheckpointError("bad"), 2), (FloatingPointError("bad"), 4)],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_exit_codes(error, code, capsys, monkeypatch):
    def fail():
        raise error

    waits = []
    monkeypatch.setattr("rfdetr.training.command_line.time.sleep", waits.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop:
            run_tool(fail)
        assert stop.value.code == code
        assert capsys.readouterr().err == "error: bad\n"
    assert len(waits) == 1, "a process that is not the first leaves it to the first to report what is wrong for both"


def test_ctrl_c_is_no_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_tool(interrupted)
    assert stop.value.code == 130 and capsys.readouterr().err == "error: interrupted\n"


def test_a_finished_tool_exits_with_its_code():
    with pytest.raises(SystemExit) as stop:
        run_tool(lambda: ExitCode.INTERRUPTED)
    assert stop.value.code == 3


def test_torch_without_its_torchvision_is_one_message(write, tmp_path):
    write("torch.py", "")
    write("torchvision.py", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    tool = Path(__file__).parents[3] / "tools" / "train.py"
    done = subprocess.run([sys.executable, str(tool)], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch ") and "matching pair" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "argv", [["fit", "--train.epochz=3"], ["fit", "--train.epochs=none"], ["fit", "--help"], ["fit", "--print_config"],
             ["validate", "--help"], ["predict"], ["validate", "--checkpoint=a.pth", "--cfg=missing.yaml"],
             ["export"], ["export", "--checkpoint=a.pth", "--opset=9"],
             ["benchmark", "--rows=stop"], ["benchmark", "--against=/nowhere/python"], ["migrate", "nowhere.pth"],
             ["report", "/nowhere"], ["fitt"], []], ids=" ".join
)
def test_help_and_bad_input_do_not_wait_for_torch(argv):
    code = ("import sys\nfrom rfdetr.training.commands import main\ntry:\n    main()\n"
            "except SystemExit as stop:\n    sys.exit('torch was loaded' if 'torch' in sys.modules else stop.code)")
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 2) and "torch was loaded" not in done.stderr, done.stderr[-500:]


@pytest.mark.parametrize("word, hint", [("fitt", "did you mean fit?"), ("valdate", "did you mean validate?"),
                                        ("--version", "there are: fit, validate, test, ")])
def test_a_command_that_there_is_not_gets_the_nearest_one(word, hint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([word, "--train.epochs", "2"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {word}: there is no such command; {hint}")


@pytest.mark.parametrize("rank, shown", [("0", ["told", "warned", "own", "failed"]), ("1", ["own", "failed"])])
def test_each_line_is_shown_once_a_run_and_above_the_bars(monkeypatch, capsys, rank, shown):
    monkeypatch.setenv("RANK", rank)
    for name in ("", *PACKAGES):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    logger = logging.getLogger("hooks.some")
    with shown_log(), tqdm(total=3, mininterval=0) as bar:
        bar.update(1)
        logger.info("told"), logger.warning("warned"), logger.warning("own", extra={"of_rank": True}), logger.error("failed")
    lines = [line.split("\r")[-1].split() for line in capsys.readouterr().err.splitlines()]
    assert [line[2] for line in lines if len(line) == 3] == shown
