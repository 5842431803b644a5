"""The packing tool: what it writes, that it leaves nothing half done, and its messages."""

import json
import tarfile

import pytest

from rfdetr.data.packing import pack_dataset
from rfdetr.errors import InputError
from rfdetr.training import commands


def pack(dataset_dir, output, *options):
    return commands.pack(["--dataset_dir", str(dataset_dir), "--output", str(output), *options])


def test_all_splits_are_packed(dataset_dir, tmp_path, capsys):
    output = tmp_path / "some" / "shards"
    assert pack(dataset_dir, output) == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "categories.json", "test-000000.tar", "test.json", "train-000000.tar", "train.json", "val-000000.tar", "val.json"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("train: 24 images, 24 objects in 1 shards, ") and printed[-1].endswith(str(output))
    assert [path.name for path in output.parent.iterdir()] == ["shards"]
    index = json.loads((output / "val.json").read_text())
    image = index["images"][1]
    shard, _, member = image["file_name"].partition("/")
    with tarfile.open(output / shard) as tar:
        assert tar.getmember(member).offset_data == image["offset"] and tar.getmember(member).size == image["length"]
        content = json.loads(tar.extractfile("000000000001.json").read())
    original = json.loads((dataset_dir / "valid" / "_annotations.coco.json").read_text())
    assert content["annotations"][0]["bbox"] == original["annotations"][1]["bbox"]
    assert content["file_name"] == original["images"][1]["file_name"] and not content["annotations"][0]["segmentation"]
    assert [row["name"] for row in index["categories"]] == ["bright", "dark"]


def test_same_data_give_the_same_bytes_also_from_shards(dataset_dir, tmp_path):
    for name, source in (("a", dataset_dir), ("b", dataset_dir), ("c", tmp_path / "a")):
        pack(source, tmp_path / name)
    files = {name: [path.read_bytes() for path in sorted((tmp_path / name).glob("*-*.tar"))] for name in "abc"}
    assert files["a"] == files["b"]
    assert [len(data) for data in files["c"]] == [len(data) for data in files["a"]]


def test_shards_are_closed_at_their_size(write_split, tmp_path):
    write_split(tmp_path / "data" / "train", 3)
    pack_dataset(tmp_path / "data", tmp_path / "shards", shard_mb=0.001)
    assert [path.name for path in sorted((tmp_path / "shards").glob("*.tar"))] == [
        "train-000000.tar", "train-000001.tar", "train-000002.tar"]


def test_nothing_is_written_over(dataset_dir, tmp_path):
    output = tmp_path / "shards"
    output.mkdir()
    (output / "mine.txt").write_text("dear to me")
    with pytest.raises(InputError, match="--output .*shards: exists and is not an empty folder"):
        pack(dataset_dir, output)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    (output / "mine.txt").unlink()
    assert pack(dataset_dir, output) == 0
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(InputError, match="other.partial: exists, so .*other is being made"):
        pack(dataset_dir, tmp_path / "other")


@pytest.mark.parametrize("break_it, message", [
    (lambda folder: (folder / "7.png").unlink(), "train/7.png: there is no such image file"),
    (lambda folder: (_rename_in_json(folder, "7.png", "7"), (folder / "7.png").rename(folder / "7")),
     "'7' has none of the endings .jpg, .jpeg, "),
    (lambda folder: (folder / "_annotations.coco.json").write_text("[]"), "holds a list"),
])
def test_a_failure_leaves_nothing(write_split, tmp_path, break_it, message):
    write_split(tmp_path / "data" / "train", 8)
    break_it(tmp_path / "data" / "train")
    with pytest.raises(InputError, match=message):
        pack(tmp_path / "data", tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def _rename_in_json(folder, old: str, new: str, file: str = "_annotations.coco.json") -> None:
    path = folder / file
    path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))


def test_wrong_arguments(dataset_dir, tmp_path):
    with pytest.raises(InputError, match="--shard_mb 0: it must be 1 or more"):
        pack(dataset_dir, tmp_path / "shards", "--shard_mb", "0")
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        pack(tmp_path / "nowhere", tmp_path / "shards")


def test_what_would_change_nothing_is_refused(dataset_dir, tmp_path):
    for flag in ('--data.classes=["dark"]', "--data.fraction=0.5", "--data.batch_size=2", "--train.epochs=2"):
        with pytest.raises(InputError, match=f"^{flag.split('=')[0]}: changes nothing here"):
            pack(dataset_dir, tmp_path / "shards", flag)
    (tmp_path / "run.yaml").write_text("data: {batch_size: 2, fraction: 0.5}\ntrain: {epochs: 2}\n")
    with pytest.raises(InputError, match="^--data.fraction: changes nothing here"):
        pack(dataset_dir, tmp_path / "shards", "--cfg", str(tmp_path / "run.yaml"))
    with pytest.raises(InputError, match="^--data.fraction: changes nothing here"):
        commands.convert([f"--dataset_dir={dataset_dir}", "--to=yolo", f"--output={tmp_path / 'yolo'}", "--data.fraction=0.5"])
    assert pack(dataset_dir, tmp_path / "shards", "--cfg", str(tmp_path / "run.yaml"), "--data.fraction", "1") == 0


def test_the_options_of_the_data_are_the_run_s(write_split, tmp_path, capsys):
    """One undivided file, whose share of val and whose picture in another folder are chosen by a configuration."""
    write_split(tmp_path / "data", 12)
    (tmp_path / "data" / "_annotations.coco.json").rename(tmp_path / "data" / "result.json")
    (tmp_path / "data" / "7.png").rename(tmp_path / "7.png")
    _rename_in_json(tmp_path / "data", "7.png", "../7.png", file="result.json")
    (tmp_path / "run.yaml").write_text(f"data: {{dataset_dir: {tmp_path / 'data'}, val_fraction: 0.5}}")
    options = ["--cfg", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "shards")]
    with pytest.raises(InputError, match="data.allow_outside"):
        commands.pack(options)
    commands.pack([*options, "--data.allow_outside", "true"])
    counts = [int(line.split()[1]) for line in capsys.readouterr().out.splitlines()[:2]]
    assert sum(counts) == 12 and min(counts) >= 3
    splits = f"{{train: {{annotations: result.json, images: {tmp_path / 'data'}}}}}"
    commands.pack([*options[:3], str(tmp_path / "named"), "--data.allow_outside", "true", "--data.splits", splits])
    assert capsys.readouterr().out.startswith("train: 12 images")
