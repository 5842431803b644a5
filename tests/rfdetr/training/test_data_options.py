"""Sampling, weights, shapes and mixing of training samples: the same for any workers, processes, storage, and after a resume."""

import copy
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfdetr import load
from rfdetr.data import SampleKey
from rfdetr.data.packing import pack_dataset
from rfdetr.errors import InputError
from rfdetr.models.postprocess import PostProcess
from rfdetr.nested_tensor import collate
from rfdetr.training import build_trainer, commands, evaluate, train
from rfdetr.training import data as run_data
from rfdetr.training.data import build_train_loader, class_weights, open_run_data
from rfdetr.training.evaluation import config_of
from rfdetr.weights import read_checkpoint

sys.path.append(str(Path(__file__).parents[2] / "faults"))
import small_runs as faults

SIZES = ((64, 64), (40, 96), (96, 40), (48, 64))  # h, w
NAMES = ("bright", "dark", "rare")
MIXED = {"data.mosaic": 0.5, "data.copy_paste": 0.5, "data.mixup": 0.3}
OPTIONS = {
    "repeat_factor": {"data.sampling": "repeat_factor", "data.repeat_threshold": 0.5, "loss.class_weights": "balanced"},
    "part": {"data.classes": ("dark", "rare"), "data.fraction": 0.8, "data.single_class": True},
    "letterbox": {"data.resize": "letterbox", "model.resolution": (64, 96), "data.augment": "aerial"},
    "mixed": MIXED,
    "mixed in their own shapes": {**MIXED, "data.resize": "letterbox",
                                  "data.augment": [{"class_path": "torchvision.transforms.v2.RandomVerticalFlip"}]},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def write_split(folder: Path, num_images: int, names: tuple[str, ...] = NAMES) -> None:
    """Write pictures of several shapes with one or two rectangles, which have masks; the third class is on every sixth."""
    folder.mkdir(parents=True)
    generator, images, annotations = np.random.default_rng(num_images), [], []
    for number in range(num_images):
        height, width = SIZES[number % len(SIZES)]
        pixels = generator.integers(90, 160, (height, width, 3)).astype(np.uint8)
        for place in range(1 + number % 2):
            (x, y), (w, h) = generator.integers(2, 8, 2).tolist(), generator.integers(8, 12, 2).tolist()
            x, y = (x + place * width // 2, y) if width >= height else (x, y + place * height // 2)
            label = 2 if number % 6 == 5 and place else number % 2
            pixels[y : y + h, x : x + w] = (240, 20, 128)[label]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 1 + label, "bbox": [x, y, w, h],
                                "area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": 1 + label, "name": name} for label, name in enumerate(names)]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data") / "set"
    for split, num_images in (("train", 24), ("valid", 6)):
        write_split(root / split, num_images)
    return str(root)


def config(data: str, folder: Path = Path("unused"), **settings):
    return faults.config(data, folder, **{"model.variant": "pico_seg", "model.group_detr": 1, "data.augment": "default",
                                          "data.multi_scale": True, **settings})


def batches(run, epoch: int = 1, start_batch: int = 0) -> list[tuple]:
    """Normalised images, masks of the padding, and targets of the batches of an epoch, from a batch on."""
    loader = build_train_loader(run, open_run_data(run), torch.device("cpu"))
    loader.batch_sampler.set_epoch(epoch, start_batch)
    found = [(samples.to("cpu"), targets) for samples, targets in loader]
    none = [torch.zeros(len(samples), *samples.shape[2:], dtype=torch.bool) for samples, _ in found]
    return [(samples.tensors, zeros if samples.mask is None else samples.mask, targets)
            for zeros, (samples, targets) in zip(none, found)]


def flat(found: list[tuple]) -> list[torch.Tensor]:
    return [tensor for tensors, mask, targets in found
            for tensor in (tensors, mask, *(value for target in targets for _, value in sorted(target.items())))]


def same(one: list[tuple], other: list[tuple]) -> bool:
    pairs = list(zip(flat(one), flat(other), strict=True))
    return bool(pairs) and all(torch.equal(*pair) for pair in pairs)


@every_option
def test_samples_do_not_depend_on_workers_processes_or_storage(data, tmp_path, monkeypatch, options):
    run = config(data, **options, **{"data.batch_size": 4})
    whole = batches(run)
    assert not same(whole, batches(run, epoch=0)) and same(whole[2:], batches(run, start_batch=2))
    assert same(whole, batches(replace(run, data=replace(run.data, num_workers=2))))
    assert same(whole, batches(replace(run, data=replace(run.data, cache="ram"))))
    pack_dataset(Path(data), tmp_path / "shards")
    assert same(whole, batches(replace(run, data=replace(run.data, dataset_dir=str(tmp_path / "shards")))))
    monkeypatch.setattr(run_data, "world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(run_data, "rank", lambda rank=rank: rank)
        halves.append(batches(replace(run, data=replace(run.data, batch_size=2))))
    joined = [(torch.cat([one[0], two[0]]), torch.cat([one[1], two[1]]), one[2] + two[2]) for one, two in zip(*halves)]
    assert same(whole, joined)


def test_a_run_that_was_stopped_in_an_epoch_goes_on_with_the_same_bits(data, tmp_path):
    settings = {**OPTIONS["repeat_factor"], **MIXED, "data.resize": "letterbox", "data.fraction": 0.8, "data.classes": NAMES,
                "data.batch_size": 4, "train.epochs": 2, "eval.sets": {"night": data}}
    train(config(data, tmp_path / "straight", **settings))
    stopped = config(data, tmp_path / "stopped", **settings)
    trainer = build_trainer(stopped)
    hook = next(hook for hook in trainer.hooks if hook.name == "InterruptHook")
    hook.after_step = lambda trainer: trainer.interrupt("stopped") if trainer.step == trainer.steps_per_epoch + 2 else None
    trainer.train()
    assert trainer.epoch_step == 2
    train(stopped, resume="auto")
    assert not faults.same_results(tmp_path / "straight", tmp_path / "stopped")


def test_a_bad_partner_is_not_mixed_in(tmp_path):
    write_split(tmp_path / "set" / "train", 8)
    write_split(tmp_path / "set" / "valid", 2)
    settings = {"data.mosaic": 1.0, "data.augment": "none", "data.on_bad_image": "skip", "data.max_bad_images": 0.5}
    whole = open_run_data(config(str(tmp_path / "set"), **settings)).train_set
    keys = [SampleKey(position % 8, 7, 0, position) for position in range(40)]
    expected = [whole[key] for key in keys]
    (tmp_path / "set" / "train" / "3.png").write_bytes(b"no picture")
    broken = open_run_data(config(str(tmp_path / "set"), **settings)).train_set
    found = [broken[key] for key in keys]
    assert [key.index for key, (_, target) in zip(keys, found) if "bad_image" in target] == [3] * 5
    is_same = [torch.equal(image, other) for (image, _), (other, _) in zip(expected, found)]
    assert 5 < sum(is_same) < 30, "those without it"
    for key, (image, _), same_as_before in zip(keys, found, is_same):
        if not same_as_before and key.index != 3:
            assert torch.equal(image, replaced(broken, mixing=None)[key][0])
    with pytest.raises(InputError, match=r"3\.png"):
        [replaced(broken, on_bad_image="fail")[key] for key in keys if key.index != 3]


def replaced(dataset, **changes):
    """Return a data set with other attributes."""
    other = copy.copy(dataset)
    vars(other).update(changes)
    return other


def test_weights_of_classes_by_name_and_balanced(data, caplog):
    """24 images: 12 with a bright box, 20 boxes dark, 4 rare."""
    caplog.set_level(logging.INFO)
    opened = open_run_data(config(data))
    weights = class_weights(replace(config(data).loss, class_weights="balanced"), opened)
    counts = np.array([12, 20, 4])
    assert opened.train_set.class_counts().tolist() == counts.tolist()
    np.testing.assert_allclose(weights[:3], 12 / counts)
    assert "loss.class_weights: bright 1, dark 0.6, rare 3" in caplog.text
    assert class_weights(replace(config(data).loss, class_weights={"Rare": 4.0}), opened) == [1, 1, 4, 1]
    with pytest.raises(InputError, match=r"loss\.class_weights: there is no class 'rara'; the classes are bright, dark, rare"):
        class_weights(replace(config(data).loss, class_weights={"rara": 4.0}), opened)
    with pytest.raises(InputError, match=r"^loss\.class_weights: Rare, rare are one class"):
        class_weights(replace(config(data).loss, class_weights={"Rare": 4.0, "dark": 1.0, "rare": 3.0}), opened)
    assert class_weights(config(data).loss, opened) is None


def test_factors_that_repeat_nothing_are_said(data, caplog):
    build_train_loader(config(data, **{"data.sampling": "repeat_factor"}), open_run_data(config(data)), torch.device("cpu"))
    assert "repeat_factor repeats nothing, since each class is on 0.1 of the images or more" in caplog.text


def test_a_part_of_the_classes_and_of_the_images(data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    opened = open_run_data(config(data, **{"data.classes": ("Rare", "dark")}))
    assert opened.label_map.names == ["dark", "rare"] and opened.architecture.num_classes == 2
    assert opened.train_set.class_counts().tolist() == [20, 4] and len(opened.train_set) == 24
    assert opened.val_set.num_images == 6 and opened.val_set.label_map == opened.label_map
    assert "data.classes: dark, rare: 24 of the 36 objects of" in caplog.text
    assert "left out" not in caplog.text
    with pytest.raises(InputError, match=r"^data\.classes: there is no class 'cat'; the classes are bright, dark, rare$"):
        open_run_data(config(data, **{"data.classes": ("dark", "cat")}))
    one = open_run_data(config(data, **{"data.single_class": True}))
    assert one.label_map.names == ["object"] and one.train_set.class_counts().tolist() == [36] and one.val_set.num_boxes == 9
    assert "data.single_class: the 3 classes of" in caplog.text
    write_split(tmp_path / "set" / "train", 24)
    write_split(tmp_path / "set" / "valid", 6, names=("cat", "dog", "cow"))
    other = str(tmp_path / "set")
    assert open_run_data(config(other, **{"data.single_class": True})).val_set.num_boxes == 9, "names that differ do not matter"
    with pytest.raises(InputError, match="classes are not those of the train split"):
        open_run_data(config(other))
    ids = [{part.train_set.image_id(index) for index in range(len(part.train_set))} for part in (
        open_run_data(config(data, **{"data.fraction": fraction})) for fraction in (0.01, 0.25, 0.5, 1.0))]
    assert [len(found) for found in ids] == [1, 6, 12, 24] and ids[0] < ids[1] < ids[2] < ids[3]
    assert "data.fraction: 0.25: 6 of the 24 images of" in caplog.text


def test_further_sets_are_evaluated_by_name_of_their_classes(data, tmp_path, caplog):
    """Of the second set the ids are others, and one class is unknown."""
    caplog.set_level(logging.INFO)
    write_split(tmp_path / "night" / "test", 12, names=("dark", "bright", "other"))
    sets = {"day": data, "night": str(tmp_path / "night")}
    results = train(config(data, tmp_path / "run", **{"eval.sets": sets, "model.variant": "pico", "data.batch_size": 4}))
    metrics = results["best"]["metrics"]
    names = [name.removeprefix("val/") for name in metrics if name.startswith("val/")]
    assert {f"{name}/{metric}" for name in ("night", "day") for metric in names if "rare" not in metric} <= metrics.keys()
    assert all(metrics[f"day/{name}"] == metrics[f"val/{name}"] for name in names), "the same pictures"
    assert "test split: 12 images" in caplog.text
    assert "eval.sets: night: evaluated is the test split of" in caplog.text and "'dark' (id 1) is 'dark' (id 2)" in caplog.text
    lines = [line for line in faults.lines(tmp_path / "run") if "val/mAP_50" in line]
    assert all("night/ema_mAP_50" in line and "night/AP/dark" in line for line in lines) and len(lines) == 2


def test_a_checkpoint_is_evaluated_on_the_sets_of_its_run(data, tmp_path, capsys, caplog):
    write_split(tmp_path / "night" / "test", 12, names=("dark", "bright", "other"))
    sets = {"day": data, "night": str(tmp_path / "night")}
    train(config(data, tmp_path / "run", **{"eval.sets": sets, "model.variant": "pico", "data.batch_size": 4, "train.epochs": 1}))
    path = tmp_path / "run" / "checkpoint_best_regular.pth"
    content = read_checkpoint(path)
    found = evaluate(path)
    logged = {name: value for name, value in content["metrics"].items() if "/ema_" not in name}
    assert found["metrics"] == pytest.approx(logged, abs=1e-6, nan_ok=True) and "night/AP/dark" in logged
    assert found["sets"].keys() == sets.keys() and found["sets"]["night"]["per_class"]["dark"]["objects"] > 0
    assert commands.validate(["--checkpoint", str(path), "--eval.sets", json.dumps({"night": sets["night"]})]) == 0
    printed = capsys.readouterr().out
    assert "val split, boxes" in printed and "set night, boxes" in printed and "set day" not in printed
    shutil.rmtree(tmp_path / "night")
    with pytest.raises(InputError, match=r"^eval\.sets: night: .*night: there is no such folder; .*--eval\.sets, {} for none"):
        evaluate(path)
    content["args"]["eval"]["sets"]["night"] = "s3://bucket/night"
    assert evaluate(content)["metrics"].keys() == {name for name in found["metrics"] if name.startswith("val/")}
    assert "eval.sets: {'day'" in caplog.text and "is not taken from a checkpoint" in caplog.text


def test_a_further_set_may_be_a_train_split_and_is_checked_before_the_training(data, tmp_path):
    folder, sets = tmp_path / "dusk", {"eval.sets": {"dusk": str(tmp_path / "dusk")}}
    write_split(folder / "train", 6, names=("dark", "bright", "other"))
    follows = {"optim.schedule": "plateau", "optim.schedule_args": {"metric": "dusk/AP/dark"}}
    build_trainer(config(data, **sets, **follows, **{"data.classes": NAMES}))  # it has no class "rare"
    with pytest.raises(InputError, match=r"^optim\.schedule_args: metric: 'dawn/mAP_50' is not measured"):
        build_trainer(config(data, **sets, **{**follows, "optim.schedule_args": {"metric": "dawn/mAP_50"}}))
    (folder / "train" / "3.png").unlink()
    with pytest.raises(InputError, match=r"(?s)^eval\.sets: dusk: .*1 images that are listed but not there"):
        build_trainer(config(data, **sets))
    write_split(folder / "test", 6, names=("cat", "dog", "cow"))
    with pytest.raises(InputError, match=r"^eval\.sets: dusk: .*none of its classes"):
        build_trainer(config(data, **sets))


def test_mixing_ends_before_the_run_does(data):
    """24 images in batches of 2 are 12 steps an epoch."""
    options = {"data.mosaic": 1.0, "data.mix_off_epochs": 1, "train.epochs": 9}
    for max_steps, end in ((None, 8), (30, 2), (500, 8)):
        run = config(data, **options, **{"train.max_steps": max_steps})
        found = open_run_data(run)
        build_train_loader(run, found, torch.device("cpu"))
        assert found.train_set.mixing.end_epoch == end
    with pytest.raises(InputError, match=r"^data\.mix_off_epochs: with 1 of 1 epochs \(train\.max_steps 12 at 12 steps"):
        batches(config(data, **options, **{"train.max_steps": 12}))


@pytest.mark.parametrize("augment", ["none", "aerial", [{"class_path": "torchvision.transforms.v2.RandomVerticalFlip"}]], ids=str)
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("mixed", [None, "mosaic", "copy_paste"])
def test_boxes_and_masks_are_where_the_pixels_are_and_padding_is_masked(data, resize, augment, mixed):
    run = config(data, **{"data.resize": resize, "data.augment": augment, "model.resolution": (64, 96), "data.batch_size": 6,
                          **({f"data.{mixed}": 1.0} if mixed else {})})
    (val_image, val_target), fills = open_run_data(run).val_set[1], set()
    assert val_target["masks"].shape[1:] == SIZES[1] and torch.equal(val_target["orig_size"], torch.tensor(SIZES[1]))
    assert tuple(val_image.shape[1:]) == ((32, 96) if resize == "letterbox" else (64, 96))  # 40 x 96, to whole patches of 16
    for images, masks, targets in batches(run):
        canvas = targets[0].get("canvas", targets[0]["size"]).tolist()
        assert images.shape == (6, 3, *canvas) and masks.shape == (6, *canvas), "that of the step, whatever is on it"
        for image, mask, target in zip(images, masks, targets):
            height, width = target["size"].tolist()
            fills.add([height, width] == canvas)
            assert not mask[:height, :width].any() and mask[height:].all() and mask[:, width:].all()
            assert not image[:, mask].any() and target["masks"].shape[1:] == mask.shape
            for box, shown, label in zip(target["boxes"], target["masks"], target["labels"]):
                if label == 2 or shown.sum() < 9:
                    continue
                rows, columns = shown.any(1).nonzero().flatten(), shown.any(0).nonzero().flatten()
                found = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                x, y, w, h = (box * torch.tensor([width, height, width, height])).tolist()
                assert found.tolist() == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=1.5)
                assert image[0][shown].median() > 1 if label == 0 else image[0][shown].median() < -1
    assert fills == ({True, False} if resize == "letterbox" and mixed != "mosaic" else {True})


def test_the_shape_of_pictures_is_in_the_checkpoint_for_evaluation_and_prediction(data, tmp_path):
    settings = {"data.resize": "letterbox", "data.batch_size": 4, "train.epochs": 1, "model.variant": "pico_seg"}
    run = config(data, tmp_path / "run", **settings)
    trainer = build_trainer(run)
    trainer.train()
    best = tmp_path / "run" / "checkpoint_best_regular.pth"
    measured = evaluate(best)["metrics"]
    assert measured == {name: value for name, value in trainer.metrics.items() if name in measured}
    checkpoint = read_checkpoint(best)
    assert config_of(checkpoint, {}).data.resize == "letterbox"
    assert config_of(checkpoint, {"data": {"resize": "stretch"}}).data.resize == "stretch"
    model, val_set, postprocess = trainer.eval_models["regular"].eval(), open_run_data(run).val_set, PostProcess(10)
    for index in (1, 2):  # a wide and a tall picture
        samples, (target,) = collate([val_set[index]])
        (expected,) = postprocess(model(samples.to("cpu")), target["orig_size"][None])
        (found,) = load(best, "cpu").predict(val_set.image_path(index), threshold=0.0)
        assert found.masks.shape[1:] == SIZES[index]
        for name in ("boxes", "scores", "labels", "masks"):
            wanted = expected[name][expected["labels"] < len(NAMES)]
            torch.testing.assert_close(torch.from_numpy(getattr(found, name)), wanted[:, 0] if name == "masks" else wanted)


def test_masks_of_a_padded_image_are_cut_from_the_input():
    logits = torch.full((1, 1, 8, 8), -1.0)
    logits[0, 0, :2, :8] = 1.0  # the upper half of the image, which is the upper half of the input
    outputs = {"pred_logits": torch.ones(1, 1, 1), "pred_boxes": torch.tensor([[[0.5, 0.25, 1.0, 0.5]]]), "pred_masks": logits,
               "valid_extent": torch.tensor([[0.5, 1.0]])}
    (result,) = PostProcess(1)(outputs, torch.tensor([[40, 80]]))
    assert result["boxes"].tolist() == [[0, 0, 80, 20]]
    assert result["masks"][0, 0].any(1).nonzero().flatten().tolist() == list(range(20))


class Pairs(torch.utils.data.Dataset):
    class_names = NAMES

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        return torch.zeros(3, 64, 64), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}


@pytest.mark.parametrize(("options", "named"), [
    (OPTIONS["repeat_factor"], "data.sampling, loss.class_weights"),
    (OPTIONS["part"], "data.classes, data.single_class, data.fraction"),
    (MIXED, "data.mosaic, data.copy_paste, data.mixup"),
], ids=str)  # fmt: skip
def test_what_needs_annotations_is_refused_for_a_data_set_of_ones_own(data, options, named):
    with pytest.raises(InputError, match=f"^train_set: {named} cannot act"):
        open_run_data(config(data, **options), Pairs(), Pairs())


def test_a_data_set_of_ones_own_is_letterboxed_too(data):
    class Wide(Pairs):
        def __getitem__(self, index: int):
            return np.zeros((20, 60, 3), np.uint8), {"boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]]), "labels": [0],
                                                     "masks": torch.ones(1, 20, 60)}

    run = config(data, **{"data.resize": "letterbox", "data.multi_scale": False, "model.resolution": 96})
    opened = open_run_data(run, Wide(), Wide())
    (samples, (target, _)), *_ = build_train_loader(run, opened, torch.device("cpu"))
    assert samples.shape == (2, 3, 96, 96) and (~samples.mask[0]).nonzero().max(0).values.tolist() == [31, 95]
    assert torch.equal(target["masks"][0], ~samples.mask[0])
    assert opened.val_set[0][0].shape == (3, 32, 96) and opened.val_set[0][1]["masks"].shape == (1, 20, 60)
