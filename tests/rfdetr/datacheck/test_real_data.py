"""The dirt that the READMEs of the real data sets list is found, item by item, no more and no less."""

import pytest

from rfdetr.datacheck import check_dataset, has_errors

SIZE = {"input_size": (560, 560)}


def names_of(check, split: str, name: str) -> list[str]:
    """File names of the images or objects of a finding, in the order of the file."""
    part = check.splits[split]
    images = part.marked_images.get(name, part.raw.image_indices[part.marked_objects.get(name, [])])
    return [part.raw.file_names[index] for index in images]


def test_bccd(real_data, found):
    check = check_dataset(real_data / "bccd", **SIZE)
    assert not has_errors(check)
    assert found(check) == {("train", "zero_size"): 1, ("val", "zero_size"): 1,
                            ("train", "duplicate"): 5, ("val", "duplicate"): 2, ("test", "duplicate"): 1}
    numbers = {split: [name.removeprefix("BloodImage_").removesuffix(".jpg") for name in names_of(check, split, "duplicate")]
               for split in check.splits}
    assert numbers == {"train": ["00013", "00020", "00100", "00251", "00403"], "val": ["00104", "00331"], "test": ["00284"]}
    assert [f.examples for f in check.findings if f.name == "zero_size"] == [
        ["BloodImage_00343.jpg RBC [181, 329, 0, 0]"], ["BloodImage_00338.jpg RBC [504, 337, 0, 0]"]]
    assert check.statistics["train"].class_counts == {"Platelets": 209, "RBC": 2381, "WBC": 214}  # one of 2382 has no area


def test_coco(real_data, found):
    check = check_dataset(real_data / "coco_real", **SIZE)
    assert not has_errors(check)
    assert found(check) == {("train", "background"): 2, ("train", "speck"): 1, ("train", "crowd"): 9, ("val", "crowd"): 12,
                            ("train", "few_objects"): 57}
    assert names_of(check, "train", "background") == ["000000058636.jpg", "000000226111.jpg"]
    assert [f.examples for f in check.findings if f.name == "speck"] == [["000000296649.jpg bird [457.14, 125.93, 4, 1.85]"]]


def test_nuclei(real_data, found):
    """Holes and pieces show in the polygons; what overlaps, in the run lengths only."""
    check = check_dataset(real_data / "nuclei_dsb2018", **SIZE)
    common = {("train", "odd_mode"): 107, ("val", "odd_mode"): 31, ("test", "odd_mode"): 13, ("train", "too_many_objects"): 1,
              ("train", "hole"): 3, ("val", "hole"): 2, ("val", "pieces"): 1}
    assert not has_errors(check)
    assert found(check) == common
    holes = [name[:8] for split in ("train", "val") for name in names_of(check, split, "hole")]
    assert holes == ["0402a81e", "0402a81e", "9bb6e39d", "70827e40", "df53d0b6"]
    assert [name[:8] for name in names_of(check, "val", "pieces")] == ["f6863b83"]


def test_nuclei_as_run_lengths(real_data, found):
    paths = {split: {"annotations": f"{folder}/_annotations_rle.coco.json", "images": folder}
             for split, folder in (("train", "train"), ("val", "valid"), ("test", "test"))}
    check = check_dataset(real_data / "nuclei_dsb2018", paths=paths, **SIZE)
    assert found(check) == {("train", "odd_mode"): 107, ("val", "odd_mode"): 31, ("test", "odd_mode"): 13,
                            ("train", "too_many_objects"): 1, ("train", "hole"): 3, ("val", "hole"): 2, ("val", "pieces"): 1,
                            ("train", "overlap"): 1}
    assert [name[:8] for name in names_of(check, "train", "overlap")] == ["0a7d30b2"]


def test_cones(real_data, found):
    """Clean but for what its README says of the videos: all frames of valid and test have neighbours in train."""
    check = check_dataset(real_data / "cones_yolo", **SIZE)
    assert not has_errors(check)
    assert found(check) == {("val", "same_video"): 124, ("test", "same_video"): 63, ("val", "similar_to_train"): 8}


@pytest.mark.parametrize("name", ["bccd", "coco_real", "nuclei_dsb2018", "cones_yolo"])
def test_the_quick_check_finds_its_part(real_data, found, name):
    check = check_dataset(real_data / name, quick=True, **SIZE)
    needs_pixels = {"odd_mode", "hole", "pieces", "similar_to_train"}
    full = check_dataset(real_data / name, **SIZE)
    assert found(check) == {place: count for place, count in found(full).items() if place[1] not in needs_pixels}
