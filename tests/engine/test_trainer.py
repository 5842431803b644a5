"""The loop on a toy model: accumulation, resume, non-finite gradients, stopping."""

import pytest
import torch
from toy import StopAt, ToyLoader, ToyModel, ToySampler, make_trainer, weights

from engine import Hook, Trainer, load_checkpoint, save_checkpoint


def test_accumulation_over_a_window_equals_a_big_batch(tmp_path):
    arguments = {"loss_normalize": "window", "clip_grad_norm": 0.5, "max_epochs": 3}
    big = make_trainer(tmp_path, batch_size=8, **arguments)
    small = make_trainer(tmp_path, batch_size=2, grad_accum_steps=4, **arguments)
    big.train(), small.train()
    assert big.step == small.step == 9
    torch.testing.assert_close(weights(big), weights(small), rtol=1e-9, atol=1e-12)


def test_accumulation_by_batch_is_the_mean_of_the_batches_losses(tmp_path):
    trainer = make_trainer(tmp_path, batch_size=2, grad_accum_steps=3, max_epochs=1)
    batches = []

    class Check(Hook):
        def before_step(self, trainer, batches_) -> None:
            expected = [2 * trainer.criterion(trainer.model(x), t)["loss_fit"] for x, t in batches_]
            batches.append(torch.autograd.grad(sum(expected) / 3, list(trainer.model.parameters())))

        def before_optimizer_step(self, trainer) -> None:
            torch.testing.assert_close([p.grad for p in trainer.model.parameters()], list(batches[-1]))

    trainer.hooks.append(Check())
    trainer.train()
    assert len(batches) == 4


def test_losses_of_a_step_are_the_mean_over_its_batches(tmp_path):
    trainer = make_trainer(tmp_path, batch_size=2, grad_accum_steps=2, hooks=[StopAt(1)])
    trainer.train()
    assert set(trainer.losses) == {"loss", "loss_fit", "diagnostic"}
    torch.testing.assert_close(trainer.losses["loss"], 2 * trainer.losses["loss_fit"])
    assert trainer.num_images == 4


@pytest.mark.parametrize("stop_step", [1, 4, 6, 9])
def test_a_resumed_run_has_the_same_bits_as_an_unstopped_one(tmp_path, stop_step):
    whole = make_trainer(tmp_path, dropout=0.5, max_epochs=3)
    whole.train()
    stopped = make_trainer(tmp_path, dropout=0.5, max_epochs=3, hooks=[StopAt(stop_step)])
    stopped.train()
    assert stopped.step == stop_step and stopped.stop_reason == f"step {stop_step}"
    save_checkpoint(stopped.state_dict(), tmp_path / "c.pth")
    resumed = make_trainer(tmp_path, dropout=0.5, max_epochs=3)
    resumed.load_state_dict(load_checkpoint(tmp_path / "c.pth"))
    torch.rand(7)  # a hook or a user may draw numbers before training goes on
    resumed.train()
    assert torch.equal(weights(whole), weights(resumed))
    for a, b in zip(whole.optimizer.state_dict()["state"].values(), resumed.optimizer.state_dict()["state"].values()):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert torch.equal(whole.grad_norm, resumed.grad_norm)


def test_resuming_a_finished_run_trains_nothing_and_more_epochs_go_on(tmp_path):
    done = make_trainer(tmp_path, max_epochs=2)
    done.train()
    again = make_trainer(tmp_path, max_epochs=2)
    again.load_state_dict(done.state_dict())
    again.train()
    assert again.step == done.step and torch.equal(weights(again), weights(done))
    more = make_trainer(tmp_path, max_epochs=3)
    more.load_state_dict(done.state_dict())
    more.train()
    assert (more.epoch, more.step) == (3, 18)


class EpochEnds(Hook):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def after_epoch(self, trainer) -> None:
        self.seen.append((trainer.step, trainer.epoch, trainer.epoch_step))


@pytest.mark.parametrize("max_steps", [1, 6, 8])
def test_max_steps_end_the_run_and_more_of_them_go_on_as_if_it_had_not_ended(tmp_path, max_steps):
    ends = EpochEnds()
    short = make_trainer(tmp_path, dropout=0.5, max_steps=max_steps, hooks=[ends])
    short.train()
    assert short.step == short.max_steps == max_steps and short.is_finished and short.stop_reason is None
    whole = [(6, 1, 0)] if max_steps >= 6 else []
    assert ends.seen == whole + ([(max_steps, max_steps // 6, max_steps % 6)] if max_steps % 6 else [])
    save_checkpoint(short.state_dict(), tmp_path / "c.pth")
    again = make_trainer(tmp_path, dropout=0.5, max_steps=max_steps)
    again.load_state_dict(load_checkpoint(tmp_path / "c.pth"))
    again.train()
    assert torch.equal(weights(again), weights(short)), "nothing is left to do"
    more = make_trainer(tmp_path, dropout=0.5)
    more.load_state_dict(load_checkpoint(tmp_path / "c.pth"))
    more.train()
    unstopped = make_trainer(tmp_path, dropout=0.5, max_steps=99)
    unstopped.train()
    assert torch.equal(weights(more), weights(unstopped)) and unstopped.step == 12


def test_another_batch_size_goes_on_at_the_same_image(tmp_path):
    first = make_trainer(tmp_path, batch_size=4, hooks=[StopAt(9)])  # 6 steps an epoch: 12 images into the second
    first.train()
    second = make_trainer(tmp_path, batch_size=6)
    second.load_state_dict(first.state_dict())
    assert (second.epoch, second.epoch_step, second.step) == (1, 2, 6)
    second.train()
    assert second.step == 8


@pytest.mark.parametrize("fused", [False, True])
def test_a_non_finite_gradient_is_skipped_and_counted(tmp_path, caplog, fused):
    class Poison(Hook):
        def before_optimizer_step(self, trainer) -> None:
            if trainer.step == 2:
                next(trainer.model.parameters()).grad.fill_(float("nan"))
            self.before = weights(trainer)

        def after_step(self, trainer) -> None:
            changed = not torch.equal(self.before, weights(trainer))
            assert changed == (trainer.step != 3)

    trainer = make_trainer(tmp_path, fused=fused, clip_grad_norm=0.1, hooks=[Poison()])
    trainer.train()
    assert trainer.step == trainer.max_steps and trainer.bad_steps == 1
    assert torch.isfinite(weights(trainer)).all()
    assert "step 3" in caplog.text and "image ids" in caplog.text


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    class Poison(Hook):
        def before_optimizer_step(self, trainer) -> None:
            if trainer.step >= 2:
                next(trainer.model.parameters()).grad.fill_(float("inf"))

    trainer = make_trainer(tmp_path, max_bad_steps=3, hooks=[Poison()])
    with pytest.raises(FloatingPointError, match="3 updates in a row"):
        trainer.train()
    assert trainer.step == 5 and torch.isfinite(weights(trainer)).all()


def test_fused_and_plain_adamw_clip_alike(tmp_path):
    plain, fused = (make_trainer(tmp_path, fused=f, clip_grad_norm=0.05) for f in (False, True))
    plain.train(), fused.train()
    torch.testing.assert_close(weights(plain), weights(fused), rtol=1e-9, atol=1e-12)
    loose = make_trainer(tmp_path, clip_grad_norm=0.0)
    loose.train()
    assert not torch.equal(weights(plain), weights(loose))


def test_bf16_runs_the_model_in_bf16_and_keeps_fp32_weights(tmp_path):
    dtypes = []

    class Look(Hook):
        def after_batch(self, trainer, batch, outputs) -> None:
            dtypes.append(outputs["pred"].dtype)

    trainer = make_trainer(tmp_path, precision="bf16", dtype=torch.float32, hooks=[Look(), StopAt(1)])
    trainer.train()
    assert dtypes == [torch.bfloat16]
    assert next(trainer.model.parameters()).dtype == torch.float32


def test_stopping_at_the_last_step_of_an_epoch_finishes_the_epoch(tmp_path):
    trainer = make_trainer(tmp_path, hooks=[StopAt(6)])
    trainer.train()
    assert (trainer.epoch, trainer.epoch_step) == (1, 0)


def test_an_epoch_that_cannot_fill_a_window_is_refused(tmp_path):
    with pytest.raises(ValueError, match="6 batches an epoch cannot fill grad_accum_steps=7"):
        make_trainer(tmp_path, grad_accum_steps=7)


def test_hook_states_travel_with_the_trainer(tmp_path, caplog):
    class Counter(Hook):
        count = 0

        def after_step(self, trainer) -> None:
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state) -> None:
            self.count = state["count"]

    first = make_trainer(tmp_path, hooks=[Counter(), StopAt(4)])
    first.train()
    second = make_trainer(tmp_path, hooks=[Counter()])
    second.load_state_dict(first.state_dict())
    second.train()
    assert second.hooks[0].count == 12
    assert "StopAt" in caplog.text


@pytest.mark.parametrize("arguments, message", [
    ({"precision": "fp64"}, "fp64"), ({"precision": "fp16"}, "CUDA"), ({"device": "gpu"}, "gpu"),
    ({"loss_normalize": "epoch"}, "loss_normalize"),
])
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **arguments)


def test_an_evaluated_model_is_not_replaced_in_silence(tmp_path):
    models = make_trainer(tmp_path).eval_models
    mine, other = ToyModel(), ToyModel()
    models["mine"] = mine
    models["mine"] = mine
    with pytest.raises(ValueError, match="'mine' is there already"):
        models["mine"] = other
    with pytest.raises(ValueError, match="'mine' is there already"):
        models.update(mine=other)
    with pytest.raises(ValueError, match="'mine' is there already"):
        models |= {"mine": other}
    assert models["mine"] is mine
    del models["mine"]
    models["mine"] = other
    assert list(models) == ["regular", "mine"] and models["mine"] is other


def test_an_interrupted_run_is_a_stopped_one_that_says_so(tmp_path):
    class Interrupts(Hook):
        def after_step(self, trainer) -> None:
            trainer.interrupt("out of time")

    trainer = make_trainer(tmp_path, hooks=[Interrupts()])
    assert not trainer.interrupted
    trainer.train()
    assert trainer.interrupted and (trainer.step, trainer.stop_reason) == (1, "out of time")
    stopped = make_trainer(tmp_path, hooks=[StopAt(1)])
    stopped.train()
    assert not stopped.interrupted


@pytest.mark.parametrize("name, advice", [
    ("train_loader", "train_loader="), ("model", "model="), ("unwrapped_model", "model="), ("optimizer", "optimizer="),
    ("lr_scheduler", "lr_scheduler="), ("scaler", "precision="), ("hooks", "hooks="), ("device", "device="),
    ("precision", "precision="), ("grad_accum_steps", "grad_accum_steps="), ("steps_per_epoch", "train_loader="),
    ("max_epochs", "max_epochs="), ("max_steps", "max_epochs="), ("output_dir", "output_dir="), ("eval_models", "add entries"),
])
def test_what_others_were_made_for_cannot_be_replaced(tmp_path, name, advice):
    trainer = make_trainer(tmp_path)
    value = getattr(trainer, name)
    with pytest.raises(AttributeError, match=f"trainer.{name} cannot be replaced.*{advice}"):
        setattr(trainer, name, value)
    trainer.mine, trainer.clip_grad_norm = 1, 0.5  # the rest may change


class Resizes(Hook):
    def __init__(self, num_boxes: int, num_labels: int) -> None:
        self.sizes = num_boxes, num_labels

    def before_step(self, trainer, batches) -> None:
        target = batches[-1][1][-1]
        target["boxes"], target["labels"] = (torch.zeros(size, 4) for size in self.sizes)


class Watches(Hook):
    def before_step(self, trainer, batches) -> None:
        pass


def test_a_hook_that_leaves_boxes_without_labels_is_named(tmp_path):
    trainer = make_trainer(tmp_path, hooks=[Watches(), Resizes(3, 2)])
    with pytest.raises(ValueError, match=r"before_step of Resizes: image \d+ has 3 boxes and 2 labels"):
        trainer.train()
    assert trainer.step == 0


def test_a_loader_whose_targets_do_not_fit_is_named(tmp_path):
    trainer = make_trainer(tmp_path, hooks=[Watches()])
    for target in (batch := next(iter(trainer.train_loader)))[1]:
        target |= {"boxes": torch.zeros(2, 4), "labels": torch.zeros(1)}
    del target["image_id"]
    trainer.train_loader._batches = lambda: iter([batch] * 6)
    with pytest.raises(ValueError, match=r"the train loader: image \d+ has 2 boxes and 1 labels"):
        trainer.train()


class Plain:
    """A loader that knows nothing but its length."""

    def __init__(self, num_batches: int) -> None:
        self.batches = list(ToyLoader(ToySampler(4 * num_batches, 4)))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("num_batches, grad_accum_steps, place", [
    (8, 1, (1, 5)), (6, 1, (1, 3)), (4, 1, (1, 2)), (1, 1, (1, 0)), (8, 2, (1, 2)), (8, 8, (1, 0)), (16, 1, (1, 10)),
])
def test_a_loader_that_knows_no_samples_goes_on_at_its_share_of_the_epoch(tmp_path, num_batches, grad_accum_steps, place):
    """It stopped after 5 of 8 steps of the second epoch."""
    def plain(**arguments):
        toy = make_trainer(tmp_path)
        return Trainer(toy.unwrapped_model, toy.criterion, toy.optimizer, max_epochs=3, device="cpu", **arguments)

    first = plain(train_loader=Plain(8), hooks=[StopAt(13)])
    first.train()
    second = plain(train_loader=Plain(num_batches), grad_accum_steps=grad_accum_steps)
    second.load_state_dict(first.state_dict())
    assert (second.epoch, second.epoch_step) == place
    second.train()
    assert (second.epoch, second.step) == (3, second.max_steps)


def test_what_changed_the_rates_in_the_run_goes_on_with_unchanged_settings(tmp_path):
    class Lowers(Hook):
        def before_epoch(self, trainer) -> None:
            if trainer.epoch == 1:
                trainer.optimizer.param_groups[0]["betas"] = (0.5, 0.5)

    first = make_trainer(tmp_path, hooks=[Lowers(), StopAt(8)])
    first.train()
    again = make_trainer(tmp_path)
    again.load_state_dict(first.state_dict())
    assert again.optimizer.param_groups[0]["betas"] == (0.5, 0.5)


def test_skipped_updates_are_counted_over_a_resume(tmp_path):
    class Poison(Hook):
        def before_optimizer_step(self, trainer) -> None:
            if trainer.step in (2, 6, 7):
                next(trainer.model.parameters()).grad.fill_(float("nan"))

    first = make_trainer(tmp_path, hooks=[Poison(), StopAt(7)])
    first.train()
    again = make_trainer(tmp_path, hooks=[Poison()], max_bad_steps=2)
    again.load_state_dict(first.state_dict())
    assert again.bad_steps == 2
    with pytest.raises(FloatingPointError, match="2 updates in a row"):
        again.train()


def test_a_loss_scaler_may_come_and_go(tmp_path):
    with_one, without = make_trainer(tmp_path), make_trainer(tmp_path)
    vars(with_one)["scaler"] = torch.amp.GradScaler("cpu")
    states = with_one.state_dict(), without.state_dict()
    assert states[0]["scaler"] and not states[1]["scaler"]
    without.load_state_dict(states[0])
    with_one.load_state_dict(states[1])
    assert with_one.state_dict()["scaler"] == states[0]["scaler"]
