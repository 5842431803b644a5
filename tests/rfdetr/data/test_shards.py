"""Shards give the samples of the files that they were packed from, from any storage, for any number of workers and ranks."""

import json
import os
import re
import subprocess
import sys
import tarfile

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from rfdetr.data import available_splits, detect_format, open_dataset, train_loader
from rfdetr.data.findings import Findings
from rfdetr.data.formats import read_split
from rfdetr.data.packing import pack_dataset
from rfdetr.data.shards import list_folder
from rfdetr.errors import InputError

SHARD_MB = 0.008  # megabytes; two or three of the small pictures


@pytest.fixture
def content(coco_content):
    """12 images with polygons, and run lengths as a compressed string."""
    made = coco_content(12, extension="jpg")
    runs = coco_mask.encode(coco_mask.decode(coco_mask.frPyObjects(made["annotations"][-1]["segmentation"], 60, 80)))
    made["annotations"][-1]["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
    return made


@pytest.fixture
def folder(write_roboflow, content, coco_content):
    return write_roboflow(train=content, valid=coco_content(5))


@pytest.fixture
def packed(folder, tmp_path):
    pack_dataset(folder, tmp_path / "packed", shard_mb=SHARD_MB)
    return tmp_path / "packed"


@pytest.fixture
def memory(packed):
    """The shards in fsspec's storage in memory."""
    storage = fsspec.filesystem("memory")
    storage.put(str(packed), "/bucket/packed", recursive=True)
    yield "memory://bucket/packed"
    storage.rm("/bucket", recursive=True)


def flat(value) -> list[torch.Tensor]:
    """All tensors of samples or batches, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if hasattr(value, "tensors"):
        return [value.tensors]
    return [tensor for part in (value.values() if isinstance(value, dict) else value) for tensor in flat(part)]


def assert_same(samples, expected) -> None:
    samples, expected = flat(list(samples)), flat(list(expected))
    assert len(samples) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(samples, expected))


def open_train(dataset_dir, **options):
    return open_dataset(dataset_dir, "train", **{"training": True, "image_size": (32, 32), "augment": "light", **options})


def loader(dataset_dir, **options):
    return train_loader(open_train(dataset_dir), **{"batch_size": 2, "seed": 3, "num_workers": 0, **options})


def edit_index(packed, change) -> None:
    content = json.loads((packed / "train.json").read_text())
    change(content)
    (packed / "train.json").write_text(json.dumps(content))


def refused(dataset_dir, **options) -> str:
    """Return the message with which a data set is refused."""
    with pytest.raises(InputError) as caught:
        open_train(dataset_dir, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_index", [True, False])
def test_same_samples_as_from_files(folder, packed, training, with_index, class_counts):
    assert detect_format(packed) == "shards" and available_splits(packed) == ("train", "val")
    assert len(list(packed.glob("train-*.tar"))) > 2
    if not with_index:
        (packed / "train.json").unlink()
    files, shards = (open_train(source, training=training, with_masks=True) for source in (folder, packed))
    assert class_counts(shards) == class_counts(files) and shards.report == files.report
    assert shards.label_map == files.label_map
    assert_same(shards, files)


def test_addresses(packed, memory, monkeypatch):
    expected = list(loader(packed))
    for address in (packed.as_uri(), memory, memory + "/"):
        assert_same(loader(address), expected)
    monkeypatch.chdir(packed.parent)
    assert_same(loader("packed"), expected)
    fsspec.filesystem("memory").rm("/bucket/packed/train.json")
    assert_same(loader(memory), expected)


def test_same_batches_for_any_number_of_workers_and_after_a_resume(folder, packed):
    expected = list(loader(folder))
    for num_workers in (0, 1, 4):
        batches = loader(packed, num_workers=num_workers)
        assert_same(batches, expected)
        batches.batch_sampler.set_epoch(0, start_batch=4)
        assert_same(batches, expected[4:])


@pytest.mark.slow
def test_spawned_workers(packed):
    assert_same(loader(packed, num_workers=1, start_method="spawn"), loader(packed))


def test_ranks_see_different_images(packed):
    seen = [target["image_id"].item() for rank in (0, 1)
            for _, targets in loader(packed, batch_size=1, rank=rank, world_size=2) for target in targets]
    assert sorted(seen) == list(range(10, 22))


def test_our_shards_in_the_webdataset_package(folder, packed):
    webdataset = pytest.importorskip("webdataset")
    dataset = webdataset.WebDataset(sorted(map(str, packed.glob("train-*.tar"))), shardshuffle=False).decode("rgb8")
    samples = {sample["json"]["id"]: sample for sample in dataset}
    original = json.loads((folder / "train" / "_annotations.coco.json").read_text())
    assert list(samples) == [image["id"] for image in original["images"]]
    boxes = [row["bbox"] for row in original["annotations"] if row["image_id"] == 12]
    assert [row["bbox"] for row in samples[12]["json"]["annotations"]] == boxes and len(boxes) == 2
    assert samples[12]["jpg"].shape == (60, 80, 3) and samples[12]["json"]["file_name"] == "picture_2.jpg"


def test_shards_of_the_webdataset_package(folder, content, tmp_path):
    """With its own writer, without an index, and with members that we have no use for."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=5, verbose=0) as writer:
        for image in content["images"]:
            annotations = [row for row in content["annotations"] if row["image_id"] == image["id"]]
            picture = (folder / "train" / image["file_name"]).read_bytes()
            writer.write({"__key__": f"some/{image['id']}", "jpg": picture, "json": {**image, "annotations": annotations},
                          "cls": 3, "seg.png": b"x"})
    assert "categories.json: there is no such file" in refused(tmp_path)
    (tmp_path / "categories.json").write_text(json.dumps({"categories": content["categories"]}))
    assert_same(open_train(tmp_path, with_masks=True), open_train(folder, with_masks=True))


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("cut", ["in a picture", "in a header", "behind the last member"])
def test_truncated_shard(packed, with_index, cut):
    shard = packed / "train-000001.tar"
    with tarfile.open(shard) as tar:
        last, picture = tar.getmembers()[-1], tar.getmembers()[-2]
    places = {"in a picture": picture.offset_data + 100, "in a header": last.offset + 100,
              "behind the last member": last.offset_data + last.size}
    os.truncate(shard, places[cut])
    if not with_index:
        (packed / "train.json").unlink()
    elif cut != "in a picture":  # of what the index lists, all is there
        assert len(list(loader(packed))) == 6
        return
    message = refused(packed)
    assert message.startswith(f"{shard}: ") and "copy the shards" in message


def test_missing_shard(packed):
    (packed / "train-000001.tar").unlink()
    assert re.search(r"train.json: lists \d shards, of which 1 are not there \(train-000001.tar\); copy", refused(packed))


def test_shard_that_is_lost_during_the_training(packed):
    dataset = open_train(packed)
    (packed / "train-000000.tar").unlink()
    with pytest.raises(InputError, match=r"train-000000.tar/000000000010.jpg: there is no such file"):
        dataset[0]
    (packed / "train-000000.tar").write_bytes(b"x" * 600)
    with pytest.raises(InputError, match="0010.jpg: 88 bytes came for this picture of .* the shard is not complete"):
        dataset[0]


@pytest.mark.parametrize("address, message", [
    ("memory://nothing/here", "memory://nothing/here: there is no such file or folder"),
    ("nope://bucket/here", "nope://bucket/here: shards are not read from this kind of address; .* s3://, gs://"),
    ("reference:///tmp/x.json", "not read from this kind of address"), ("ssh://host/data", "not read from this kind of address"),
    ("simplecache::memory://bucket", "not read from this kind of address"), ("reference::x.json", "this kind of address"),
    ("memory://x::reference://y", "hold no '::'"), ("S3://bucket", "this kind of address"),
])
def test_bad_address(address, message):
    assert re.search(message, refused(address))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert re.search("^s3://bucket/folder: Install s3fs .*; pip install the package", refused("s3://bucket/folder"))


def test_nothing_at_an_address(memory):
    fsspec.filesystem("memory").pipe_file("/bucket/else/notes.txt", b"")
    message = refused("memory://bucket/else")
    assert "Expected shards: train-000000.tar" in message and message.endswith("holds: notes.txt")
    assert "only shards are read from an address" in refused(memory, format="coco")


@pytest.mark.parametrize("change, message", [
    (lambda content: content["images"][3].pop("offset"), "not an index of shards.*entry 3 of images has .*'offset' 'None'"),
    (lambda content: content["images"][3].update(offset=-1), "'offset' '-1'"),
    (lambda content: content["images"][3].update(offset=float("nan")), "'offset' 'nan'"),
    (lambda content: content["images"][3].update(offset=True), "'offset' 'True'"),
    (lambda content: content["images"][3].update(offset="0", length="9"), "'offset' '0', 'length' '9'"),
    (lambda content: content["images"][3].update(length=10**30), "not an index of shards"),
    (lambda content: content["images"][3].update(offset=2**61), "but .*train.json lists pictures up to byte"),
    (lambda content: content["images"][3].update(file_name="../secret/x.jpg"), "shards, of which 1 are not there"),
    (lambda content: content["images"][3].update(file_name="train-000000.tar/\ud800.jpg"), "not an index of shards"),
    (lambda content: content["images"][3].update(file_name="train-000000.tar/" + "x" * 10**6), "not an index of shards"),
    (lambda content: content.pop("images"), "the list 'images' is missing"),
    (lambda content: content["annotations"][0].update(category_id=99), "annotations of a category that the file does not list"),
])
def test_bad_index(packed, change, message):
    edit_index(packed, change)
    with pytest.raises(InputError, match=message):
        open_train(packed)


def test_index_that_is_not_json(packed):
    (packed / "train.json").write_text("{")
    assert "train.json: not valid JSON at line 1" in refused(packed)


def test_picture_without_annotations(packed, tmp_path):
    tar, other = packed / "train-000000.tar", tmp_path / "train-000000.tar"
    subprocess.run(["tar", "--delete", "-f", tar, "000000000010.json"], check=True)
    other.write_bytes(tar.read_bytes())
    (tmp_path / "categories.json").write_bytes((packed / "categories.json").read_bytes())
    assert "train-000000.tar/000000000010.jpg: there is no .json member of the same name" in refused(tmp_path, format="shards")


def test_listing(packed):
    sizes = list_folder(packed)
    assert sizes["train-000000.tar"] == os.path.getsize(packed / "train-000000.tar") and "categories.json" in sizes


def write_tar(path, change) -> None:
    """Write a tar of a picture and its annotations, where `change` may alter the header of a member before it is written."""
    with open(path, "wb") as file:
        for name, content in (("1.jpg", b"picture"), ("1.json", b'{"annotations": []}')):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
            change(name, header)
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            file.write(bytes(header) + content.ljust(512, b"\0"))
        file.write(bytes(1024))


def size_of(number: int, name: str):
    def change(member, header):
        if member == name:
            header[124:136] = (b"\x80" if number >= 0 else b"\xff") + (number % 256**11).to_bytes(11, "big")
    return change


def kind_of(kind: bytes):
    def change(member, header):
        header[156:157] = kind if member == "1.jpg" else b"0"
    return change


@pytest.mark.parametrize("change, message", [
    (size_of(-1024, "1.jpg"), "not possible"), (size_of(-512, "1.json"), "not possible"), (size_of(-1, "1.jpg"), "not possible"),
    (size_of(2**60, "1.jpg"), "bytes, which no picture"), (size_of(2**35, "1.json"), "bytes, which no picture or sample has"),
    (size_of(2**20, "1.json"), "not complete"), (kind_of(b"S"), "without its empty parts"),
    (kind_of(b"x"), "1.json: there is no picture|invalid header"), (kind_of(b"L"), "lists no images"),
    (kind_of(b"2"), "damaged header"),
])
@pytest.mark.timeout(20)
def test_hostile_tar(tmp_path, change, message):
    """Among them are the size below 0 for which some versions of tarfile never end, and a header that newer ones refuse."""
    write_tar(tmp_path / "train-000000.tar", change)
    (tmp_path / "categories.json").write_text('{"categories": [{"id": 1, "name": "cat"}]}')
    assert re.search(message, refused(tmp_path))


NAMES = st.sampled_from(["train-000000.tar/000000000010.jpg", "train-000000.tar", "../x/y.jpg", "train-000001.tar/\0"])
VALUES = st.one_of(NAMES, st.none(), st.booleans(), st.integers(), st.integers(-10, 5000), st.floats(), st.text(max_size=20),
                   st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
KEYS = st.sampled_from(["file_name", "offset", "length", "id", "width", "height"])
CHANGES = st.lists(st.tuples(st.integers(0, 11), KEYS, VALUES), min_size=1, max_size=4)


def assert_any_index_is_read_or_refused(packed, changes) -> None:
    content = json.loads((packed / "train.json").read_text())
    for number, key, value in changes:
        content["images"][number][key] = value
    original = (packed / "train.json").read_text()
    try:
        (packed / "train.json").write_text(json.dumps(content))
        raw = read_split(packed, "train", findings=Findings())
        for name in raw.file_names:
            assert isinstance(raw.open_image(name).read(), bytes)
    except InputError as error:
        assert str(packed) in str(error)
    finally:
        (packed / "train.json").write_text(original)


@pytest.mark.parametrize("examples", [150, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_any_index_is_read_or_refused(packed, examples):
    check = given(changes=CHANGES)(lambda changes: assert_any_index_is_read_or_refused(packed, changes))
    settings(max_examples=examples, deadline=None, derandomize=True, database=None)(check)()
