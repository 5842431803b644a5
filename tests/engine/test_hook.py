"""The hook points: their order, and that a misspelled one cannot be defined."""

import pytest
from toy import make_trainer

from engine import HOOK_POINTS, Hook
from engine.hook import evaluation_listener


class Recorder(Hook):
    def __init__(self, log: list[str], name: str = "Recorder") -> None:
        self.log, self.name = log, name

    def close(self) -> None:
        self.log.append(f"{self.name}.close")


def _record(point: str):
    def method(self, trainer, *arguments) -> None:
        self.log.append(point)
        if point == "after_epoch":
            for hook in trainer.hooks:
                hook.before_eval(trainer, "regular")
            evaluation_listener(trainer)("regular", "batch", {}, [])
            trainer.publish_metrics({"val/x": 1.0})

    return method


for _point in HOOK_POINTS:
    setattr(Recorder, _point, _record(_point))


def test_every_point_is_called_in_the_documented_order(tmp_path):
    log: list[str] = []
    make_trainer(tmp_path, batch_size=6, grad_accum_steps=2, max_epochs=2, hooks=[Recorder(log)]).train()
    step = ["before_step", "after_batch", "after_batch", "before_optimizer_step", "after_step"]
    epoch = ["before_epoch", *step, *step, "after_epoch", "before_eval", "after_eval_batch", "after_eval"]
    assert log == ["before_train", *epoch, *epoch, "after_train", "Recorder.close"]


def test_close_runs_in_reverse_order_and_after_an_exception_but_after_train_does_not(tmp_path):
    class Failing(Hook):
        def after_step(self, trainer) -> None:
            raise KeyError("broken")

        def close(self) -> None:
            raise RuntimeError("close is broken too")

    log: list[str] = []
    trainer = make_trainer(tmp_path, hooks=[Recorder(log, "a"), Recorder(log, "b"), Failing()])
    with pytest.raises(KeyError, match="broken"):
        trainer.train()
    assert log[-2:] == ["b.close", "a.close"]
    assert "after_train" not in log


def test_a_misspelled_point_is_refused_when_the_class_is_defined():
    with pytest.raises(TypeError, match="after_stp.*did you mean 'after_step'"):
        type("Bad", (Hook,), {"after_stp": lambda self, trainer: None})


def test_two_hooks_with_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Recorder"):
        make_trainer(tmp_path, hooks=[Recorder([]), Recorder([])])


def test_a_hook_goes_by_its_class_name_and_the_subclass_of_one_by_its_parents():
    class Average(Hook):
        pass

    class SlowAverage(Average):
        pass

    class Named(Average):
        name = "mine"

    class Mixed(dict, Named):
        pass

    assert [hook().name for hook in (Average, SlowAverage, Named, Mixed)] == ["Average", "Average", "mine", "mine"]


@pytest.mark.parametrize(
    "attribute, message", [("writes", "Left and Right both write the file 'b'"), ("evaluates", "Left and Right .* model 'b'")]
)
def test_two_hooks_that_write_or_add_the_same_are_refused(tmp_path, attribute, message):
    left, right = type("Left", (Hook,), {attribute: ("a", "b")}), type("Right", (Hook,), {attribute: ("b", "c")})
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, hooks=[left(), Recorder([]), right()])
    right.writes = right.evaluates = ("c",)
    make_trainer(tmp_path, hooks=[left(), right()])


def test_a_bare_name_in_place_of_a_tuple_is_refused_when_the_class_is_defined():
    with pytest.raises(TypeError, match="'a.png',"):
        type("Bad", (Hook,), {"writes": "a.png"})


def test_metrics_cannot_be_published_from_after_eval(tmp_path):
    class Greedy(Hook):
        def after_epoch(self, trainer) -> None:
            trainer.publish_metrics({"a": 1.0})

        def after_eval(self, trainer, metrics) -> None:
            trainer.publish_metrics({"b": 1.0})

    with pytest.raises(RuntimeError, match="after_eval"):
        make_trainer(tmp_path, hooks=[Greedy()]).train()


def test_batches_of_an_evaluation_go_to_those_who_listen(tmp_path):
    class Listener(Hook):
        def __init__(self, name):
            self.name, self.heard = name, []

        def after_eval_batch(self, trainer, name, batch, outputs, results):
            self.heard.append((name, batch, outputs, results))

    first, second = Listener("first"), Listener("second")
    trainer = make_trainer(tmp_path, hooks=[first, Recorder([]), second])
    evaluation_listener(trainer)("ema", "batch", {"pred": 1}, ["result"])
    assert first.heard == second.heard == [("ema", "batch", {"pred": 1}, ["result"])]


def test_nothing_is_called_where_nobody_listens(tmp_path):
    class Deaf(Hook):
        def before_eval(self, trainer, name):
            pass

    assert evaluation_listener(make_trainer(tmp_path, hooks=[Deaf()])) is None


@pytest.mark.parametrize("name, place", [("on_train_epoch_end", "after_epoch"), ("on_train_batch_end", "after_step"),
                                         ("on_fit_start", "before_train"), ("on_validation_epoch_end", "after_eval"),
                                         ("on_test_batch_end", "after_eval_batch"), ("on_save_checkpoint", "state_dict")])
def test_a_method_of_lightning_is_refused_with_what_takes_its_place(name, place):
    with pytest.raises(TypeError, match=rf"Mine\.{name} is a method of Lightning.*{place}"):
        type("Mine", (Hook,), {name: lambda self, *arguments: None})


def test_names_that_a_hook_may_have_for_itself_stay_allowed():
    assert type("Mine", (Hook,), {name: lambda self: None for name in ("setup", "teardown", "on_new_best")}).name == "Mine"
