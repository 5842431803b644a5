"""Loaders: the same batches for any number of workers and any resume, plain errors, and workers that outlive a Ctrl-C."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from rfdetr.data import eval_loader, open_dataset, train_loader
from rfdetr.errors import InputError
from rfdetr.nested_tensor import NestedTensor, collate

GOLDEN = Path(__file__).parents[2] / "goldens" / "training" / "transforms.json"
AUGMENT = {"recipe": "light", "own": [v2.RandomPhotometricDistort(), v2.RandomHorizontalFlip()]}


@pytest.fixture
def folder(write_roboflow, coco_content):
    return write_roboflow(train=coco_content(12, extension="jpg"), valid=coco_content(5))


def make_loader(folder, *, augment="light", with_masks=False, on_bad_image="fail", **options):
    dataset = open_dataset(folder, "train", training=True, image_size=(32, 32), augment=augment, with_masks=with_masks,
                           on_bad_image=on_bad_image)
    return train_loader(dataset, **{"batch_size": 2, "seed": 3, "num_workers": 0, "sizes": [(32, 32), (32, 48)], **options})


def flat(batches) -> list[torch.Tensor]:
    """All tensors of some batches, in order."""
    tensors = []
    for samples, targets in batches:
        tensors += [samples.tensors, *(value for target in targets for value in target.values())]
    return tensors


def assert_same(batches, expected) -> None:
    batches, expected = flat(batches), flat(expected)
    assert len(batches) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(batches, expected))


def test_batches(folder):
    batches = list(make_loader(folder, with_masks=True))
    assert len(batches) == 6
    for samples, targets in batches:
        assert isinstance(samples, NestedTensor) and samples.tensors.shape[:3] == (2, 3, 32) and samples.mask is None
        assert all(isinstance(value, torch.Tensor) for target in targets for value in target.values())
        assert targets[0]["masks"].dtype == torch.bool and targets[0]["boxes"].dtype == torch.float32
    assert len({samples.tensors.shape for samples, _ in batches}) == 2


def test_objects_without_a_mask_are_marked(write_roboflow, coco_content):
    content = coco_content(12)
    content["annotations"][0]["segmentation"] = []
    loader = make_loader(write_roboflow(train=content), with_masks=True, augment="none")
    targets = [target for _, batch in loader for target in batch]
    found = {target["image_id"].item(): target["has_mask"].tolist() for target in targets}
    assert found.pop(11) == [False] and all(map(all, found.values()))


@pytest.mark.parametrize("augment", AUGMENT)
def test_same_samples_for_any_number_of_workers_and_main_generator_untouched(folder, augment):
    """Epoch by epoch with the same loader, so that persistent workers follow `set_epoch`."""
    state = torch.get_rng_state()
    runs = []
    for num_workers in (0, 1, 4):
        loader = make_loader(folder, augment=AUGMENT[augment], num_workers=num_workers)
        epochs = []
        for epoch in (0, 1):
            loader.batch_sampler.set_epoch(epoch)
            epochs += list(loader)
        loader.batch_sampler.set_epoch(1, start_batch=4)
        assert_same(list(loader), epochs[-2:])
        assert not torch.equal(epochs[0][0].tensors, epochs[6][0].tensors)
        runs.append(epochs)
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_accumulation_and_ranks_give_the_samples_of_one_large_batch(folder):
    def samples(**options):
        return [target["image_id"].item() for _, targets in make_loader(folder, **options) for target in targets]
    whole = make_loader(folder, batch_size=2)
    parts = make_loader(folder, batch_size=1, grad_accum_steps=2)
    ranks = [make_loader(folder, batch_size=1, rank=rank, world_size=2) for rank in (0, 1)]
    for (big, _), (rank_0, _), (rank_1, _) in zip(whole, *ranks):
        assert torch.equal(big.tensors, torch.cat([rank_0.tensors, rank_1.tensors]))
    parts = list(parts)
    for index, (big, _) in enumerate(whole):
        assert torch.equal(big.tensors, torch.cat([parts[2 * index][0].tensors, parts[2 * index + 1][0].tensors]))


@pytest.mark.slow
def test_spawned_workers(folder):
    expected = list(make_loader(folder))
    assert_same(list(make_loader(folder, num_workers=1, start_method="spawn")), expected)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_resume_at_any_step_for_any_number_of_workers(folder, num_workers):
    expected = list(make_loader(folder))
    loader = make_loader(folder, num_workers=num_workers, persistent_workers=num_workers > 1, prefetch_factor=3)
    for start in (0, 1, 3, 5):
        loader.batch_sampler.set_epoch(0, start_batch=start)
        assert_same(list(loader), expected[start:])


def test_cached_files_give_the_same_samples(folder, caplog):
    expected = list(make_loader(folder))
    dataset = open_dataset(folder, "train", training=True, image_size=(32, 32), augment="light", cache="ram")
    for path in (folder / "train").glob("*.jpg"):
        path.unlink()
    for num_workers in (0, 2):
        loader = train_loader(dataset, batch_size=2, seed=3, num_workers=num_workers, sizes=[(32, 32), (32, 48)])
        assert_same(list(loader), expected)


def test_bad_images_are_left_out_named_once_and_counted(folder, caplog):
    paths = [folder / "train" / f"picture_{i}.jpg" for i in (2, 7)]
    expected = list(make_loader(folder))
    for path in paths:
        path.write_bytes(path.read_bytes()[:300])
    for num_workers in (0, 2):
        caplog.clear()
        loader = make_loader(folder, num_workers=num_workers, on_bad_image="skip", max_bad_images=0.2)
        for epoch in (0, 1):
            loader.batch_sampler.set_epoch(epoch)
            made = list(loader)
            assert sum(len(targets) for _, targets in made) == 10 and loader.num_bad_images == 2 * (epoch + 1)
            assert not {12, 17} & {target["image_id"].item() for _, targets in made for target in targets}
        messages = [record.getMessage() for record in caplog.records if "left out of its batches" in record.getMessage()]
        assert len(messages) == 2 and all(sum(str(path) in message for message in messages) == 1 for path in paths)
        loader.batch_sampler.set_epoch(0)
        for (_, targets), (_, whole) in zip(loader, expected):  # the others are where they were
            ids = [target["image_id"].item() for target in whole]
            assert [target["image_id"].item() for target in targets] == [id_ for id_ in ids if id_ not in (12, 17)]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_every_picture_bad_stops_in_the_first_batches(write_roboflow, coco_content, training, num_workers):
    content = coco_content(40)
    folder = write_roboflow(train=content, valid=content)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    split = "train" if training else "val"
    dataset = open_dataset(folder, split, training=training, image_size=(32, 32), on_bad_image="skip")
    loader = train_loader(dataset, batch_size=4, seed=0, num_workers=num_workers) if training else eval_loader(
        dataset, batch_size=4, num_workers=num_workers)
    batches = iter(loader)
    next(batches)
    with pytest.raises(InputError, match=rf"of the {split} split 8 pictures of the 8 read so far are bad \(8 different ones of "
                                         r"the 40 that it has\), more than data.max_bad_images 0.1 allows.*picture_\d+.png"):
        next(batches)


def test_more_bad_pictures_than_allowed_stop_the_first_epoch(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content(40))
    for index in range(5):  # an eighth
        (folder / "train" / f"picture_{index}.png").unlink()
    def samples(**options):
        loader = make_loader(folder, on_bad_image="skip", seed=1, **options)
        return sum(len(targets) for _, targets in loader)
    assert samples(max_bad_images=0.13) == 35
    for options in ({}, {"max_bad_images": 0}):
        with pytest.raises(InputError, match="max_bad_images"):
            samples(**options)
    with pytest.raises(InputError, match="data.max_bad_images: 1.5 is not possible"):
        samples(max_bad_images=1.5)


def test_one_bad_picture_of_few_is_no_reason(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content(4))
    (folder / "train" / "picture_1.png").unlink()
    loader = make_loader(folder, on_bad_image="skip", batch_size=1)
    for epoch in range(30):
        loader.batch_sampler.set_epoch(epoch)
        assert len(list(loader)) == 5


def test_batch_of_bad_images_is_one_blank_image(folder):
    for path in (folder / "train").glob("*.jpg"):
        path.unlink()
    for samples, targets in make_loader(folder, on_bad_image="skip", max_bad_images=1, with_masks=True):
        assert len(samples.tensors) == len(targets) == 1 and targets[0]["boxes"].shape == (0, 4)
        assert targets[0]["masks"].shape == (0, *samples.tensors.shape[-2:])


def test_bad_images_of_an_evaluation_keep_their_objects(folder, caplog):
    (folder / "valid" / "picture_2.png").unlink()
    dataset = open_dataset(folder, "val", training=False, image_size=(32, 32), on_bad_image="skip")
    loader = eval_loader(dataset, batch_size=2, num_workers=1)
    targets = [target for _, batch in loader for target in batch]
    assert [len(target["boxes"]) for target in targets] == [0, 2, 2, 0, 1] and loader.num_bad_images == 1
    assert "its objects as missed" in caplog.text


def test_evaluation_covers_each_image_once(folder):
    dataset = open_dataset(folder, "val", training=False, image_size=(30, 40))
    seen = []
    for rank in range(2):
        for samples, targets in eval_loader(dataset, batch_size=2, rank=rank, world_size=2, num_workers=0, size_divisor=16):
            assert samples.tensors.shape[2:] == (32, 48) and samples.mask[:, 30:].all() and not samples.mask[:, :30, :40].any()
            seen += [target["image_id"].item() for target in targets]
    assert sorted(seen) == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_image_arrives_as_one_plain_message(folder, num_workers):
    (folder / "train" / "picture_7.jpg").unlink()
    with pytest.raises(InputError) as caught:
        list(make_loader(folder, num_workers=num_workers))
    message = str(caught.value)
    assert message.startswith(str(folder / "train" / "picture_7.jpg")) and "\n" not in message and "Traceback" not in message


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs Linux")
def test_workers_obey_the_main_process_alone(folder):
    loader = make_loader(folder, num_workers=1)
    batches = iter(loader)
    next(batches)
    worker = loader._iterator._workers[0]
    for name in ("INT", "TERM", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert len(list(batches)) == 5 and worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)  # from here
    deadline = time.monotonic() + 10
    while worker.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not worker.is_alive()


def stuck(sample):
    time.sleep(60)


def killed(sample):
    os.kill(os.getpid(), signal.SIGKILL)


def stopped(sample):
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("transform, message", [
    (stuck, "timed out after 1"), (stopped, "timed out after 1"), (killed, "exited unexpectedly|killed by signal"),
])
@pytest.mark.parametrize("persistent_workers", [True, False])
def test_workers_that_do_not_answer_are_found(folder, transform, message, persistent_workers):
    loader = make_loader(folder, augment=[transform], num_workers=1, timeout_seconds=1, persistent_workers=persistent_workers)
    with pytest.raises(InputError, match=rf"data.num_workers: the workers gave no more batches .*({message}).*picture_\d+.jpg, "
                                         r".*picture_\d+.jpg; .* MB of shared memory .*data.timeout_seconds"):
        list(loader)
    assert loader._iterator is None


def test_a_worker_killed_while_its_batch_is_used_is_found_at_the_next_one(folder):
    loader = make_loader(folder, num_workers=1, timeout_seconds=60)
    other = iter(make_loader(folder, num_workers=1))
    with pytest.raises(InputError, match=r"the workers gave no more batches .*killed by signal.*picture_\d+.jpg"):
        for _ in loader:
            next(other)  # as an evaluation between two steps
            worker, = loader._iterator._workers
            os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.3)  # a forward pass, in which torch would raise
            used = True
    assert used


def test_what_a_transform_raises_is_not_taken_for_the_loader(folder):
    def raises(sample):
        raise RuntimeError("of one's own")
    with pytest.raises(RuntimeError, match="of one's own"):
        list(make_loader(folder, augment=[raises], num_workers=1))


@pytest.mark.parametrize("with_masks", [True, False])
def test_shared_memory_is_compared_before_training(folder, monkeypatch, with_masks):
    """Two workers with two batches each in advance and two in use, of two pictures at the largest scale."""
    num_bytes = 32 * 48 * (3 + with_masks) * 2 * (2 * 2 + 2)
    options = {"num_workers": 2, "with_masks": with_masks}
    monkeypatch.setattr("rfdetr.data.loader.free_shared_memory", lambda: num_bytes)
    make_loader(folder, **options)
    monkeypatch.setattr("rfdetr.data.loader.free_shared_memory", lambda: num_bytes - 1)
    megabytes = f"{num_bytes / 1e6:.1f} MB"
    with pytest.raises(InputError, match=f"2 workers with 2 batches .* need {megabytes} .* only {megabytes} of /dev/shm are free"
                                         "; use data.num_workers 0.*--shm-size"):
        make_loader(folder, **options)
    make_loader(folder, **{**options, "num_workers": 0})


def test_a_whole_window_is_made_in_advance_where_it_fits(folder, monkeypatch, caplog):
    options = {"num_workers": 2, "grad_accum_steps": 16, "batch_size": 1}
    assert make_loader(folder, **options).prefetch_factor == 8
    assert make_loader(folder, **options, prefetch_factor=9).prefetch_factor == 9
    monkeypatch.setattr("rfdetr.data.loader.free_shared_memory", lambda: 32 * 48 * 3 * (2 * 2 + 2))
    assert make_loader(folder, **options).prefetch_factor == 2
    assert "train.grad_accum_steps: the 16 batches of a step do not fit into shared memory" in caplog.text


def test_a_batch_that_cannot_be_handed_over_is_named(folder, monkeypatch):
    def share_memory_(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")
    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
    with pytest.raises(InputError, match="^data.num_workers: a worker cannot hand over its batch .* No space left on"):
        list(make_loader(folder, num_workers=1))


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["collate"])
def test_collate_golden(case):
    images = [(torch.ones(3, *shape), {}) for shape in case["shapes"]]
    samples, _ = collate(images, case["block_size"] or 1)
    assert list(samples.tensors.shape) == case["out"]
    mask = torch.zeros_like(samples.tensors[:, 0], dtype=torch.bool) if samples.mask is None else samples.mask
    assert (~mask).sum(dim=(1, 2)).tolist() == case["valid_pixels"]
    assert samples.tensors.sum(dim=(1, 2, 3)).tolist() == case["image_sums"]
    assert samples.has_padding == (not case["no_padding"])


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
@pytest.mark.slow  # by itself: a forked worker starts with the pages of whatever tests ran before
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_memory_of_workers_does_not_grow(write_roboflow, coco_content, start_method):
    """Private memory of four workers, after each of six epochs; the first two are for warming up.

    Two megabytes each over four epochs are what pages shared with a large parent may still cost; a worker's own pixels are
    seven times as much.
    """
    folder = write_roboflow(train=coco_content(64, size=(240, 320), extension="jpg"))
    loader = make_loader(folder, num_workers=4, with_masks=True, start_method=start_method)
    sizes = []
    for epoch in range(6):
        loader.batch_sampler.set_epoch(epoch)
        for _ in loader:
            pass
        workers = loader._iterator._workers
        sizes.append(sum(_private_memory(worker.pid) for worker in workers))
    assert sizes[-1] - sizes[1] < 8 * 2**20, sizes


def _private_memory(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Private_"))
