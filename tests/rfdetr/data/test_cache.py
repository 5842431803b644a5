"""Files kept in memory: what they hold, what they need, and when that is refused; arrays that processes share."""

import io
import logging
import multiprocessing.reduction
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rfdetr.data.cache as cache
from rfdetr.data import open_dataset
from rfdetr.data.annotations import PackedBytes, RawSplit, clean
from rfdetr.data.label_map import Category, LabelMap
from rfdetr.data.shared_memory import SharedArray, share
from rfdetr.errors import InputError


def open_train(folder, **options):
    return open_dataset(folder, "train", training=True, image_size=(32, 32), **options)


def test_memory_is_stated_and_refused_if_it_does_not_fit(write_roboflow, coco_content, monkeypatch, caplog):
    folder = write_roboflow(train=coco_content())
    needed = sum(path.stat().st_size for path in (folder / "train").glob("*.png"))
    monkeypatch.setattr(cache, "free_memory", lambda: int(needed / cache.USABLE_SHARE) + 1)
    with caplog.at_level(logging.INFO):
        open_train(folder, cache="ram")
    assert "the files of 6 images take 0.00 GB of memory" in caplog.text
    monkeypatch.setattr(cache, "free_memory", lambda: needed)
    with pytest.raises(InputError, match="data.cache: ram needs 0.00 GB for the 6 images .*; use none"):
        open_train(folder, cache="ram")


def test_missing_files_stay_missing(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content())
    (folder / "train" / "picture_2.png").unlink()
    dataset = open_train(folder, cache="ram")
    assert dataset[1][0].shape == (3, 32, 32)
    with pytest.raises(InputError, match="picture_2.png: there is no such image file"):
        dataset[2]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, Path.touch])
def test_what_is_no_file_is_named_when_it_is_read(write_roboflow, coco_content, make):
    path = write_roboflow(train=coco_content()) / "train" / "picture_2.png"
    path.unlink()
    make(path)
    dataset = open_train(path.parents[1], cache="ram")
    with pytest.raises(InputError, match="picture_2.png: this is a"):
        dataset[2]


def test_free_memory_is_plausible():
    free = cache.free_memory()
    assert free is None or 1e7 < free < 1e14


def test_shared_array_is_sent_as_a_handle():
    array = np.arange(100_000, dtype=np.float32).reshape(-1, 4)
    shared = share(array)
    assert isinstance(shared, SharedArray) and (shared == array).all() and share(shared) is shared
    buffer = io.BytesIO()
    multiprocessing.reduction.ForkingPickler(buffer).dump(shared)
    assert buffer.tell() < 2000
    assert pickle.loads(pickle.dumps(shared[:3])).tolist() == array[:3].tolist()  # a part travels by value
    texts = share(np.array([b"one", b"three"]))
    assert texts.tolist() == [b"one", b"three"] and share(np.zeros(0)).size == 0


def big_split(num_images: int, boxes_per_image: int) -> RawSplit:
    count = num_images * boxes_per_image
    boxes = np.random.default_rng(0).uniform(0, 300, (count, 4))
    boxes[:, 2:] = boxes[:, :2] + 20
    return RawSplit(
        source="made up", image_root="", image_ids=np.arange(num_images), image_sizes=np.full((num_images, 2), 400),
        file_names=[f"train/images/{index:012d}.jpg" for index in range(num_images)], categories=[Category(1, "thing")],
        image_indices=np.repeat(np.arange(num_images), boxes_per_image), boxes=boxes, category_ids=np.ones(count, dtype=np.int64),
        areas=np.full(count, np.nan), is_crowd=np.zeros(count, dtype=bool))


def test_boxes_take_few_bytes_and_travel_without_a_copy():
    """10 million boxes on a million images: under 0.4 GB, where 1 GB is allowed."""
    annotations, _ = clean(big_split(10_000, 10), LabelMap((1,), ("thing",)), training=True)
    arrays = [value for value in vars(annotations).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) / 100_000 < 40
    for before, size in ((annotations, 3_000_000), (annotations.shared(), 10_000)):
        buffer = io.BytesIO()
        multiprocessing.reduction.ForkingPickler(buffer).dump(before)
        assert (buffer.tell() > size) == (before is annotations)
    assert (annotations.shared().boxes == annotations.boxes).all()


def test_packed_bytes():
    packed = PackedBytes.pack([b"a", b"", b"bcd"])
    assert [packed[i] for i in range(3)] == [b"a", b"", b"bcd"] and len(packed) == 3
    assert packed.shared()[2] == b"bcd"


def test_shards_are_not_cached():
    with pytest.raises(InputError, match="data.cache: ram is for image files"):
        cache.read_files(SimpleNamespace(open_image=print, source="train.json"))
