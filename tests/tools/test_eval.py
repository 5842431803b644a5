"""tools/eval.py: the numbers of training again, from the checkpoint alone."""

import json
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from rfdetr import VARIANTS, build_model, official_state_dict
from rfdetr.data.converting import convert_dataset
from rfdetr.errors import InputError
from rfdetr.training import evaluate as evaluate_file
from rfdetr.training.commands import validate
from rfdetr.weights import read_checkpoint


@pytest.fixture
def evaluate(finished_run, tmp_path):
    """Evaluate a file of the finished run and return the JSON that was written."""

    def run(*argv: str, name: str = "checkpoint_best_total.pth") -> dict:
        output = tmp_path / "folder" / "eval.json"
        assert validate(["--checkpoint", str(finished_run / name), "--output", str(output), *argv]) == 0
        return json.loads(output.read_text())

    return run


@pytest.mark.parametrize(("name", "prefix"), [("regular", "val/"), ("ema", "val/ema_")])
def test_it_gives_the_logged_metrics(evaluate, finished_run, name, prefix):
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    logged = max((line for line in lines if "val/mAP_50_95" in line), key=lambda line: line[f"{prefix}mAP_50_95"])
    metrics = evaluate(name=f"checkpoint_best_{name}.pth")["metrics"]
    assert len(metrics) > 12  # so short a run may find nothing: that values above 0 agree is shown by .ci/run
    for key, value in metrics.items():
        assert value == pytest.approx(logged[prefix + key.removeprefix("val/")], abs=1e-6)


def test_it_prints_cocos_twelve_numbers_and_the_classes(evaluate, capsys):
    content = evaluate()
    printed = capsys.readouterr().out
    assert len(content["coco"]) == 12
    for name, value in content["coco"].items():
        assert f"{value:.4f}" in printed, name
    assert list(content["per_class"]) == ["bright", "dark"]
    assert content["per_class"]["bright"]["objects"] == 4
    assert content["per_class"]["dark"]["AP"] == content["metrics"]["val/AP/dark"]


def test_the_test_split_gives_what_training_wrote_at_its_end(evaluate, finished_run):
    expected = json.loads((finished_run / "results.json").read_text())["test"]
    assert evaluate("--split", "test")["metrics"] == pytest.approx(expected, abs=1e-6)


def test_overrides_go_over_the_settings_of_the_checkpoint(evaluate, dataset_dir, tmp_path, write_split):
    moved = shutil.copytree(dataset_dir, tmp_path / "moved")
    shutil.rmtree(moved / "valid")
    write_split(moved / "valid", 5)
    content = evaluate("--data.dataset_dir", str(moved), "--eval.per_class", "false")
    assert content["per_class"]["bright"]["objects"] == 3
    assert "val/AP/bright" not in content["metrics"]


@pytest.mark.parametrize("how", ["command", "python"])
def test_other_data_are_found_by_looking_and_nothing_is_to_be_deleted(evaluate, finished_run, dataset_dir, tmp_path, caplog, how):
    """The checkpoint's run read Roboflow's layout; the other data are YOLO's, frames of one camera, and have faults."""
    folder = tmp_path / "yolo"
    convert_dataset(dataset_dir, folder, to="yolo", pictures="copy")
    (folder / "labels" / "val" / "lost.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    content = read_checkpoint(finished_run / "checkpoint_best_total.pth")
    content["args"]["data"].update(format="roboflow", splits={"val": {"annotations": "gone.json", "images": "gone"}})
    torch.save(content, tmp_path / "other.pth")
    before = evaluate()["metrics"]
    if how == "python":
        metrics = evaluate_file(tmp_path / "other.pth", data={"dataset_dir": str(folder)})["metrics"]
    else:
        metrics = evaluate("--checkpoint", str(tmp_path / "other.pth"), "--data.dataset_dir", str(folder))["metrics"]
    assert metrics == pytest.approx(before, abs=1e-6)
    assert "label files without an image" in caplog.text and not re.search("delete|remove", caplog.text)
    (folder / "images" / "val" / "0.png").write_text("damaged")
    with pytest.raises(InputError, match="images whose size cannot be read") as caught:
        evaluate("--data.dataset_dir", str(folder))
    assert not re.search("delete|remove", str(caught.value))


def test_a_configuration_file_goes_over_the_checkpoint(evaluate, tmp_path):
    (tmp_path / "other.yaml").write_text("eval: {per_class: false}\n")
    assert "val/AP/bright" not in evaluate("--cfg", str(tmp_path / "other.yaml"))["metrics"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--checkpoint FILE: is missing"),
        (["--checkpoint", "nowhere.pth"], r"nowhere\.pth"),
    ],
)
def test_without_a_checkpoint_there_is_nothing_to_evaluate(argv, message):
    with pytest.raises(InputError, match=message):
        validate(argv)


def test_the_same_names_under_other_ids_give_the_same_numbers(evaluate, dataset_dir, tmp_path, caplog):
    folder = shutil.copytree(dataset_dir, tmp_path / "data")
    for path in folder.rglob("_annotations.coco.json"):
        content = json.loads(path.read_text())
        for row, key in [(row, "category_id") for row in content["annotations"]] + [(row, "id") for row in content["categories"]]:
            row[key] = {1: 102, 2: 101}[row[key]]
        path.write_text(json.dumps(content))
    with caplog.at_level("INFO"):
        assert evaluate("--data.dataset_dir", str(folder))["metrics"] == evaluate()["metrics"]
    assert "ids or spellings of classes differ from the label map's, the names decide" in caplog.text


def test_averaged_weights_of_a_whole_checkpoint_are_evaluated_on_request(evaluate, finished_run):
    last = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()][-1]
    for argv, prefix in (((), "val/"), (("--use_ema",), "val/ema_")):
        metrics = evaluate(*argv, name="checkpoint.pth")["metrics"]
        assert metrics["val/mAP_50_95"] == pytest.approx(last[f"{prefix}mAP_50_95"], abs=1e-6)
    with pytest.raises(InputError, match="no averaged"):
        evaluate("--use_ema")


def test_other_classes_are_refused(evaluate, tmp_path, write_split):
    for split in ("train", "valid"):
        write_split(tmp_path / "data" / split, 4, names=("cat", "dog"))
    with pytest.raises(InputError, match=r"none of its classes is one of the label map's: .*'cat' \(id 1\).*'bright' \(id 1\)"):
        evaluate("--data.dataset_dir", str(tmp_path / "data"))


def test_only_the_resolution_of_the_model_may_be_changed(evaluate):
    assert evaluate("--model.resolution", "[96, 128]")["metrics"] != evaluate()["metrics"]
    with pytest.raises(InputError, match="--model.num_queries: the model comes out of the checkpoint"):
        evaluate("--model.num_queries", "5")
    with pytest.raises(InputError, match="resolution: .* is not divisible"):
        evaluate("--model.resolution", "100")


def test_an_official_style_file_is_evaluated_by_cocos_own_ids(tmp_path, capsys):
    """Weights without settings and label map, whose 91 logits are COCO's category ids, against COCO's own file."""
    if "RFDETR_TEST_DATA" not in os.environ:
        pytest.skip("RFDETR_TEST_DATA is not set")
    data = Path(os.environ["RFDETR_TEST_DATA"]) / "coco_real"
    model = build_model(VARIANTS["pico"])
    with torch.no_grad():  # everything is a person (id 1), anywhere
        model.class_embed.bias[1] = 5.0
    names = {name: tensor.clone() for name, tensor in official_state_dict(model).items()}
    torch.save({"model": names, "args": Namespace(num_classes=90, resolution=64, class_names=[])}, tmp_path / "official.pth")
    argv = ["--checkpoint", str(tmp_path / "official.pth"), "--data.dataset_dir", str(data), "--data.label_map", "coco",
            "--model.resolution", "64", "--data.num_workers", "0", "--output", str(tmp_path / "eval.json")]
    assert validate(argv) == 0
    content = json.loads((tmp_path / "eval.json").read_text())
    truth = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    people = [row for row in truth["annotations"] if row["category_id"] == 1 and not row["iscrowd"]]
    assert content["per_class"]["person"]["objects"] == len(people)
    assert content["per_class"]["toothbrush"]["objects"] > 0, "the last id, 90, is there"
    assert len([name for name in content["per_class"] if not name.startswith("id_")]) == len(content["per_class"])
