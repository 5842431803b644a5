"""tools/check_dataset.py: the report in all its forms, exit codes, and the corrected copy."""

import json
import logging
import shutil

import pytest
import yaml
from PIL import Image
from reading import read

from rfdetr.errors import InputError
from rfdetr.training.commands import check, fit
from rfdetr.training.data import check_splits


@pytest.fixture
def dirty(dataset_dir, tmp_path):
    """The tools' data set with two boxes without an area, a double box, and an image that is not there."""
    folder = shutil.copytree(dataset_dir, tmp_path / "dirty")
    path = folder / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    for row in (0, 1):
        content["annotations"][row]["bbox"][2] = 0
    content["annotations"].append({**content["annotations"][2], "id": 999})
    path.write_text(json.dumps(content))
    (folder / "valid" / "3.png").unlink()
    return folder


def test_findings_are_printed_and_make_the_exit_code(dirty, capsys):
    assert check(["--dataset_dir", str(dirty), "--quick"]) == 1
    printed = capsys.readouterr().out
    for text in ("ERROR   images that are listed but not there: val 1\n    val: 3.png (",
                 "WARNING boxes without an area: train 2", "bright", "bright 12, 4", "1 errors (would break or falsify training)",
                 "> copy them there"):
        assert text in printed


def test_warnings_alone_are_no_failure(dirty, capsys):
    shutil.copy(dirty / "valid" / "1.png", dirty / "valid" / "3.png")
    assert check(["--dataset_dir", str(dirty), "--quick", "--resolution", "560"]) == 0
    assert "input 560 x 560 pixels, 300 queries" in capsys.readouterr().out


def test_report_as_json_and_picture(dirty, tmp_path):
    check(["--dataset_dir", str(dirty), "--output", str(tmp_path / "out"), "--resolution", "pico"])
    content = json.loads((tmp_path / "out" / "check.json").read_text())
    assert content["input_size"] == [256, 256] and content["num_queries"] == 100 and content["format"] == "roboflow"
    assert content["splits"]["train"]["class_counts"] == {"bright": 12, "dark": 11}
    found = {(row["split"], row["name"]): row for row in content["findings"]}
    assert found["train", "zero_size"]["count"] == 2 and found["val", "missing_image"]["severity"] == "error"
    width, height = Image.open(tmp_path / "out" / "check.png").size
    assert width == 1600 and height > 1500


def test_the_corrected_copy_passes_with_the_file_that_it_comes_with(dirty, tmp_path, capsys):
    assert check(["--dataset_dir", str(dirty), "--fix", str(tmp_path / "fixed")]) == 1
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed.partition("which holds\n\n")[2])["data"]["splits"]["train"]["annotations"] == "train.json"
    assert check(["--cfg", str(tmp_path / "fixed" / "splits.yaml"), "--quick"]) == 0
    printed = capsys.readouterr().out
    assert "without an area" not in printed and "second boxes" not in printed


def test_training_refuses_errors_and_says_what_it_will_evaluate(dirty, config_file, tmp_path, caplog):
    argv = ["--cfg", config_file, "--data.dataset_dir", str(dirty), "--train.output_dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"(?s)cannot be used.*val: 1 images that are listed but not there \(3\.png "):
        fit(argv)
    with caplog.at_level(logging.INFO):
        check_splits(read(*argv, "--data.on_bad_image", "skip", "--eval.run_test", "true"))
    assert "train: 2 boxes without an area" in caplog.text and "listed but not there" in caplog.text
    assert "evaluated during training: the val split, 8 images with 8 boxes" in caplog.text
    assert "evaluated at the end: the test split, 4 images with 4 boxes" in caplog.text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"data\.dataset_dir: is not set"),
        (["--dataset_dir", "nowhere"], "there is no such folder"),
        (["--dataset_dir", ".", "--resolution", "huge"], "--resolution huge"),
        (["--dataset_dir", ".", "--quick", "--decode"], "--quick opens no image"),
        (["--dataset_dir", ".", "--fix", "."], "not an empty folder"),
    ],
)
def test_bad_input(argv, message):
    with pytest.raises(InputError, match=message):
        check(argv)
