"""COCO metrics: equal to pycocotools, to COCO's published numbers, and whatever the images come in."""

import contextlib
import io
import multiprocessing
import os

import numpy as np
import pytest
import torch
from eval_cases import CASES, DATA, SUMMARY, golden_arrays, golden_images, made_up_images, pair_images
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr.evaluation import CocoMetrics, absolute_targets
from rfdetr.evaluation.coco_engine import coco_tables
from rfdetr.evaluation.records import encode_masks, make_record

needs_pair = pytest.mark.skipif(not DATA.is_dir(), reason="RFDETR_TEST_DATA has no coco_eval_pair")
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


def evaluated(results, targets, **arguments):
    metric = CocoMetrics(**arguments)
    for start in range(0, len(results), 4):
        metric.update(results[start : start + 4], targets[start : start + 4])
    return metric


def golden_metric(case, **arguments):
    iou_types = ("bbox", "segm") if case.get("seg") else ("bbox",)
    return evaluated(*golden_images(case), iou_types=iou_types, max_dets=case["maxdet"], **arguments)


@each_case
def test_equal_to_pycocotools_in_float64(case):
    values = golden_metric(case).compute()
    names = {"map": "mAP_50_95", "map_50": "mAP_50", "map_75": "mAP_75", "mar": "mAR"}
    for iou_type, expected in case["pycocotools_float64"].items():
        prefix = "segm_" if iou_type == "segm" else ""
        assert {key: values[prefix + name] for key, name in names.items()} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if not case["crowd"]], ids=lambda case: case["name"])
def test_matches_of_the_goldens(case):
    """Rows may come in any order. With a crowd the golden's overlap is not COCO's (decision 13): see the next test."""
    arrays, matches = golden_arrays(), golden_metric(case).matches()
    assert [matches[label].num_targets for label in case["class_ids"]] == case["total_gt"]
    for label in case["class_ids"]:
        expected = [arrays[f"{case['key']}match_{label}_{name}"] for name in ("scores", "matches", "ignore")]
        found = [matches[label].scores, matches[label].matched, matches[label].ignored]
        assert rows(*found) == rows(expected[0].astype(np.float64), expected[1].astype(bool), expected[2])


def rows(scores, matched, ignored):
    return sorted(zip(scores.tolist(), matched.tolist(), ignored.tolist()))


@each_case
def test_matches_are_those_of_pycocotools(case):
    """pycocotools keeps its matches of every image and class; IoU 0.5 is its first threshold."""
    results, targets = golden_images(case)
    iou_type = "segm" if case.get("seg") else "bbox"
    evaluator = stock_evaluation(results, targets, iou_type, case["maxdet"])
    expected = {label: [] for label in case["class_ids"]}
    for image in evaluator.evalImgs:
        if image is not None and image["aRng"] == [0, 1e10]:
            matched, ignored = image["dtMatches"][0] > 0, image["dtIgnore"][0].astype(bool)
            expected[image["category_id"]] += rows(np.array(image["dtScores"]), matched & ~ignored, ignored)
    matches = golden_metric(case).matches()
    for label in case["class_ids"]:
        assert rows(matches[label].scores, matches[label].matched, matches[label].ignored) == sorted(expected[label])


def stock_evaluation(results, targets, iou_type, max_dets):
    """Run pycocotools the way its documentation does, over `results` and `targets` without areas."""

    def annotations(instances, **extra):
        lists = []
        for image_id, one in enumerate(instances):
            boxes = one["boxes"].double()
            for row, label in enumerate(one["labels"].tolist()):
                x, y, x2, y2 = boxes[row].tolist()
                lists.append({"image_id": image_id, "category_id": label, "bbox": [x, y, x2 - x, y2 - y], "iscrowd": 0})
                lists[-1]["area"] = (x2 - x) * (y2 - y)
                lists[-1] |= {name: one[key][row].item() for name, key in extra.items() if key in one}
                if iou_type == "segm":
                    mask = one["masks"][row].reshape(one["masks"].shape[-2:]).numpy()
                    lists[-1]["segmentation"] = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        return [{"id": number, **annotation} for number, annotation in enumerate(lists, start=1)]

    def dataset(instances, **extra):
        coco = COCO()
        labels = sorted({label for side in (results, targets) for one in side for label in one["labels"].tolist()})
        images = [
            {"id": i, **dict(zip(("height", "width"), target.get("masks", torch.zeros(1, 1, 1)).shape[-2:]))}
            for i, target in enumerate(targets)
        ]
        coco.dataset = {"images": images, "categories": [{"id": label} for label in labels]}
        coco.dataset["annotations"] = annotations(instances, **extra)
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(dataset(targets, iscrowd="iscrowd"), dataset(results, score="scores"), iou_type)
        evaluator.params.maxDets = [1, 10, max_dets]
        evaluator.evaluate()
    return evaluator


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(5))
def test_tables_are_those_of_pycocotools(seed, iou_type):
    """Ties of scores, crowds, images without targets or detections, more detections than a limit."""
    generator = np.random.default_rng(seed)
    images = [random_image(generator, iou_type == "segm") for _ in range(12)]
    results, targets = ([image[side] for image in images] for side in (0, 1))
    stock = stock_evaluation(results, targets, iou_type, 100)
    with contextlib.redirect_stdout(io.StringIO()):
        stock.accumulate()
    encode = encode_masks if iou_type == "segm" else None
    tables = coco_tables([make_record(*image, encode) for image in images], iou_type, [1, 10, 100])
    for name in ("precision", "recall"):
        np.testing.assert_allclose(getattr(tables, name), stock.eval[name], rtol=0, atol=1e-12)


def random_image(generator, with_masks):
    num_found, num_targets = generator.integers(0, 25), generator.integers(0, 6)
    centres = generator.uniform(10, 90, (num_targets, 2))
    near = centres[generator.integers(0, num_targets, num_found)] if num_targets else generator.uniform(10, 90, (num_found, 2))
    instances = []
    for middle in (near + generator.normal(0, 2, (num_found, 2)), centres):
        half = generator.uniform(4, 10, (len(middle), 2))
        boxes = torch.from_numpy(np.concatenate([middle - half, middle + half], axis=1))
        instances.append({"boxes": boxes, "labels": torch.from_numpy(generator.integers(0, 2, len(middle)))})
        if with_masks:
            instances[-1]["masks"] = torch.zeros(len(boxes), 100, 110, dtype=torch.bool)
            for mask, (x, y, x2, y2) in zip(instances[-1]["masks"], boxes.clamp(0).int().tolist()):
                mask[y:y2, x:x2] = True
    found, target = instances
    found["scores"] = torch.from_numpy(generator.integers(0, 6, num_found) / 6)
    target["iscrowd"] = torch.from_numpy((generator.random(num_targets) < 0.2).astype(np.int64))
    return found, target


PUBLISHED = {
    "bbox": [0.5046, 0.697, 0.573, 0.5856, 0.5194, 0.5014, 0.3868, 0.5937, 0.5954, 0.6398, 0.5664, 0.5643],
    "segm": [0.3195, 0.5623, 0.2989, 0.3874, 0.3102, 0.3269, 0.2682, 0.4154, 0.4168, 0.4694, 0.3768, 0.3815],
}


@needs_pair
@pytest.mark.parametrize("iou_type", PUBLISHED)
def test_twelve_published_numbers(iou_type):
    files = ("instances_val2014_100.json", f"instances_val2014_fake{iou_type}100_results.json")
    results, targets = pair_images(*files, iou_type)
    values = evaluated(results, targets, iou_types=(iou_type,), max_dets=100).compute()
    prefix = "segm_" if iou_type == "segm" else ""
    found = [values[prefix + name] for name in SUMMARY]
    assert found == pytest.approx(PUBLISHED[iou_type], abs=5.1e-5)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(DATA / files[0]))
        stock = COCOeval(truth, truth.loadRes(str(DATA / files[1])), iou_type)
        stock.evaluate(), stock.accumulate(), stock.summarize()
    assert found == pytest.approx(stock.stats.tolist(), abs=1e-9)


@needs_pair
def test_numbers_published_for_the_sampled_pair():
    values = evaluated(*pair_images("sampled_gts_bbox_area.json", "sampled_bbox_results.json", "bbox"), max_dets=100).compute()
    expected = [0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363]
    expected += [0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744]
    assert [values[name] for name in SUMMARY] == pytest.approx(expected, abs=1e-6)


def test_the_order_of_images_does_not_matter():
    results, targets = made_up_images(12)
    results = [{**result, "scores": (result["scores"] * 4).round() / 4} for result in results]  # many equal scores
    targets = absolute_targets(targets)
    forward = evaluated(results, targets)
    backward = evaluated(results[::-1], targets[::-1])
    assert forward.compute() == backward.compute()
    assert forward.per_class() == backward.per_class()


def test_a_forked_process_can_evaluate_as_its_parent_has():
    results, targets = golden_images(CASES[0])
    expected = evaluated(results, targets).compute()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(0 if evaluated(results, targets).compute() == expected else 1))
    child.start()
    child.join(60)
    assert child.exitcode == 0, "an engine with threads of its own waits for ever here"


def test_detections_in_images_without_targets_count():
    result = {"boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    target = {"boxes": result["boxes"], "labels": result["labels"]}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    good = evaluated([result], [target]).compute()
    false_alarm = {**result, "scores": torch.tensor([0.9])}
    with_alarm = evaluated([result, false_alarm], [target, empty]).compute()
    assert good["mAP_50_95"] == pytest.approx(1.0) and with_alarm["mAP_50_95"] == pytest.approx(0.5)


def test_without_images_everything_is_minus_one(recwarn):
    metric = CocoMetrics()
    assert metric.compute() == dict.fromkeys(SUMMARY, -1.0)
    assert metric.matches() == {} and metric.per_class() == {} and metric.pr_curves() == {}
    assert not recwarn.list


def test_images_may_be_added_after_an_evaluation_and_forgotten():
    results, targets = golden_images(CASES[0])
    metric = evaluated(results, targets)
    all_images = metric.compute()
    metric.update(results[:1], targets[:1])
    assert metric.compute() == evaluated(results + results[:1], targets + targets[:1]).compute()
    metric.reset()
    metric.update(results, targets)
    assert metric.compute() == all_images


def test_a_detection_that_cannot_be_ranked_is_left_out():
    results, targets = golden_images(CASES[0])
    expected = evaluated(results, targets).compute()
    nan = {"boxes": torch.tensor([[0.0, 0.0, 5.0, 5.0]]), "labels": torch.tensor([0]), "scores": torch.tensor([float("nan")])}
    spoiled = [{key: torch.cat([nan[key], result[key]]) for key in nan} for result in results]
    assert evaluated(spoiled, targets).compute() == expected


def test_precision_over_recall_of_a_perfect_detector():
    _, targets = golden_images(CASES[0])
    results = [{**target, "scores": torch.ones(len(target["labels"]))} for target in targets]
    recall, precision = evaluated(results, targets).pr_curves()[0]
    assert recall.tolist() == np.linspace(0, 1, 101).tolist() and precision == pytest.approx(np.ones(101))


@pytest.mark.parametrize(
    "arguments, message",
    [({"iou_types": ("box",)}, "iou_types"), ({"max_dets": 0}, "max_dets")],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CocoMetrics(**arguments)


def test_as_many_results_as_targets():
    with pytest.raises(ValueError, match="1 results for 0 targets"):
        CocoMetrics().update([{}], [])


def test_masks_of_different_sizes_cannot_be_compared():
    result, target = (
        {
            "boxes": torch.zeros(1, 4),
            "labels": torch.zeros(1),
            "scores": torch.ones(1),
            "masks": torch.ones(1, *size, dtype=torch.bool),
        }
        for size in ((4, 4), (8, 4))
    )
    with pytest.raises(ValueError, match=r"\(4, 4\) pixels were found"):
        CocoMetrics(iou_types=("segm",)).update([result], [target])
