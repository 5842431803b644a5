"""tools/predict.py and `Detector.stream` on videos, patterns, lists and streams; the videos are made here."""

import csv
import itertools
import json
import os
import signal
import struct
import sys
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rfdetr
from rfdetr import InputError
from rfdetr.data.findings import Findings
from rfdetr.data.formats import read_split
from rfdetr.sources import find_pictures
from rfdetr.training import prediction
from rfdetr.training.commands import predict
from rfdetr.video import Video, VideoWriter, is_video

av = pytest.importorskip("av")


def make_video(path: Path, count: int = 9, size: tuple[int, int] = (64, 64), *, mp4: bool = True) -> Path:
    """Write a rectangle that moves and becomes brighter, at ten frames a second."""
    if mp4:
        writer = VideoWriter(path, Fraction(10))
        for number in range(count):
            writer.write(Image.fromarray(_frame(number, size)), number / 10)
        writer.close()
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_frame(number, size))))
        container.mux(stream.encode(None))
    return path


def _frame(number: int, size: tuple[int, int]) -> np.ndarray:
    pixels = np.full((*size, 3), 100, np.uint8)
    pixels[10:40, 8 + number : 48 + number] = (240, 240 - 3 * number, 240)
    return pixels


@pytest.fixture(scope="module")
def detector(finished_run):
    return rfdetr.load(finished_run / "checkpoint_best_total.pth")


@pytest.fixture
def run(finished_run, tmp_path):
    """Predict with everything found that scores above 0; return the folder."""
    def start(*argv: str, code: int = 0, name: str = "found") -> Path:
        words = ["--checkpoint", str(finished_run / "checkpoint_best_total.pth"), "--output", str(tmp_path / name), *argv]
        assert predict([*words, *([] if "--threshold" in argv else ["--threshold", "0"])]) == code
        return tmp_path / name
    return start


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def frames_of(path: Path) -> list[np.ndarray]:
    with Video(path) as video:
        return [frame.pixels for frame in video]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.webm"])
def test_frames_are_those_of_the_video(tmp_path, name):
    path = make_video(tmp_path / name, mp4=name.endswith("4"))
    with Video(path) as video:
        frames = list(video)
        assert not video.is_live and video.rate == 10
    assert [frame.number for frame in frames] == list(range(9))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(9) / 10, abs=2e-3)
    for frame in frames:
        assert np.abs(frame.pixels.astype(int) - _frame(frame.number, (64, 64))).mean() < 6


def test_a_video_becomes_lines_and_a_drawn_video(run, tmp_path, detector, caplog):
    path = make_video(tmp_path / "clip.mp4", size=(63, 65))
    with caplog.at_level("INFO"):
        folder = run("--input", str(path), "--batch_size", "4")
    lines = lines_of(folder)
    assert [line["frame"] for line in lines] == list(range(9)) and lines[5]["time"] == pytest.approx(0.5, abs=1e-3)
    whole = detector.predict(path, 0.0)
    for line, found in zip(lines, whole):
        expected = [{key: row[key] for key in ("category_id", "category_name", "bbox", "score")} for row in found.to_coco()]
        got = [{key: row[key] for key in expected[0]} for row in line["detections"]]
        assert [row["category_id"] for row in got] == [row["category_id"] for row in expected]
        assert np.allclose([row["bbox"] for row in got], [row["bbox"] for row in expected], atol=1e-2)
    drawn = frames_of(folder / "video.mp4")
    assert len(drawn) == 9 and drawn[0].shape == (64, 66, 3), "sides of videos are even"
    assert np.abs(drawn[3][:62, :64].astype(int) - np.asarray(whole[3].draw())[:62, :64]).mean() < 15
    assert "found on 9 frames" in caplog.text and "frames a second" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.jsonl", "video.mp4"]
    with pytest.raises(InputError, match="is not empty"):
        run("--input", str(path))


def test_turned_videos_are_shown_upright(tmp_path):
    path = make_video(tmp_path / "clip.mp4", size=(48, 64))
    upright = frames_of(path)[0]
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # of version 0: the matrix of the track, here to be by 90 degrees clockwise
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)
    np.testing.assert_array_equal(frames_of(path)[0], np.rot90(upright, -1))


def test_crops_label_files_and_a_table(run, tmp_path, detector):
    folder = run("--input", str(make_video(tmp_path / "clip.mp4", 3)), "--save", "crops,yolo,csv", "--json_only", "--threshold",
                 "0.01", "--max_detections", "2")
    lines = lines_of(folder)
    total = sum(len(line["detections"]) for line in lines)
    assert total and max(len(line["detections"]) for line in lines) <= 2
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == total and rows[-1]["picture"] == "000002" and float(rows[-1]["time"]) == pytest.approx(0.2, abs=1e-3)
    flat = [row for line in lines for row in line["detections"]]
    assert [[float(row[key]) for key in ("score", "x", "y", "width", "height")] for row in rows] == [
        [row["score"], *row["bbox"]] for row in flat]
    assert (folder / "classes.txt").read_text() == "bright\ndark\n"
    assert sum(len(path.read_text().splitlines()) for path in (folder / "labels").iterdir()) == total
    assert len(list((folder / "labels").iterdir())) == 3
    crops = list((folder / "crops").rglob("*.jpg"))
    assert 0 < len(crops) <= total and {path.parent.name for path in crops} <= {"bright", "dark"}
    assert not (folder / "video.mp4").exists()


def test_label_files_are_those_of_a_data_set(run, dataset_dir, tmp_path):
    folder = run("--input", str(dataset_dir / "valid"), "--save", "yolo", "--json_only", "--max_detections", "3")
    (folder / "images").symlink_to(dataset_dir / "valid")
    (folder / "data.yaml").write_text("names: [bright, dark]\ntrain: images\nval: images\n")
    raw = read_split(folder, "train", findings=Findings())
    rows = json.loads((folder / "predictions.json").read_text())
    assert len(raw.boxes) == len(rows) == 24
    assert np.allclose(sorted(raw.boxes[:, 0]), sorted(row["bbox"][0] for row in rows), atol=1e-3)


def test_classes_and_parts_as_predict_has_them(run, detector, dataset_dir, tmp_path):
    picture = tmp_path / "big.png"
    Image.fromarray(np.tile(np.asarray(Image.open(dataset_dir / "valid" / "0.png")), (3, 3, 1))).save(picture)
    folder = run("--input", str(picture), "--classes", "dark", "--tile", "64", "--json_only")
    rows = json.loads((folder / "predictions.json").read_text())
    (expected,) = detector.predict(picture, 0.0, classes=["dark"], tile=64)
    assert len(rows) == len(expected) > 0 and {row["category_name"] for row in rows} == {"dark"}
    for argv, message in ((["--classes", "red"], "'red' is no class"), (["--tile", "3"], "--tile: 3 is not possible"),
                          (["--max_detections", "0"], "--max_detections: 0 is not possible"),
                          (["--save", "crops,xml"], "--save: xml is unknown")):
        with pytest.raises(InputError, match=message):
            run("--input", str(picture), *argv, name="other")


def test_patterns_lists_and_several_inputs(run, dataset_dir, tmp_path, monkeypatch):
    def names(*inputs: str) -> list[str]:
        return [name for name, _ in find_pictures(*inputs)]

    valid, test = dataset_dir / "valid", dataset_dir / "test"
    assert names(str(valid / "[0-4].png")) == [f"{n}.png" for n in range(5)]
    assert names(str(dataset_dir / "*" / "1.png")) == ["test/1.png", "train/1.png", "valid/1.png"]
    assert names(str(dataset_dir / "**" / "3.*")) == ["test/3.png", "train/3.png", "valid/3.png"]
    listing = tmp_path / "list.txt"
    listing.write_text(f"{valid / '0.png'}\n\n../{tmp_path.name}/near.png\n", encoding="utf-8-sig")
    (tmp_path / "near.png").write_bytes((test / "0.png").read_bytes())
    assert names(listing) == [str(valid / "0.png"), f"../{tmp_path.name}/near.png"]
    assert names(test, valid / "0.png", test / "1.png") == [*(str(test / f"{n}.png") for n in range(4)), str(valid / "0.png")]
    folder = run("--input", str(listing), str(test), "--max_detections", "1")
    assert len(json.loads((folder / "predictions.json").read_text())) == 6
    assert len([path for path in (folder / "images").rglob("*") if path.is_file()]) == 6
    (tmp_path / "empty.txt").write_text("\n")
    for source, message in (("empty.txt", "list of pictures is empty"), ("*.bmp", r"\*\.bmp: no images in it"),
                            ("gone", "there is no such file or folder")):
        with pytest.raises(InputError, match=message):
            find_pictures(tmp_path / source)


def test_a_stream_takes_no_more_memory_the_longer_it_is(detector, tmp_path):
    alive, count = weakref.WeakSet(), 0
    for found in detector.stream(make_video(tmp_path / "clip.mp4", 40), 0.0, batch_size=4):
        alive.add(found)
        assert found.file_name.endswith(f"clip.mp4:{count:06d}") and len(alive) <= 2
        count += 1
    assert count == 40
    endless = (np.zeros((20, 20, 3), np.uint8) for _ in itertools.count())
    assert next(detector.stream(endless)).file_name is None
    assert len(detector.predict(str(tmp_path / "clip.mp4"), 1.0)) == 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["video", "pictures"])
def test_an_interruption_leaves_whole_files(run, tmp_path, dataset_dir, monkeypatch, number, kind):
    source = make_video(tmp_path / "clip.mp4", 30) if kind == "video" else dataset_dir / "train"
    before, asked = prediction.Detector.predict, []

    def interrupted(self, pictures, *args, **options):
        asked.append(len(pictures))
        if len(asked) == 3:
            os.kill(os.getpid(), number)
        return before(self, pictures, *args, **options)

    monkeypatch.setattr(prediction.Detector, "predict", interrupted)
    handler = signal.getsignal(number)
    folder = run("--input", str(source), "--batch_size", "2", "--save", "csv", code=3)
    assert signal.getsignal(number) is handler and asked == [2, 2, 2]
    if kind == "video":
        assert len(lines_of(folder)) == len(frames_of(folder / "video.mp4")) == 6
    else:
        assert len({row["file_name"] for row in json.loads((folder / "predictions.json").read_text())}) == 6
    assert (folder / "predictions.csv").is_file() and not list(folder.glob(".*"))


def test_damaged_videos(tmp_path, detector, caplog):
    path = make_video(tmp_path / "clip.avi", 60, (160, 160), mp4=False)
    content = bytearray(path.read_bytes())
    start = content.index(b"movi")
    middle = start + (len(content) - start) // 2
    (tmp_path / "cut.avi").write_bytes(content[:middle])
    assert 5 < len(frames_of(tmp_path / "cut.avi")) < 60
    content[middle : middle + 50] = bytes(np.random.default_rng(0).integers(0, 256, 50, dtype=np.uint8))
    (tmp_path / "damaged.avi").write_bytes(content)
    assert 5 < len(frames_of(tmp_path / "damaged.avi")) <= 60
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"text\.mp4: cannot be opened as a video \(.*\); look whether a player shows it"):
        detector.stream(tmp_path / "text.mp4")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        container.add_stream("aac", rate=8000)
        container.mux(av.Packet())
    with pytest.raises(InputError, match=r"sound\.mkv: "):
        detector.stream(tmp_path / "sound.mkv")


def test_what_is_a_video():
    assert all(map(is_video, (0, "1", "a/b.MP4", Path("x.mkv"), "rtsp://host/stream", "http://host/x")))
    assert not any(map(is_video, (True, "a.jpg", Path("folder"), "x.txt", None, np.zeros((2, 2, 3)), ["a.mp4"])))


def test_cameras_and_addresses_that_are_not_there(run, tmp_path, monkeypatch):
    for source, message in (("97", r"97: cannot be opened as a video"),
                            ("rtsp://127.0.0.1:9/x", "rtsp://127.0.0.1:9/x: cannot be"),
                            (str(tmp_path / "gone.mp4"), r"gone\.mp4: there is no such file")):
        with pytest.raises(InputError, match=message):
            run("--input", source)
    with pytest.raises(InputError, match="0 is a video, which must be the only input"):
        run("--input", "0", "a.jpg")
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"need PyAV, which is not installed; .*\.\[video\]"):
        run("--input", "0")
    assert not (tmp_path / "found").exists()


def test_a_live_stream_is_not_waited_for(run, tmp_path, monkeypatch):
    """A camera is a device file, for which a video stands in here."""
    path = make_video(tmp_path / "clip.mp4", 5)
    monkeypatch.setattr("rfdetr.video._camera", lambda number: (str(path), "mp4"))
    sizes, before = [], prediction.Detector.predict
    monkeypatch.setattr(prediction.Detector, "predict", lambda self, pictures, *args, **options: (
        sizes.append(len(pictures)), before(self, pictures, *args, **options))[1])
    assert len(lines_of(run("--input", "0", "--batch_size", "4"))) == 5 and sizes == [1] * 5
