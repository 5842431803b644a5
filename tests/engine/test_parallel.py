"""How a model is spread in one process; test_distributed.py and test_sharding.py do the same in two."""

import torch
from toy import ToyModel

from engine.parallel import Alone, spread


def test_alone_everything_is_the_model_itself():
    model = ToyModel()
    alone = spread(model, torch.device("cpu"))
    assert type(alone) is Alone
    assert alone.model is alone.unwrapped is alone.eval_model is model


def test_alone_states_go_out_and_in():
    first, second = (spread(ToyModel(), torch.device("cpu")) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.unwrapped.parameters(), second.unwrapped.parameters()))
    old, new = (torch.optim.SGD(one.unwrapped.parameters(), lr=rate) for one, rate in ((first, 0.25), (second, 1.0)))
    second.load_optimizer_state(new, first.optimizer_state(old))
    assert new.param_groups[0]["lr"] == 0.25


def test_the_norm_is_that_of_all_gradients_together():
    alone = spread(ToyModel(), torch.device("cpu"))
    assert alone.gradient_norm([torch.tensor([3.0]), torch.tensor([0.0, 4.0])]).item() == 5
