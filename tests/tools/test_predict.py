"""tools/predict.py: from a checkpoint and pictures to COCO's results and drawn pictures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reading import read

from rfdetr.build import build_model, build_postprocess
from rfdetr.errors import InputError
from rfdetr.training.commands import predict
from rfdetr.training.data import build_eval_loader, open_split
from rfdetr.weights import load_weights, model_config_from_checkpoint, read_checkpoint

TOOL = Path(__file__).parents[2] / "tools" / "predict.py"


@pytest.fixture
def run(finished_run, dataset_dir, tmp_path):
    """Predict on the validation pictures (or others) with the finished run's best weights; return the rows."""

    def start(*argv: str, source: Path = dataset_dir / "valid", name: str = "checkpoint_best_total.pth") -> list[dict]:
        output = str(tmp_path / "found")
        assert predict(["--checkpoint", str(finished_run / name), "--input", str(source), "--output", output, *argv]) == 0
        return json.loads((tmp_path / "found" / "predictions.json").read_text())

    return start


def evaluated(checkpoint: Path, split: str) -> dict[int, dict]:
    """Return image id -> results, as evaluation computes them."""
    content = read_checkpoint(checkpoint)
    config = read("--cfg", str(checkpoint.parent / "config.yaml"))
    architecture = model_config_from_checkpoint(content)
    model = build_model(architecture).eval()
    load_weights(model, content)
    postprocess = build_postprocess(architecture)
    results = {}
    dataset = open_split(config.data, architecture, split)
    for samples, targets in build_eval_loader(config.data, dataset, architecture, torch.device("cpu")):
        with torch.no_grad():
            found = postprocess(model(samples.to("cpu")), torch.stack([target["orig_size"] for target in targets]))
        results |= {int(target["image_id"]): result for target, result in zip(targets, found)}
    return results


def test_it_finds_exactly_what_evaluation_finds(run, finished_run):
    rows = run("--threshold", "0")
    assert {row["file_name"]: row["image_id"] for row in rows} == {f"{number}.png": number for number in range(8)}
    for image_id, result in evaluated(finished_run / "checkpoint_best_total.pth", "val").items():
        kept = result["labels"] < 2  # the spare logit is no class
        found = [row for row in rows if row["image_id"] == image_id]
        # to rounding: how a matrix product is summed up depends on where its numbers lie in memory
        assert [row["score"] for row in found] == pytest.approx(result["scores"][kept].tolist(), abs=1e-6)
        assert [row["category_id"] for row in found] == (result["labels"][kept] + 1).tolist()
        corners = result["boxes"][kept].double()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).flatten().tolist()
        assert [number for row in found for number in row["bbox"]] == pytest.approx(boxes, abs=1e-3)
    assert {row["category_name"] for row in rows} <= {"bright", "dark"}


def test_pictures_are_drawn_on_and_the_originals_stay(run, dataset_dir, tmp_path):
    before = {path.name: path.read_bytes() for path in (dataset_dir / "valid").iterdir()}
    best = max(run("--threshold", "0"), key=lambda row: row["score"])
    run("--overwrite", "--threshold", str(best["score"] - 1e-6))
    assert {path.name: path.read_bytes() for path in (dataset_dir / "valid").iterdir()} == before
    assert len(list((tmp_path / "found" / "images").iterdir())) == 8
    drawn, original = (np.asarray(Image.open(folder / best["file_name"]))
                       for folder in (tmp_path / "found" / "images", dataset_dir / "valid"))
    x, y, w, h = (round(value) for value in best["bbox"])
    assert drawn.shape == original.shape
    row, left = y + h // 2, slice(max(0, x - 1), x + 2)
    assert (drawn[row, left] != original[row, left]).any(), "the left side of the box"
    np.testing.assert_array_equal(drawn[row, x + 3 : x + w - 3], original[row, x + 3 : x + w - 3])


def test_frames_come_in_their_order_and_may_lie_in_folders(run, dataset_dir, tmp_path):
    names = ["b/frame10.png", "b/frame9.png", "a/x.JPG", "b/frame100.png", ".hidden.png"]
    for name in names:
        (tmp_path / "video" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(dataset_dir / "valid" / "0.png").save(tmp_path / "video" / name)
    (tmp_path / "video" / "notes.txt").write_text("no picture")
    rows = run("--threshold", "0", "--batch_size", "2", source=tmp_path / "video")
    order = list(dict.fromkeys((row["image_id"], row["file_name"]) for row in rows))
    assert order == [(1, "a/x.JPG"), (2, "b/frame9.png"), (3, "b/frame10.png"), (4, "b/frame100.png")]
    drawn = {path.relative_to(tmp_path / "found" / "images").as_posix()
             for path in (tmp_path / "found" / "images").rglob("*") if path.is_file()}
    assert drawn == {name for _, name in order}


def test_turned_pictures_are_turned_before_anything_is_found(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "phone.jpg", exif=exif)
    rows = run("--threshold", "0", source=tmp_path / "phone.jpg")
    assert Image.open(tmp_path / "found" / "images" / "phone.jpg").size == (40, 60)
    assert all(x + w <= 40 and y + h <= 60 for x, y, w, h in (row["bbox"] for row in rows))


def test_bad_pictures_are_left_out_and_named(run, dataset_dir, tmp_path, caplog):
    folder = shutil.copytree(dataset_dir / "valid", tmp_path / "pictures")
    (folder / "3.png").write_bytes(b"not a picture")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:60])
    rows = run("--threshold", "0", source=folder)
    assert {row["image_id"] for row in rows} == {0, 1, 2, 4, 6, 7}
    assert "3.png: this is not an image" in caplog.text and "5.png: the image cannot be decoded" in caplog.text
    assert "2 of 8 images could not be read" in caplog.text


def test_no_readable_picture_is_bad_input_and_leaves_no_results(run, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="none of the 1 images could be read"):
        run(source=tmp_path / "pictures")
    assert list((tmp_path / "found").iterdir()) == []


def test_the_average_is_used_where_it_is_asked_for(run):
    plain = run("--threshold", "0", "--json_only", name="checkpoint.pth")
    averaged = run("--threshold", "0", "--json_only", "--use_ema", "--overwrite", name="checkpoint.pth")
    assert [row["score"] for row in plain] != [row["score"] for row in averaged]
    with pytest.raises(InputError, match="no averaged"):
        run("--use_ema", "--overwrite")


def test_json_only_draws_nothing(run, tmp_path):
    run("--json_only")
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["predictions.json"]


def test_what_is_there_is_not_written_over(run, dataset_dir, tmp_path):
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="found is not empty; .* --overwrite"):
        run()
    run("--overwrite")
    assert (tmp_path / "found" / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="are among the --input"):
        run("--overwrite", source=tmp_path)


@pytest.mark.parametrize(("argv", "message"), [
    (["--input", "x"], "--checkpoint: is missing"),
    (["--checkpoint", "x.pth"], "--input: is missing"),
    (["--checkpoint", "x.pth", "--input", "nowhere"], "nowhere: there is no such file or folder"),
    (["--checkpoint", "x.pth", "--input", "."], r"no images in it .*a video is named by its file"),
    (["--checkpoint", "x.pth", "--input", "x.jpg", "--treshold", "1"], "did you mean --threshold"),
    (["--checkpoint", "x.pth", "--input", "x.jpg", "--threshold", "high"], "threshold: .*high"),
    (["--checkpoint", "x.pth", "--input", "x.jpg", "--batch_size", "0"], "--batch_size: 0 is not possible"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_bad_input_is_one_message(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        predict(argv)
    assert list(tmp_path.iterdir()) == []


def test_from_the_shell(finished_run, dataset_dir, tmp_path):
    command = [sys.executable, str(TOOL), "--checkpoint", str(finished_run / "checkpoint_best_total.pth"), "--input",
               str(dataset_dir / "test"), "--output", str(tmp_path / "found"), "--threshold", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "found on 4 images" in done.stderr


def test_a_threshold_that_no_score_can_have_is_refused(run):
    with pytest.raises(InputError, match="--threshold: 40.0 is not possible"):
        run("--threshold", "40")


def test_the_limit_of_pixels_comes_from_the_run_and_may_be_raised(run, finished_run, tmp_path, caplog):
    content = torch.load(finished_run / "checkpoint_best_total.pth", weights_only=True)
    content["args"]["data"]["max_pixels"] = 64 * 64
    torch.save(content, tmp_path / "limited.pth")
    for name, size in (("small", 64), ("large", 65)):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (size, 64)).save(tmp_path / "pictures" / f"{name}.png")
    everything = {"source": tmp_path / "pictures", "name": str(tmp_path / "limited.pth")}
    names = {row["file_name"] for row in run("--threshold", "0", **everything)}
    assert names == {"small.png"} and "large.png: the image has 4160 pixels, more than data.max_pixels 4096" in caplog.text
    rows = run("--threshold", "0", "--max_pixels", "5000", "--overwrite", **everything)
    assert {row["file_name"] for row in rows} == {"small.png", "large.png"}
    with pytest.raises(InputError, match="--max_pixels: 0 is not possible"):
        run("--max_pixels", "0")
    content["args"]["data"].update(max_pixels="many", white_level=[1])  # of a foreign file
    torch.save(content, tmp_path / "limited.pth")
    assert run("--threshold", "0", "--overwrite", **everything)


def test_links_and_names_that_are_no_text(run, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "real").mkdir(parents=True)
    picture = Image.new("RGB", (40, 30))
    picture.save(folder / "real" / "a.png")
    picture.save(os.fsencode(folder) + b"/\xe9.png")
    for link, target in {"self.png": "self.png", "nothing.png": "nowhere", "circle": ".", "more": "../elsewhere"}.items():
        (folder / link).symlink_to(target)
    (tmp_path / "elsewhere").mkdir()
    picture.save(tmp_path / "elsewhere" / "b.png")
    rows = run("--threshold", "0", source=folder)
    assert {row["file_name"] for row in rows} >= {"real/a.png", "\udce9.png", "more/b.png"}
    assert not any("self" in row["file_name"] or "nothing" in row["file_name"] for row in rows)
