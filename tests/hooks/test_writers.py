"""The writers: what stands in their files, over odd values, resumed runs and killed ones; and that none stops a training."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from toy import make_trainer

from hooks import LogHook
from hooks.writers import CsvWriter, JsonlWriter, PictureWriter, TensorBoardWriter, as_picture

ODD = {"val/AP/red, \"blood\" cell": 0.5, "train/loss": math.nan, "train/grad_norm": math.inf}


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_csv_has_a_row_a_step_and_takes_in_later_columns(tmp_path):
    writer = CsvWriter(tmp_path / "run" / "metrics.csv")
    writer.rewind(0)
    writer.write({"train/loss": 2.0}, 2, 0)
    writer.write({"train/loss": 1.5}, 4, 0)
    writer.write({"val/mAP": 0.25, "val/AP/cat": 0.125}, 4, 1)
    writer.write({"train/loss": 1.25}, 6, 1)
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines() == [
        "step,epoch,train/loss,val/mAP,val/AP/cat", "2,0,2.0,,", "4,1,1.5,0.25,0.125", "6,1,1.25,,",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]


def test_csv_keeps_odd_names_and_values(tmp_path):
    CsvWriter(tmp_path / "metrics.csv").write(ODD, 1, 0)
    (row,) = read_rows(tmp_path / "metrics.csv")
    assert row == {"step": "1", "epoch": "0", "val/AP/red, \"blood\" cell": "0.5", "train/loss": "nan", "train/grad_norm": "inf"}


def test_csv_goes_on_after_the_step_of_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CsvWriter(path)
    for step in (2, 4, 6):
        first.write({"train/loss": float(step)}, step, 0)
    with open(path, "a") as file:
        file.write("8,0")  # killed in the middle of a line
    resumed = CsvWriter(path)
    resumed.rewind(4)
    resumed.write({"train/loss": -6.0}, 6, 0)
    resumed.write({"val/mAP": 0.5}, 6, 1)
    assert [(row["step"], row["train/loss"], row["val/mAP"]) for row in read_rows(path)] == [
        ("2", "2.0", ""), ("4", "4.0", ""), ("6", "-6.0", "0.5")
    ]  # fmt: skip
    CsvWriter(path).rewind(0)
    assert read_rows(path) == []


def test_csv_that_is_not_rewound_is_added_to(tmp_path):
    for step in (1, 2):
        CsvWriter(tmp_path / "metrics.csv").write({"train/loss": 1.0}, step, 0)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == ["1", "2"]


def test_jsonl_has_null_for_what_json_lacks_and_forgets_later_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.write(ODD, 1, 0)
    writer.write({"train/loss": 1.0}, 2, 0)
    writer.close()
    assert json.loads(path.read_text().splitlines()[0]) == {
        "step": 1, "epoch": 0, "val/AP/red, \"blood\" cell": 0.5, "train/loss": None, "train/grad_norm": None
    }  # fmt: skip
    JsonlWriter(path).rewind(1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    first = TensorBoardWriter(tmp_path)
    first.rewind(0)
    first.write(ODD, 2, 0)
    first.write({"train/grad_norm": 9.0}, 4, 0)
    first.close()
    resumed = TensorBoardWriter(tmp_path)
    resumed.rewind(2)
    resumed.write({"train/grad_norm": 1.0}, 4, 1)
    resumed.close()
    events = read_events(tmp_path)
    assert events["train/grad_norm"] == [(2, math.inf), (4, 1.0)] and events["epoch"] == [(2, 0.0), (4, 1.0)]
    assert events["val/AP/red, \"blood\" cell"] == [(2, 0.5)] and math.isnan(events["train/loss"][0][1])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tensorboard"])
def test_a_line_of_the_checkpoints_own_step_is_written_once(tmp_path, kind):
    """The run was killed after it wrote an evaluation that the checkpoint of its step does not know, and that comes again."""
    make = {"jsonl": lambda: JsonlWriter(tmp_path / kind), "csv": lambda: CsvWriter(tmp_path / kind),
            "tensorboard": lambda: TensorBoardWriter(tmp_path)}[kind]
    loss, score = {"train/loss": 2.0}, {"val/mAP": 0.5}
    first = make()
    first.rewind(0, [])
    first.write({"train/loss": 4.0}, 2, 0), first.write(loss, 4, 0), first.write(score, 4, 1)
    first.close()
    resumed = make()
    resumed.rewind(4, [(loss, 4, 0)])
    resumed.write(score, 4, 1)
    resumed.close()
    if kind == "jsonl":
        lines = [json.loads(line) for line in (tmp_path / kind).read_text().splitlines()]
        assert lines == [{"step": 2, "epoch": 0, "train/loss": 4.0}, {"step": 4, "epoch": 0, **loss},
                         {"step": 4, "epoch": 1, **score}]
    elif kind == "csv":
        assert [(row["step"], row["train/loss"], row["val/mAP"]) for row in read_rows(tmp_path / kind)] == [
            ("2", "4.0", ""), ("4", "2.0", "0.5")]
    else:
        events = read_events(tmp_path)
        assert (events["train/loss"], events["val/mAP"]) == ([(2, 4.0), (4, 2.0)], [(4, 0.5)])


@pytest.mark.parametrize("kind", [JsonlWriter, CsvWriter])
def test_lines_of_before_stay_where_steps_are_counted_otherwise(tmp_path, kind):
    """A run of 10 steps an epoch goes on with larger batches, at step 10 in place of 20; and is stopped once more."""
    first = kind(tmp_path / "metrics")
    for step in (10, 20):
        first.write({"train/loss": 1.0}, step, step // 10)
    first.close()
    second = kind(tmp_path / "metrics")
    second.rewind(20)
    for step in (12, 14):
        second.write({"train/loss": 2.0}, step, 2)
    second.close()
    third = kind(tmp_path / "metrics")
    third.rewind(12)
    third.close()
    found = (tmp_path / "metrics").read_text()
    steps = [json.loads(line)["step"] for line in found.splitlines()] if kind is JsonlWriter else \
        [int(line.split(",")[0]) for line in found.splitlines()[1:]]
    assert steps == [10, 20, 12]


@pytest.mark.parametrize("make", [
    lambda folder: CsvWriter(folder / "a_file" / "metrics.csv"),
    lambda folder: JsonlWriter(folder / "a_file" / "metrics.jsonl"),
    lambda folder: TensorBoardWriter(folder / "a_file" / "events"),
], ids=["csv", "jsonl", "tensorboard"])  # fmt: skip
def test_a_writer_that_fails_is_reported_once_and_the_training_goes_on(tmp_path, caplog, make):
    (tmp_path / "a_file").write_text("where the writer wants a folder")
    trainer = make_trainer(tmp_path, hooks=[LogHook([make(tmp_path)], every_steps=1)])
    trainer.train()
    assert trainer.step == trainer.max_steps
    assert len([message for message in caplog.messages if "failed and is not used any more" in message]) == 1


PIXELS = np.full((4, 6, 3), 200, dtype=np.uint8)


@pytest.mark.parametrize("image", [
    PIXELS, Image.fromarray(PIXELS), torch.from_numpy(PIXELS).permute(2, 0, 1), torch.full((3, 4, 6), 200 / 255),
    torch.full((1, 4, 6), 200 / 255), torch.full((4, 6), 200 / 255), PIXELS[..., 0],
])
def test_a_picture_may_come_in_any_form(image, tmp_path):
    assert (as_picture(image).pixels == PIXELS).all() and as_picture(image).path is None
    PictureWriter(tmp_path / "logged").write_image("my/picture", as_picture(image), 7, 1)
    (path,) = (tmp_path / "logged").iterdir()
    assert path.name == "my_picture-7.png" and (as_picture(path).pixels == PIXELS).all()
    PictureWriter(tmp_path / "others").write_image("kept", as_picture(path), 7, 1)
    assert not (tmp_path / "others").exists(), "it is in a file already"


@pytest.mark.parametrize("image", [PIXELS.astype(float), torch.zeros(2, 4, 6), torch.zeros(6), [1, 2]])
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match=f"^{type(image).__name__} .* is no picture"):
        as_picture(image)


def test_tensorboard_has_pictures_and_one_entry_of_hyper_parameters(tmp_path):
    writer = TensorBoardWriter(tmp_path, {"model": {"variant": "pico", "weights": None}, "hooks": [], "lr": 0.1})
    writer.rewind(0)
    for epoch in (1, 2):
        writer.write({"val/mAP_50_95": 0.25 * epoch, "val/ema_F1": 0.5, "val/AP/cat": 0.1}, 4 * epoch, epoch)
    writer.write_image("picture", as_picture(PIXELS), 8, 2)
    writer.close()
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(event.step, event.width, event.height) for event in found.Images("picture")] == [(8, 6, 4)]
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin = {tag: HParamsPluginData.FromString(content) for tag, content in found.PluginTagToContent("hparams").items()}
    values = plugin["_hparams_/session_start_info"].session_start_info.hparams
    assert values["model.variant"].string_value == "pico" and values["lr"].number_value == 0.1
    metrics = {info.name.tag for info in plugin["_hparams_/experiment"].experiment.metric_infos}
    assert metrics == {"val/mAP_50_95", "val/ema_F1"}, "the values beside them are their last scalars"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [], "in the run's own folder"
