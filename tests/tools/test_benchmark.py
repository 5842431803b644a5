"""How fast the machine is: every row on tiny settings, the alternation with another environment, and what is refused."""

import json
import sys
from functools import partial
from importlib import metadata

import pytest

from rfdetr.errors import InputError
from rfdetr.shapes.dataset import make_shapes
from rfdetr.training import benchmark_work, data
from rfdetr.training.benchmark import ROWS, Side
from rfdetr.training.commands import benchmark

TINY = ["--model.variant=pico", "--model.resolution=64", "--model.num_queries=10", "--model.group_detr=2", "--data.num_workers=0",
        "--train.device=cpu", "--repeats=2", "--boxes=3"]  # fmt: skip


@pytest.fixture
def here(monkeypatch) -> list[tuple[bool, str]]:
    """Measure in this process; returns what is measured: whether on the other side, and which job."""
    measured = []

    def measure(side: Side, job: str, settings: dict) -> dict:
        measured.append((bool(side.name), job))
        return {**benchmark_work.main(job, {**settings, "images": 4, "detections": 8}), "process_seconds": 1.0}

    monkeypatch.setattr(Side, "measure", measure)
    return measured


def test_every_row_is_measured(here, config_file, tmp_path, capsys):
    assert benchmark(["--cfg", config_file, *TINY, "--cost", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["rows"]) == list(ROWS) and all(row["here"] > 0 for row in found["rows"].values())
    assert found["here"]["torch"] and found["here"]["threads"] and found["here"]["processor"] == found["here"]["device"]
    assert found["settings"]["precision"] in ("fp32", "bf16") and found["settings"]["run"]["data"]["batch_size"] == 4
    epoch = found["epoch"]  # of the data set of tests/tools/conftest.py, 24 images and 8
    assert (epoch["steps"], epoch["train_images"], epoch["evaluation_images"]) == (6, 24, 8)
    assert epoch["seconds"] == pytest.approx(6 * epoch["step_seconds"] + epoch["evaluation_seconds"])
    cost, step = found["cost"], found["rows"]["step"]["here"]
    assert cost["images_per_s"] == pytest.approx(4 / step)
    assert cost["coco_hours"] == pytest.approx(118_287 * 3 * step / 4 / 3600)
    assert cost["share_of_peak"] == pytest.approx(cost["flop"] / step / cost["peak_flop_per_s"])
    shown = capsys.readouterr().out
    assert "the run of 3 epochs" in shown and "images/s" in shown and "ratio" not in shown


def test_operations_are_counted_whatever_multiplies(here, tmp_path):
    """On a CPU in fp32, where oneDNN and the fused attention are asked directly, the same as in bf16, where they are not."""
    found = {}
    for precision in ("fp32", "bf16"):
        benchmark([*TINY, "--rows=step", "--cost", "--train.precision", precision, "--json", str(tmp_path / "found.json")])
        found[precision] = json.loads((tmp_path / "found.json").read_text())["cost"]["flop"]
    assert found["fp32"] == pytest.approx(found["bf16"], rel=0.01)


def test_both_sides_take_turns(here, capsys):
    benchmark([*TINY, "--rows", "forward,losses", "--against", sys.executable, "--rounds", "2"])
    assert here == [(True, "facts"), (False, "facts"), *[(side, "forward") for side in (False, True, False, True)],
                    *[(side, "losses") for side in (False, True, False, True)]]
    assert "ratio" in capsys.readouterr().out


def test_what_the_other_side_cannot_do_is_left_out(here, monkeypatch, capsys):
    """Rows that only this project has; the other side is asked once."""
    measure = Side.measure
    monkeypatch.setattr(Side, "measure", lambda side, job, settings: None if side.name and job == "save"
                        else measure(side, job, settings))
    benchmark([*TINY, "--rows", "save", "--against", sys.executable, "--rounds", "2"])
    assert here.count((False, "save")) == 2
    assert capsys.readouterr().out.splitlines()[-1].split()[-2:] == ["-", "-"]


def test_made_up_pictures_stand_in_for_a_data_set(here, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "make_shapes", partial(make_shapes, num_train=8, num_val=2, num_test=1))
    benchmark([*TINY, "--rows", "loader", "--json", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text())["rows"]["loader"]["here"] > 0


def is_installed() -> bool:
    try:
        return bool(metadata.version("rfdetr-engine"))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not is_installed(), reason="the project is not installed in this environment")
def test_another_interpreter_does_the_same_work(tmp_path, monkeypatch):
    path, start_process = tmp_path / "found.json", Side.measure
    monkeypatch.setattr(Side, "measure", lambda side, job, settings: start_process(side, job, settings) if side.name
                        else benchmark_work.main(job, settings))
    benchmark([*TINY, "--repeats=1", "--rows=kernels", "--against", sys.executable, "--rounds=1", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["there"]["package"].startswith("rfdetr-engine")
    assert found["there"]["torch"] == found["here"]["torch"]
    row = found["rows"]["kernels"]
    assert row["here"] > 100 and row["there"] > 100 and row["ratio"] == row["here"] / row["there"]


@pytest.mark.parametrize(("words", "message"), [
    (["--rows", "step,loses"], "--rows: 'loses' is no row; did you mean losses?"),
    (["--rows", ""], "--rows: '' is no row; there are: step, forward"),
    (["--against", "/nowhere/python"], "--against /nowhere/python: there is no such program; give the Python"),
    (["--repeats", "0"], "--repeats 0: it must be 1 or more"),
    (["--train.device", "cuda:63"], "train.device: .*cuda:63"),
])  # fmt: skip
def test_bad_input_is_refused(words, message):
    with pytest.raises(InputError, match=f"^{message.replace('?', '[?]')}"):
        benchmark([*TINY, *words])


@pytest.mark.parametrize(("script", "message"), [
    ("exit 3", "it ended with 3 and said nothing"),
    ("echo 'ModuleNotFoundError: No module named rfdetr' >&2; exit 1", "No module named rfdetr; install it in that environment"),
])
def test_an_environment_without_the_package_is_refused(tmp_path, script, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.raises(InputError, match=f"^--against {python}: .*{message}"):
        benchmark([*TINY, "--against", str(python)])


def test_a_variant_that_the_other_package_lacks_is_refused(here, monkeypatch):
    monkeypatch.setattr(benchmark_work, "_is_ours", lambda: False)
    with pytest.raises(InputError, match="rfdetr.* has no pico; choose another --model.variant"):
        benchmark([*TINY, "--against", sys.executable])


def test_masks_are_measured_on_this_side_alone(here, monkeypatch):
    benchmark([*TINY, "--model.variant=pico_seg", "--rows=step"])
    monkeypatch.setattr(benchmark_work, "_is_ours", lambda: False)
    with pytest.raises(InputError, match="masks .* are measured on this side alone"):
        benchmark([*TINY, "--model.variant=seg_nano", "--model.resolution=96", "--against", sys.executable])
