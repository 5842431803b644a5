"""rfdetr export, and the commands that take what it wrote."""

import json

import pytest

from rfdetr.errors import InputError
from rfdetr.export import check
from rfdetr.training.commands import export, predict, validate


def test_a_run_is_exported_evaluated_and_used(finished_run, dataset_dir, tmp_path, capsys, caplog, monkeypatch):
    weights, model = finished_run / "checkpoint_best_total.pth", tmp_path / "model.onnx"
    caplog.set_level("INFO")
    assert export(["--checkpoint", str(weights), "--output", str(model), "--batch_size", "dynamic"]) == 0
    printed = capsys.readouterr().out
    assert "detections on 8 pictures compared" in printed and str(dataset_dir / "valid") in caplog.text
    assert f"{model}: " in printed and "--maxShapes=input:16x3x64x64" in printed

    found, expected = tmp_path / "found.json", tmp_path / "expected.json"
    for path, output in ((weights, expected), (model, found)):
        options = ["--checkpoint", str(path), "--data.dataset_dir", str(dataset_dir), "--output", str(output)]
        assert validate(options) == 0
    contents = [json.loads(path.read_text()) for path in (found, expected)]
    for key in ("metrics", "coco"):
        assert contents[0][key] == pytest.approx(contents[1][key], abs=1e-6)

    assert predict(["--checkpoint", str(model), "--input", str(dataset_dir / "valid"), "--output", str(tmp_path / "drawn"),
                    "--threshold", "0", "--device", "cpu"]) == 0
    rows = json.loads((tmp_path / "drawn" / "predictions.json").read_text())
    assert {row["category_name"] for row in rows} <= {"bright", "dark"}
    assert len(list((tmp_path / "drawn" / "images").iterdir())) == 8

    monkeypatch.setitem(check.TOLERANCES, "fp32", check.Tolerance(score=1e-12))
    assert export(["--checkpoint", str(weights), "--format", "program", "--output", str(tmp_path / "m.pt2")]) == 1
    assert "refused: it does not find what the checkpoint finds" in capsys.readouterr().out
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.parametrize(("argv", "message"), [
    ([], "--checkpoint: is missing"),
    (["--checkpoint", "nowhere.pth"], r"nowhere\.pth"),
    (["--checkpoint", "a.pth", "--format", "tflite"], "format"),
    (["--checkpoint", "a.pth", "--batch_size", "many"], "--batch_size many: it must be a number from 1 on, or dynamic"),
    (["--checkpoint", "a.pth", "--opset", "9"], "--opset 9: it must be 18 to 20"),
    (["--checkpoint", "a.pth", "--opset", "18", "--format", "program"], "is of --format onnx alone"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_message(argv, message):
    with pytest.raises(InputError, match=message):
        export(argv)
