"""The average against the legacy formula's goldens (decision 2), its buffers, and its state."""

import pytest
import torch
from stub_trainer import StubTrainer, golden, through_a_file
from torch import nn
from toy import make_trainer

from hooks import EMAHook
from hooks.ema import ema_decay


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.tied = self.w
        self.register_buffer("f", torch.zeros(2))
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))

    def set(self, w, f, n):
        self.w.data = torch.tensor(w)
        self.f = torch.tensor(f)  # code may also replace a buffer
        self.n.fill_(n)
        return self


def values(model):
    return [*model.w.tolist(), *model.f.tolist(), model.n.item()]


def run(case, hook, trainer, steps):
    live = list(zip(case["live_w"], case["live_float_buffer"], case["live_int_buffer"]))
    for step in steps:
        trainer.unwrapped_model.set(*live[step])
        trainer.step = step
        hook.after_step(trainer)
        yield step, values(hook.average)


def started(case, hook):
    trainer = StubTrainer(model=Model().set(case["live_w"][0], case["live_float_buffer"][0], case["live_int_buffer"][0]))
    hook.before_train(trainer)
    return trainer


@pytest.mark.parametrize("case", golden("ema"), ids=lambda case: f"{case['decay']}-{case['tau']}-{case['update_interval_steps']}")
def test_legacy_formula(case):
    """The golden's `legacy` columns (an update every step, buffers averaged). Its integer buffers are truncated averages that
    lag behind; decision 2 copies them."""
    hook = EMAHook(case["decay"], case["tau"])
    trainer = started(case, hook)
    for step, found in run(case, hook, trainer, range(1, 51)):
        expected = case["legacy_state_after_step"][step - 1]
        assert found[:-1] == pytest.approx(expected[:-1], abs=5e-6)
        assert found[-1] == case["live_int_buffer"][step]
        assert ema_decay(step, case["decay"], case["tau"]) == pytest.approx(case["legacy_decay_for_update"][step - 1], abs=1e-12)


def test_the_average_is_a_frozen_copy_in_eval_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    trainer = StubTrainer(model=model)
    EMAHook().before_train(trainer)
    average = trainer.eval_models["ema"]
    assert average is not model and not average.training and model.training
    assert not any(p.requires_grad for p in average.parameters()) and all(p.requires_grad for p in model.parameters())
    assert torch.equal(average[0].weight, model[0].weight) and average[0].weight is not model[0].weight


def test_weights_that_do_not_move_are_their_own_average_exactly():
    model = nn.Linear(50, 50)
    hook, trainer = EMAHook(0.7, 3), StubTrainer(model=model)
    hook.before_train(trainer)
    for trainer.step in range(1, 30):
        hook.after_step(trainer)
    assert torch.equal(hook.average.weight, model.weight)


def test_resumed_goes_on_exactly():
    case = golden("ema")[0]
    whole = EMAHook()
    expected = dict(run(case, whole, started(case, whole), range(1, 51)))

    first = EMAHook()
    list(run(case, first, started(case, first), range(1, 21)))
    second = EMAHook()
    second.load_state_dict(through_a_file(first.state_dict()))  # before before_train, as the trainer does
    assert through_a_file(second.state_dict())["num_updates"] == 20
    assert dict(run(case, second, started(case, second), range(21, 51))) == {step: expected[step] for step in range(21, 51)}


def test_a_state_may_also_come_later():
    case = golden("ema")[0]
    first, second = EMAHook(), EMAHook()
    list(run(case, first, started(case, first), range(1, 6)))
    started(case, second)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert values(second.average) == values(first.average)


def test_update_every_counts_updates():
    case = golden("ema")[0]
    hook = EMAHook(0.9, 10, update_every=2)
    found = dict(run(case, hook, started(case, hook), range(1, 5)))
    average = torch.tensor(case["live_w"][0], dtype=torch.float64)
    for update, step in ((1, 2), (2, 4)):
        decay = ema_decay(update, 0.9, 10)
        average = decay * average + (1 - decay) * torch.tensor(case["live_w"][step])
        assert found[step][:3] == pytest.approx(average.tolist(), abs=1e-6)
    assert found[3] == found[2] and hook.num_updates == 2


def test_buffers_may_be_copied():
    case = golden("ema")[0]
    hook = EMAHook(use_buffers=False)
    for step, found in run(case, hook, started(case, hook), range(1, 4)):
        assert found[3:5] == pytest.approx(case["live_float_buffer"][step])


@pytest.mark.parametrize("arguments", [{"decay": 1.5}, {"tau": -1.0}, {"update_every": 0}])
def test_impossible_arguments(arguments):
    with pytest.raises(ValueError, match="EMAHook"):
        EMAHook(**arguments)


def test_the_average_goes_on_where_a_trainer_trains_again(tmp_path):
    hook = EMAHook(0.9, 3)
    trainer = make_trainer(tmp_path, hooks=[hook], max_epochs=1)
    trainer.train()
    average = trainer.eval_models["ema"]
    before = [p.clone() for p in average.parameters()]
    trainer.train()
    assert trainer.eval_models["ema"] is average
    assert all(torch.equal(a, b) for a, b in zip(before, average.parameters()))


def test_a_second_average_is_refused(tmp_path):
    class Other(EMAHook):
        name = "Other"

    with pytest.raises(ValueError, match="EMAHook and Other .*'ema'"):
        make_trainer(tmp_path, hooks=[EMAHook(), Other()])
