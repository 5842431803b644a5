"""Best weights against the goldens where decision 8 agrees with them, and where it does not."""

import math

import pytest
import torch
from stub_trainer import Constant, StubTrainer, golden, through_a_file
from toy import make_trainer

from engine import load_checkpoint
from hooks import BestCheckpointHook, CheckpointHook, Hook

REGULAR, EMA = "val/mAP_50_95", "val/ema_mAP_50_95"
CASES = golden("best_model")["cases"]
# Decision 8 differs from the golden: values that are not finite are never best (the golden stores NaN as -inf and saves the
# first), the EMA's first value is saved even when it is 0, and a track that was never written gets no file at the end.
DIFFERENT = [case for case in CASES if any(v is not None and not v > 0 for v in case["regular"] + case["ema"])]
# the golden's option to smooth is not ours
SAME = [case for case in CASES if case not in DIFFERENT and not case["smooth_alpha"]]


def evaluated(trainer, hook, regular, ema):
    """Finish an epoch as in the golden: the live weight is the epoch's index, the average has decay 0.5."""
    trainer.unwrapped_model.set(float(trainer.epoch))
    if "ema" in trainer.eval_models and trainer.epoch:
        trainer.eval_models["ema"].set((trainer.eval_models["ema"].weight.item() + trainer.epoch) / 2)
    trainer.epoch += 1
    hook.after_eval(trainer, {name: value for name, value in ((REGULAR, regular), (EMA, ema)) if value is not None})


def started(tmp_path, with_ema=True):
    trainer = StubTrainer(tmp_path, Constant())
    if with_ema:
        trainer.eval_models["ema"] = Constant()
    return trainer


def files(folder):
    return {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.pth")}


@pytest.mark.parametrize("case", SAME)
def test_goldens(case, tmp_path):
    hook, trainer = BestCheckpointHook(skip_first_epochs=case["skip_best_epochs"]), started(tmp_path, case["track_ema"])
    regular = case["regular"] if case["evaluates_base_model"] else [None] * len(case["ema"])
    for expected, *values in zip(case["after_epoch"], regular, case["ema"]):
        evaluated(trainer, hook, *values)
        found = {name: (file["epoch"], file["model"]["weight"].item()) for name, file in files(tmp_path).items()}
        # decision 29: `epoch` is the number of finished epochs
        assert found == {name: (file["epoch"] + 1, file["weight"]) for name, file in expected["files"].items()}
    hook.after_train(trainer)
    total = files(tmp_path).get("checkpoint_best_total.pth")
    expected = case["final_files"].get("checkpoint_best_total.pth")
    assert (total and total["model"]["weight"].item()) == (expected and expected["weight"])


def test_there_are_goldens_of_both_kinds():
    assert len(SAME) >= 6 and len(DIFFERENT) >= 4


def run(tmp_path, regular, ema):
    hook, trainer = BestCheckpointHook(), started(tmp_path)
    for values in zip(regular, ema):
        evaluated(trainer, hook, *values)
    hook.after_train(trainer)
    return {name.removeprefix("checkpoint_best_"): file["epoch"] for name, file in files(tmp_path).items()}


def test_zero_and_minus_one_are_values(tmp_path):
    assert run(tmp_path, [0.0, 0.0], [-1.0, 0.0]) == {"regular.pth": 1, "ema.pth": 2, "total.pth": 1}


def test_values_that_are_not_finite_are_never_best(tmp_path):
    assert run(tmp_path, [math.nan, 0.1, math.inf], [math.nan] * 3) == {"regular.pth": 2, "total.pth": 2}


def test_no_evaluation_no_files(tmp_path):
    assert run(tmp_path, [math.nan], [math.nan]) == {}


def test_a_file_of_an_earlier_run_is_not_the_winner(tmp_path):
    torch.save({"model": {}, "epoch": 77}, tmp_path / "checkpoint_best_ema.pth")
    assert run(tmp_path, [0.1], [None])["total.pth"] == 1


def test_content_and_payload(tmp_path):
    hook = BestCheckpointHook(lambda model: {"model": {"w": model.weight}, "args": {"lr": 1.0}}, monitor_regular="val/F1")
    trainer = started(tmp_path)
    trainer.epoch = 3
    hook.after_eval(trainer, {"val/F1": 0.5, REGULAR: 0.1})
    content = load_checkpoint(tmp_path / "checkpoint_best_regular.pth")
    assert content["args"] == {"lr": 1.0} and content["epoch"] == 3 and content["metrics"] == {"val/F1": 0.5, REGULAR: 0.1}
    default = started(tmp_path / "new")
    BestCheckpointHook().after_eval(default, {REGULAR: 0.1})
    assert set(load_checkpoint(tmp_path / "new" / "checkpoint_best_regular.pth")) == {"model", "args", "epoch", "metrics"}


def test_best_values_survive_a_resume(tmp_path):
    first, trainer = BestCheckpointHook(), started(tmp_path)
    evaluated(trainer, first, 0.5, 0.6)
    second = BestCheckpointHook()
    second.load_state_dict(through_a_file(first.state_dict()))
    evaluated(trainer, second, 0.5, 0.59)
    second.after_train(trainer)
    assert {file["epoch"] for file in files(tmp_path).values()} == {1}
    assert (tmp_path / "checkpoint_best_total.pth").read_bytes() == (tmp_path / "checkpoint_best_ema.pth").read_bytes()


def test_a_metric_that_nobody_publishes_is_reported_once_with_those_that_are(tmp_path, caplog):
    hook, trainer = BestCheckpointHook(monitor_regular="val/mAP50", monitor_ema="val/ema_mAP50"), started(tmp_path)
    for value in (0.1, 0.2):
        evaluated(trainer, hook, value, value)
    assert not files(tmp_path)
    assert len(caplog.records) == 1
    for word in ("val/mAP50", "Did you mean val/mAP_50_95?", EMA):
        assert word in caplog.text


def test_its_files_and_those_of_the_saver_belong_to_one_hook(tmp_path):
    class Rival(Hook):
        writes = ("checkpoint_best_ema.pth",)

    class Copycat(CheckpointHook):
        name = "Copycat"

    with pytest.raises(ValueError, match="BestCheckpointHook and Rival .*checkpoint_best_ema.pth"):
        make_trainer(tmp_path, hooks=[BestCheckpointHook(), Rival()])
    with pytest.raises(ValueError, match="CheckpointHook and Copycat .*checkpoint.pth"):
        make_trainer(tmp_path, hooks=[CheckpointHook(), Copycat()])


def test_the_best_of_another_metric_does_not_count(tmp_path, caplog):
    hook, trainer = BestCheckpointHook(), started(tmp_path, with_ema=False)
    evaluated(trainer, hook, 0.9, None)
    resumed = BestCheckpointHook(monitor_regular="val/F1", monitor_ema="val/ema_F1")
    resumed.load_state_dict(through_a_file(hook.state_dict()))
    assert resumed.best["regular"] == -math.inf and "says nothing of val/F1" in caplog.text
    same = BestCheckpointHook()
    same.load_state_dict(through_a_file(hook.state_dict()))
    same.before_train(trainer)
    assert same.best["regular"] == 0.9


@pytest.mark.parametrize("left", ["missing", "damaged", "worse", "later"])
def test_a_best_value_needs_its_file(tmp_path, caplog, left):
    hook, trainer = BestCheckpointHook(), started(tmp_path, with_ema=False)
    evaluated(trainer, hook, 0.5, None)
    state, path = through_a_file(hook.state_dict()), tmp_path / "checkpoint_best_regular.pth"
    if left == "later":  # the run was killed before the checkpoint that knows of it
        evaluated(trainer, hook, 0.6, None)
    elif left == "worse":
        torch.save({**load_checkpoint(path), "metrics": {REGULAR: 0.1}}, path)
    else:
        path.write_bytes(b"half") if left == "damaged" else path.unlink()
    resumed = BestCheckpointHook()
    resumed.load_state_dict(state)
    resumed.before_train(trainer)
    assert (resumed.best["regular"] == 0.5) == (left == "later") == ("not there any more" not in caplog.text)


def kept(folder):
    return {path.name: load_checkpoint(path) for path in folder.glob("checkpoint_best_step_*.pth")}


def test_the_best_evaluations_have_a_file_each(tmp_path):
    hook = BestCheckpointHook(keep_top=2)
    trainer = StubTrainer(tmp_path, Constant(), [hook])
    trainer.eval_models["ema"] = Constant()
    scores = [(0.1, 0.2), (0.3, 0.1), (0.2, 0.2), (math.nan, 0.25), (0.3, 0.3)]
    for trainer.epoch, (regular, ema) in enumerate(scores, start=1):
        trainer.step = 4 * trainer.epoch
        trainer.unwrapped_model.set(regular), trainer.eval_models["ema"].set(ema)
        trainer.publish_metrics({"val/mAP_50_95": regular, "val/ema_mAP_50_95": ema})
    assert hook.best_steps == [(0.3, 8), (0.3, 20)], "the earlier of equal ones first"
    assert {name: content["epoch"] for name, content in kept(tmp_path).items()} == {
        "checkpoint_best_step_8.pth": 2, "checkpoint_best_step_20.pth": 5}
    assert kept(tmp_path)["checkpoint_best_step_8.pth"]["model"]["weight"] == pytest.approx(0.3), "of the better model"

    again = BestCheckpointHook(keep_top=3)
    again.load_state_dict(through_a_file(hook.state_dict()))
    trainer.hooks[:], trainer.step = [again], 20
    trainer.publish_metrics({"val/mAP_50_95": 0.3})  # the last evaluation was not saved, and is made again
    trainer.step = 24
    trainer.publish_metrics({"val/mAP_50_95": 0.1})
    assert again.best_steps == [(0.3, 8), (0.3, 20), (0.1, 24)] and len(again.kept_files(trainer)) == 3
    (tmp_path / "checkpoint_best_step_20.pth").unlink()
    assert [path.name for path in again.kept_files(trainer)] == ["checkpoint_best_step_8.pth", "checkpoint_best_step_24.pth"]
    other = BestCheckpointHook(keep_top=2, monitor_regular="val/F1")
    other.load_state_dict(hook.state_dict())
    assert other.best_steps == []
    state, paths = through_a_file(again.state_dict()), again.kept_files(trainer)
    for keep_top, left in ((0, 2), (2, 1)):  # that of step 20 is deleted above
        fewer = BestCheckpointHook(keep_top=keep_top)
        fewer.load_state_dict(state)
        fewer.before_train(trainer)
        assert len(fewer.best_steps) == (keep_top or 3) and [path.exists() for path in paths] == [True, left == 2]
