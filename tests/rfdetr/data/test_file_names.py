"""Names that are nearly those of the files: one file that fits is used, with a warning; else it is said what is there."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
import yaml
from PIL import Image

from rfdetr.data import open_dataset
from rfdetr.data.findings import Findings
from rfdetr.data.formats import read_split
from rfdetr.datacheck import check_dataset, has_errors, write_fixed
from rfdetr.errors import InputError

SIZE = {"input_size": (32, 32)}


@pytest.fixture
def write(tmp_path):
    """`write({listed name: file or None})` writes both splits, in COCO's layout, and returns the folder of the data set."""
    def make(names: dict[str, str | None], folder: Path = tmp_path / "data") -> Path:
        for number, split in enumerate(("train", "val")):
            (folder / "annotations").mkdir(parents=True, exist_ok=True)
            (folder / split).mkdir(exist_ok=True)
            images = [{"id": place, "file_name": name, "width": 40, "height": 30} for place, name in enumerate(names)]
            boxes = [{"id": place, "image_id": place, "category_id": 1, "bbox": [2, 3, 20, 10]} for place in range(len(names))]
            content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
            (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
            for place, file in enumerate(names.values()):
                if file is not None:
                    path = folder / split / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (40, 30), (60 * number, 20 * place, 9)).save(path, "png")
        return folder
    return make


def found(folder: Path, **options) -> dict[str, tuple[int, list[str]]]:
    """Count and examples of the findings about the train split's files."""
    check = check_dataset(folder, quick=True, **SIZE, **options)
    return {found.name: (found.count, found.examples) for found in check.findings
            if found.split == "train" and found.kind.group == "files"}


NFC, NFD = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))
NEAR = {
    "images\\1.png": "images/1.png", ".\\1.png": "1.png", "C:\\data\\img.png": "img.png", "c:/data/a/img.png": "a/img.png",
    "\\\\server\\share\\img.png": "img.png", "/home/x/img.png": "img.png", "/home/x/train/img.png": "only/img.png",
    "train/1.png": "1.png", "images/train/1.png": "1.png", "1.png": "images/1.png", "../../media/upload/1/1.png": "1.png",
    "my%20picture%201.png": "my picture 1.png", "my picture.png": "my%20picture.png", NFC: NFD, NFD: NFC,
    " 1.png": "1.png", "1.png ": "1.png", "1 .png": "1.png", "1.png\r": "1.png", "a /1.png": "a/1.png",
    "1\u202fPM.png": "1 PM.png", "\ufeff1.png": "1.png", "IMG.PNG": "img.png", "img.png": "Img.PNG",
    "Images/1.png": "images/1.png",
    "file:///home/x/1.png": "1.png", "https://host/b/1.png?token=a/b": "1.png", "/data/local-files/?d=set/1.png": "1.png",
    "s3://bucket/1.png": "1.png", "a%5C1.png": "a/1.png", "a%2520b.png": "a b.png", "a&amp;b.png": "a&b.png",
    "p1": "p1.png", "a\\p.1": "a/p.1.png",
}


@pytest.mark.parametrize("listed", NEAR)
def test_a_file_that_nearly_fits_is_used(write, listed):
    folder = write({listed: NEAR[listed]})
    assert found(folder) == {"other_name": (1, [f"listed as {listed!r}, there as {NEAR[listed]!r}".replace("\r", "\\r")])}
    dataset = open_dataset(folder, "train", training=True, image_size=(32, 32))
    assert dataset.image_path(0) == folder / "train" / NEAR[listed] and dataset[0][0].shape == (3, 32, 32)


def test_fixed_annotations_have_the_names_of_the_files(write, tmp_path):
    folder = write({"images\\1.png": "images/1.png", "my%202.png": "my 2.png", "3.png": "3.png"})
    check = check_dataset(folder, **SIZE)
    assert not has_errors(check)
    data = yaml.safe_load(write_fixed(check, tmp_path / "fixed").read_text())["data"]
    content = json.loads((tmp_path / "fixed" / "train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["images/1.png", "my 2.png", "3.png"]
    assert found(Path(data["dataset_dir"]), paths=data["splits"]) == {}


@pytest.mark.parametrize("names, missing, says", [
    ({"cam1/1.png": None, "cam2/1.png": "cam2/1.png"}, 1, "holds 1 pictures, such as cam2/1.png"),
    ({"cam1\\1.png": None, "2.png": "cam2/1.png"}, 2, "holds 1 pictures"),
    ({"/a/1.png": "1.png", "/b/1.png": None}, 2, "1.png fits, but other names fit it too"),
    ({"1.png": "a/1.png", "2.png": "2.png", "x.png": "b/1.png"}, 2, "2 files fit: a/1.png, b/1.png"),
    ({"1": None, "2.png": "1.png", "3.png": "1.jpg"}, 3, "2 files fit: 1.jpg, 1.png"),
    ({"1.jpg": "1.png"}, 1, "holds 1 pictures"),
    ({"1.png": "2.png"}, 1, "train holds 1 pictures, such as 2.png"), ({"1.png": None}, 1, "train holds no pictures"),
    ({"..": None}, 1, "holds no"), ({"folder/": None}, 1, "holds no"), ({"x" * 300 + ".png": None}, 1, "holds no"),
])
def test_what_is_there_is_said_where_nothing_or_too_much_fits(write, names, missing, says):
    count, examples = found(write(names))["missing_image"]
    assert count == missing and any(says in example for example in examples)


def test_fix_is_not_recommended_where_nothing_would_be_left(write):
    for names, fix in (({"1.png": None, "2.png": None}, "leaves"), ({"1.png": None, "2.png": "2.png"}, "drops")):
        check = check_dataset(write(names), quick=True, **SIZE)
        kind = next(found.kind for found in check.findings if found.name == "missing_image")
        assert kind.fix == fix and "--fix" not in kind.advice


@pytest.mark.parametrize("name", ["../secret.png", "../../secret.png", "{}/secret.png", "1/../../../secret.png"])
def test_names_that_lead_out_of_the_folder_are_refused(write, tmp_path, name):
    names = {name.format(tmp_path): None, "1.png": "1.png"}
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    folder = write(names)
    (folder / "train" / "1").mkdir()
    (folder / "val" / "1").mkdir()
    if name == "../secret.png":  # beside the split, in the data set
        Image.new("RGB", (40, 30)).save(folder / "secret.png")
        assert found(folder) == {}
        return
    assert found(folder) == {"outside_folder": (1, [repr(name.format(tmp_path))])}
    with pytest.raises(InputError, match="leads out of the folder .*data.allow_outside"):
        open_dataset(folder, "train", training=True, image_size=(32, 32))
    raw = read_split(folder, "train", findings=Findings())
    assert raw.file_names == ["1.png"] and raw.image_ids.tolist() == [1] and raw.image_indices.tolist() == [0]
    assert found(folder, allow_outside=True) == {}
    dataset = open_dataset(folder, "train", training=True, image_size=(32, 32), allow_outside=True)
    assert dataset.num_images == 2 and os.path.samefile(dataset.image_path(0), tmp_path / "secret.png")


def test_links_may_lead_anywhere_also_in_circles(write, tmp_path):
    folder = write({"1.png": None, "more\\2.png": None})
    (tmp_path / "else" / "more").mkdir(parents=True)
    for name in ("1.png", "more/2.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "else" / name)
    (tmp_path / "else" / "circle").symlink_to(tmp_path / "else")
    for split in ("train", "val"):
        (folder / split).rmdir()
        (folder / split).symlink_to(tmp_path / "else")
    assert found(folder) == {"other_name": (1, ["listed as 'more\\\\2.png', there as 'more/2.png'"])}


def test_a_link_to_itself_hides_no_other_file(write):
    folder = write({f"{number}.png": f"{number}.png" for number in range(4)} | {"LOST.png": "lost.png"})
    for split in ("train", "val"):
        (folder / split / "self.png").symlink_to("self.png")
    assert found(folder) == {"other_name": (1, ["listed as 'LOST.png', there as 'lost.png'"])}


def test_impossible_names(write):
    findings = found(write({"\ud800.png": None, "x" * 5000: None, "1.png": "1.png"}))
    assert findings["image_entry"][0] == findings["impossible_name"][0] == 1  # the reader refuses what is no text


def test_whole_paths_in_the_folder(write, tmp_path):
    folder = write({str(tmp_path / "data" / "train" / "a.png"): "a.png", "b/b.png": "b/b.png"})
    raw = read_split(folder, "train")
    assert raw.file_names == ["a.png", "b/b.png"] and raw.image_root == folder / "train"


def test_many_names_are_cheap(write, monkeypatch):
    """No file is looked at by itself, whether or not its name is right."""
    folder = write({f"{number}.png": f"{number}.png" for number in range(50)})
    calls = []
    monkeypatch.setattr(os.path, "isfile", lambda path: calls.append(path))
    assert read_split(folder, "train").file_names[7] == "7.png" and not calls


@pytest.mark.parametrize("line", ["images\\A.png", "/home/x/darknet/data/images/a.png", "data\\images\\a.png",
                                    "C:\\x\\images\\a.png"])
def test_lines_of_a_list_of_yolo(tmp_path, line):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    (tmp_path / "train.txt").write_text(f"{line}\n")
    assert found(tmp_path) == {"other_name": (1, [f"listed as {line!r}, there as 'images/a.png'"])}
    assert open_dataset(tmp_path, "train", training=True, image_size=(32, 32)).num_boxes == 1


def test_lists_of_yolo_stay_in_the_folder(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "data" / "images"):
        Image.new("RGB", (40, 30)).save(folder / f"{folder.name}.png")
        (folder / f"{folder.name}.txt").write_text("0 0.5 0.5 0.2 0.2")
    outside = str(tmp_path / f"{tmp_path.name}.png")
    (tmp_path / "data" / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    (tmp_path / "data" / "train.txt").write_text(f"images/images.png\n{outside}\n")
    assert found(tmp_path / "data") == {"outside_folder": (1, [repr(outside)])}
    raw = read_split(tmp_path / "data", "train", allow_outside=True)
    assert raw.image_root == tmp_path and raw.file_names == ["data/images/images.png", f"{tmp_path.name}.png"]
