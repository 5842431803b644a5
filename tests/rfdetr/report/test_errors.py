"""Kinds of errors after TIDE, on cases made by hand."""

import numpy as np
import pytest

from rfdetr.evaluation import CocoMetrics
from rfdetr.report.detections import Evaluation, load_evaluation, save_evaluation
from rfdetr.report.errors import IGNORED, KINDS, RIGHT, counts_by_threshold, find_errors, gains, worst_images

THERE = (0, 0, 10, 10)
CLOSE, FAR = (0, 0, 10, 3), (50, 50, 60, 60)  # IoU 0.3 and 0 with it


def kinds(image) -> list[str]:
    return [{RIGHT: "right", IGNORED: "ignored"}.get(kind) or KINDS[kind] for kind in find_errors([image]).kinds.tolist()]


@pytest.mark.parametrize(("box", "label", "kind"), [
    (THERE, 0, "right"), (THERE, 1, "classification"), (CLOSE, 0, "localisation"), (CLOSE, 1, "both"), (FAR, 0, "background"),
    ((0, 0, 10, 0.9), 0, "background"), ((0, 0, 10, 1), 0, "localisation"), ((0, 0, 10, 5), 0, "right"),
])
def test_each_kind_by_the_overlap_with_one_object(image, box, label, kind):
    assert kinds(image([(box, label, 0.9)], [(THERE, 0)])) == [kind]


def test_a_second_detection_of_an_object_is_a_duplicate(image):
    assert kinds(image([(THERE, 0, 0.4), (THERE, 0, 0.9)], [(THERE, 0)])) == ["duplicate", "right"]


def test_the_own_class_goes_before_another(image):
    """A box that is off for an object of its class is that, even where it lies well on an object of another class."""
    assert kinds(image([((0, 0, 10, 4), 0, 0.9)], [(THERE, 0), ((0, 0, 10, 4), 1)])) == ["localisation"]


def test_crowds_and_images_without_anything(image):
    assert kinds(image([(THERE, 0, 0.9)], [(THERE, 0)], crowd=[0])) == ["ignored"]
    errors = find_errors([image(), image([(THERE, 3, 0.9)]), image([], [(THERE, 1)])])
    assert [KINDS[kind] for kind in errors.kinds] == ["background"] and errors.labels.tolist() == [3]
    assert gains(find_errors([])) == {"AP50": -1.0, **dict.fromkeys(KINDS, -1.0)}


def test_what_each_kind_costs(image):
    """Each image has one object: found, given the wrong class, boxed badly, missed; one false alarm scores best of all."""
    images = [image([(THERE, 0, 0.5)], [(THERE, 0)]), image([(THERE, 1, 0.6)], [(THERE, 0)]),
              image([(CLOSE, 0, 0.7)], [(THERE, 0)]), image([(FAR, 0, 0.9)], [(THERE, 0)])]
    found = gains(find_errors(images))
    metrics = CocoMetrics()
    metrics.images = images
    assert found["AP50"] == pytest.approx(metrics.compute()["mAP_50"], abs=1e-12)
    at = np.linspace(0, 1, 101)  # detections of class 0 by score: false alarm, bad box, right: precision 1/3 up to recall 1/4
    base = np.where(at <= 0.25, 1 / 3, 0).mean()
    assert found["AP50"] == pytest.approx(base)
    assert found["background"] == pytest.approx(np.where(at <= 0.25, 1 / 2, 0).mean() - base)
    assert found["localisation"] == pytest.approx(np.where(at <= 0.5, 2 / 3, 0).mean() - base)
    assert found["classification"] == pytest.approx(np.where(at <= 0.5, 1 / 2, 0).mean() - base)
    assert found["missed"] == pytest.approx(np.where(at <= 1 / 3, 1 / 3, 0).mean() - base)  # the last object is gone
    assert found["both"] == found["duplicate"] == 0


def test_one_mended_detection_finds_an_object(image):
    """Of two detections that have the wrong class the better one is put right; where the object is found, both only go away."""
    twice = image([(THERE, 1, 0.9), (THERE, 2, 0.8)], [(THERE, 0)])
    found = image([(THERE, 1, 0.9), (THERE, 0, 0.5)], [(THERE, 0)])
    assert gains(find_errors([twice]))["classification"] == pytest.approx(1.0)
    assert gains(find_errors([found]))["classification"] == pytest.approx(0.0)
    nothing = gains(find_errors([image([], [(THERE, 0)])]))
    assert (nothing["AP50"], nothing["missed"]) == (0.0, 1.0)


def test_counts_follow_the_threshold(image):
    images = [image([(THERE, 0, 0.5), (CLOSE, 0, 0.9)], [(THERE, 0)]),
              image([(THERE, 1, 0.25)], [((0, 0, 40, 40), 0), (THERE, 0)])]
    counts = counts_by_threshold(find_errors(images), 2)
    assert counts["objects"].tolist() == [3, 0]
    assert [counts["right"][:, at].tolist() for at in (0, 50, 51)] == [[1, 0], [1, 0], [0, 0]]
    assert [counts["wrong"][:, at].tolist() for at in (0, 25, 26, 91)] == [[1, 1], [1, 1], [1, 0], [0, 0]]
    missed = counts["errors"][KINDS.index("missed")]
    assert [missed[at] for at in (0, 25, 26, 89, 91)] == [1, 1, 2, 2, 3]  # a wrong class and a bad box account for theirs
    assert counts["size_objects"].tolist() == [2, 1, 0] and counts["size_right"][:, 0].tolist() == [1, 0, 0]


def test_the_worst_images_come_first(image):
    images = [image([(THERE, 0, 0.9)], [(THERE, 0)]), image([(FAR, 0, 0.6)]), image([], [(THERE, 0), (FAR, 1)]),
              image([(FAR, 0, 0.2)])]
    assert worst_images(find_errors(images), images, 0.5, 9) == [2, 1]


def test_detections_come_back_as_they_were_written(image, tmp_path):
    images = [image([(THERE, 0, score / 200) for score in range(150)], [(THERE, 1)], crowd=[0], image_id=7), image(image_id=9)]
    save_evaluation(Evaluation(images, {"model": "ema"}), tmp_path / "x.npz")
    again = load_evaluation(tmp_path / "x.npz")
    assert again.about == {"model": "ema"} and [one.image_id for one in again.images] == [7, 9]
    assert again.images[0].detections.scores.tolist() == images[0].detections.scores[50:].tolist()  # the best hundred
    assert again.images[0].targets.crowd.tolist() == [True] and len(again.images[1].targets) == 0
    save_evaluation(Evaluation([], {}), tmp_path / "x.npz")
    assert load_evaluation(tmp_path / "x.npz").images == []
