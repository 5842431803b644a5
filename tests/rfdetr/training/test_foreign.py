"""--resume takes the checkpoints of Lightning and of the published engine for what they hold, and says what they lack."""

import argparse
from dataclasses import replace

import pytest
import torch

from hooks import Hook
from rfdetr import build_model, official_state_dict
from rfdetr.errors import InputError
from rfdetr.training import build_trainer, train


@pytest.fixture
def weights(small):
    """Published names of two made-up states, the weights and their average."""
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append({name: tensor.clone() for name, tensor in official_state_dict(build_model(
            small().model.architecture(1))).items()})
    return states


def write(kind: str, path, weights) -> None:
    if kind == "legacy":
        content = {"model": weights[0], "ema_model": weights[1], "optimizer": {"state": {}, "param_groups": []},
                   "lr_scheduler": {}, "epoch": 1, "args": argparse.Namespace(num_classes=1, class_names=["box"])}
    else:
        content = {"state_dict": {f"model.{name}": tensor for name, tensor in weights[0].items()}, "epoch": 1, "global_step": 10,
                   "pytorch-lightning_version": "2.5.0", "optimizer_states": [], "lr_schedulers": [],
                   "legacy_ema_state_dict": weights[1], "hyper_parameters": {"class_names": ["box"]}}
    torch.save(content, path)


@pytest.mark.parametrize("kind", ["legacy", "Lightning"])
def test_weights_average_and_epoch_are_taken(small, tmp_path, weights, kind, caplog):
    write(kind, tmp_path / "theirs.pth", weights)
    config = small(train=replace(small().train, epochs=3))
    rates = []

    class Watching(Hook):
        def before_train(self, trainer) -> None:
            rates.append((trainer.epoch, trainer.step, trainer.lr_scheduler.last_epoch))
            self.model = {name: tensor.clone() for name, tensor in official_state_dict(trainer.unwrapped_model).items()}
            average = official_state_dict(trainer.eval_models["ema"])
            self.average = {name: tensor.clone() for name, tensor in average.items()}

    watching = Watching()
    results = train(config, [watching], resume=str(tmp_path / "theirs.pth"))
    assert rates == [(2, 10, 10)] and results["epochs"] == 3 and results["steps"] == 15
    for found, expected in ((watching.model, weights[0]), (watching.average, weights[1])):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "2 finished epochs are taken. It lacks" in caplog.text and "optimizer moments" in caplog.text


def test_a_file_of_weights_alone_is_still_refused(small, tmp_path, weights):
    torch.save({"model": weights[0], "epoch": 3}, tmp_path / "best.pth")
    with pytest.raises(InputError, match="holds weights only"):
        train(small(), resume=str(tmp_path / "best.pth"))
    assert build_trainer(small()).epoch == 0
