"""A user's subclass of a standard hook takes its place in a run: order, arguments, files and state."""

import sys
from pathlib import Path

import pytest

import hooks
from engine import Hook, load_checkpoint
from hooks import BestCheckpointHook, CheckpointHook, EMAHook, LogHook
from rfdetr.errors import InputError
from rfdetr.training import (
    DataConfig,
    DetectorConfig,
    EarlyStoppingConfig,
    EMAConfig,
    EvalConfig,
    LogConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    build_trainer,
    train,
)

STANDARD = [name for name in hooks.__all__ if name != "Hook"]
SUBCLASSES = "import json\nimport hooks\n\n" + "\n\n".join(
    f"class My{name}(hooks.{name}):\n"
    "    def __init__(self, note: str = 'none', **arguments):\n"
    "        super().__init__(**arguments)\n"
    "        self.note = note\n"
    f"    def state_dict(self):\n        return {{**super().state_dict(), 'note': self.note}}"
    for name in STANDARD
)


@pytest.fixture
def config(data, tmp_path, monkeypatch):
    """`config(**sections)` is a small run; `my_hooks.py` with a subclass of each standard hook is importable."""
    (tmp_path / "my_hooks.py").write_text(SUBCLASSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_hooks", raising=False)

    def make(**sections) -> RunConfig:
        settings = {
            "model": DetectorConfig(variant="pico", resolution=64, num_queries=10, group_detr=2),
            "data": DataConfig(dataset_dir=data, batch_size=2, num_workers=0, multi_scale=False, augment="none"),
            "train": TrainConfig(epochs=1, device="cpu", output_dir=str(tmp_path / "run")),
            "optim": OptimConfig(schedule="plateau"),
            "eval": EvalConfig(loss=True),
            "early_stopping": EarlyStoppingConfig(enabled=True, patience=7),
            "log": LogConfig(tensorboard=False, plots=True, progress=True),
        }
        return RunConfig(**{**settings, **sections})

    return make


def spec(name: str, **init_args) -> dict:
    return {"class_path": f"my_hooks.My{name}", "init_args": init_args}


@pytest.mark.parametrize("name", STANDARD)
def test_a_subclass_takes_the_place_of_the_standard_hook(config, name, tmp_path):
    plain = [hook.name for hook in build_trainer(config()).hooks]
    trainer = build_trainer(config(hooks=(spec(name, note="mine"),)))
    assert [hook.name for hook in trainer.hooks] == plain, "the same places, under the same names"
    (mine,) = [hook for hook in trainer.hooks if isinstance(hook, getattr(hooks, name))]
    assert (type(mine).__name__, mine.note) == (f"My{name}", "mine")


def test_the_files_and_the_state_are_those_of_a_run_with_the_standard_hooks(config, tmp_path):
    names = ("BestCheckpointHook", "CheckpointHook", "EMAHook", "LogHook", "COCOEvalHook", "EarlyStopHook", "PlotsHook")
    train(config(train=TrainConfig(epochs=1, device="cpu", output_dir=str(tmp_path / "plain"))))
    train(config(hooks=tuple(spec(name, note="mine") for name in names)))
    plain, mine = (sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("plain", "run"))
    assert mine == plain
    best = load_checkpoint(tmp_path / "run" / "checkpoint_best_ema.pth")
    assert best["label_map"]["classes"][0]["name"] == "box" and best["model_config"]["num_queries"] == 10
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pth")
    assert all(state["hooks"][name]["note"] == "mine" for name in names)
    # a run with the standard hooks reads that state, and the other way round
    for folder, wanted in (("run", ()), ("plain", (spec("EMAHook"),))):
        trainer = build_trainer(config(hooks=wanted), resumed=True)
        trainer.load_state_dict(load_checkpoint(tmp_path / folder / "checkpoint.pth"))
        (average,) = [hook for hook in trainer.hooks if isinstance(hook, EMAHook)]
        assert average.num_updates == state["hooks"]["EMAHook"]["num_updates"]


def test_its_own_arguments_win_over_those_of_the_configuration(config):
    settings = config(hooks=(spec("EMAHook", decay=0.25),), ema=EMAConfig(decay=0.5, tau=3.0))
    (average,) = [hook for hook in build_trainer(settings).hooks if isinstance(hook, EMAHook)]
    assert (average.decay, average.tau) == (0.25, 3.0)


def test_a_subclass_is_used_also_where_the_standard_hook_is_switched_off(config):
    settings = config(hooks=(spec("EMAHook"), spec("EarlyStopHook")), ema=EMAConfig(enabled=False),
                      early_stopping=EarlyStoppingConfig(enabled=False))
    names = [type(hook).__name__ for hook in build_trainer(settings).hooks]
    assert names.index("MyEMAHook") < names.index("MyEarlyStopHook") < names.index("BestCheckpointHook")


class OwnBest(BestCheckpointHook):
    """Made by its user, before anybody knew the run."""


class Watching(Hook):
    def __init__(self) -> None:
        self.steps = 0

    def after_step(self, trainer) -> None:
        self.steps += 1


def test_hooks_made_in_python_are_completed_and_stay_the_same_objects(config, tmp_path):
    best, watching = OwnBest(skip_first_epochs=0), Watching()
    results = train(config(), [best, watching])
    assert results["status"] == "done" and watching.steps == 5
    assert best.best["regular"] >= 0
    content = load_checkpoint(tmp_path / "run" / "checkpoint_best_regular.pth")
    assert content["label_map"]["classes"][0]["name"] == "box", "the run gave it what makes the payload"


def test_a_class_is_made_by_the_run(config):
    trainer = build_trainer(config(), [OwnBest, Watching])
    kinds = [type(hook) for hook in trainer.hooks]
    assert OwnBest in kinds and BestCheckpointHook not in kinds
    assert kinds.index(Watching) == kinds.index(LogHook) - 1 < kinds.index(CheckpointHook), "what it logs is written, and saved"


def test_what_cannot_take_a_place_is_refused(config):
    class Closed(BestCheckpointHook):
        def __init__(self, title: str = "") -> None:
            super().__init__()

    with pytest.raises(InputError, match="Closed takes the place of BestCheckpointHook, but its __init__ does not take payload"):
        build_trainer(config(), [Closed()])
    with pytest.raises(InputError, match="OwnBest and OwnBest both take the place of BestCheckpointHook"):
        build_trainer(config(), [OwnBest(), OwnBest])
    with pytest.raises(InputError, match="more than one is called Watching"):
        build_trainer(config(), [Watching(), Watching()])
    with pytest.raises(InputError, match="3 is neither a hook nor a class of hooks"):
        build_trainer(config(), [3])


def test_a_subclass_that_decides_itself_is_said(config, caplog):
    class Patient(hooks.EarlyStopHook):
        def __init__(self) -> None:
            super().__init__(patience=99)

    (hook,) = [hook for hook in build_trainer(config(), [Patient]).hooks if isinstance(hook, Patient)]
    assert hook.patience == 99
    assert "Patient takes the place of EarlyStopHook and decides about patience" in caplog.text


def test_a_run_that_is_there_is_not_overwritten_from_python_either(config, tmp_path):
    train(config())
    before = {path.name: path.stat().st_mtime_ns for path in Path(tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="already holds a run"):
        build_trainer(config()).train()
    with pytest.raises(InputError, match="already holds a run"):
        train(config())
    assert {path.name: path.stat().st_mtime_ns for path in Path(tmp_path / "run").iterdir()} == before
    assert train(config(), overwrite=True)["status"] == "done"
