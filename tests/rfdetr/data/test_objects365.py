"""Objects365's layouts, made up: the annotation file names folders that are elsewhere after unpacking."""

import json
import shutil

import pytest

from rfdetr.data import available_splits, detect_format, open_dataset
from rfdetr.errors import InputError


@pytest.fixture
def write_objects365(tmp_path, coco_content, write_picture):
    """`write_objects365(where the files are, where the patches are)`; {} is the split, images are in patch1 and patch2."""
    def write(annotations: str = "", images: str = "{}"):
        folder = tmp_path / "objects365"
        for split in ("train", "val"):
            content = coco_content(4)
            for index, image in enumerate(content["images"]):
                patch = f"patch{1 + index % 2}"
                path = folder / images.format(split) / patch / image["file_name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_picture(path, (image["height"], image["width"]))
                image["file_name"] = f"images/v1/{patch}/{image['file_name']}"
            (folder / annotations.format(split)).mkdir(parents=True, exist_ok=True)
            (folder / annotations.format(split) / f"zhiyuan_objv2_{split}.json").write_text(json.dumps(content))
        return folder
    return write


@pytest.mark.parametrize("annotations, images", [("", "{}"), ("{}", "{}"), ("annotations", "images/{}"), ("", "{}/images/v1")])
def test_layouts(write_objects365, annotations, images):
    folder = write_objects365(annotations, images)
    assert detect_format(folder) == "objects365" and available_splits(folder) == ("train", "val")
    for split in ("train", "val"):
        dataset = open_dataset(folder, split, training=split == "train", image_size=(32, 32))
        assert dataset.num_images == 4 and dataset.label_map.names == ["cat", "dog"]
        assert dataset.image_path(2) == folder / images.format(split) / "patch1" / "picture_2.png"
        assert [len(dataset[index][1]["boxes"]) for index in range(4)] == [0, 1 + (split == "val"), 2, 0]


def test_missing_patch_is_named(write_objects365):
    folder = write_objects365()
    shutil.rmtree(folder / "train" / "patch2")
    with pytest.raises(InputError, match="its images in images/v1/patch2 are not there .*unpack that archive"):
        open_dataset(folder, "train", training=True, image_size=(32, 32))
