"""Mistakes that a type checker has to find, each in the line that says so. It is read, not run."""

from engine import Hook, Trainer
from rfdetr import VARIANTS, build_model, load, no_such_name  # wrong
from rfdetr.training import RunConfig, TrainConfig, no_such_function, train  # wrong

__all__ = ["no_such_function", "no_such_name"]


class Mine(Hook):
    def after_step(self) -> None:  # wrong
        pass

    def after_epoch(self, trainer: Trainer) -> None:
        trainer.step = "three"  # wrong
        trainer.no_such_method()  # wrong


TrainConfig(epochs="three")  # wrong
TrainConfig(epoch=3)  # wrong
TrainConfig(precision="half")  # wrong
RunConfig(train={"epochs": 3})  # wrong
build_model("nano")  # wrong
VARIANTS["nano"].resolution = 512  # wrong
load("a.pth").predict("a.png", threshold="high")  # wrong
train(RunConfig(), resume=3)  # wrong
