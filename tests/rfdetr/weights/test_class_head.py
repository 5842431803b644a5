"""Class heads for other classes: rows go by name; what a file says its classes are; when an average can go on."""

import dataclasses
import logging

import pytest
import torch

from rfdetr.build import build_model
from rfdetr.config import VARIANTS
from rfdetr.data.label_map import LabelMap
from rfdetr.errors import InputError
from rfdetr.weights import average_can_continue, checkpoint_classes, checkpoint_payload, load_weights, official_state_dict
from rfdetr.weights.class_head import COCO_CLASSES

CAT_DOG = LabelMap((1, 2), ("cat", "dog"))
WITH_BIRD = LabelMap((0, 1, 2), ("bird", "cat", "dog"))
HEADS = ["class_embed", *[f"transformer.enc_out_class_embed.{group}" for group in range(5)]]
CONFIG = VARIANTS["pico"]


def model_for(label_map: LabelMap | int):
    num_classes = label_map if isinstance(label_map, int) else label_map.num_classes
    return build_model(dataclasses.replace(CONFIG, num_classes=num_classes))


def heads(model) -> dict[str, torch.Tensor]:
    state = official_state_dict(model)
    return {f"{head}.{part}": state[f"{head}.{part}"].clone() for head in HEADS for part in ("weight", "bias")}


@pytest.fixture
def cat_dog():
    """A model for cats and dogs whose rows all differ, and its file."""
    model = model_for(CAT_DOG)
    for head in (model.class_embed, *model.transformer.enc_out_class_embed):
        torch.nn.init.normal_(head.bias)
    return model, checkpoint_payload(model, dataclasses.replace(CONFIG, num_classes=2), label_map=CAT_DOG)


def check_rows(before, after, source, rows):
    """Row i of all heads must be row rows[i] of the file, or where that is None the model's own."""
    for name in after:
        for row, wanted in enumerate(rows):
            expected = before[name][row] if wanted is None else source[name][wanted]
            assert torch.equal(after[name][row], expected), (name, row)


def test_a_class_in_front(cat_dog, caplog):
    """Bird started with cat's row, cat with dog's, dog with the background's."""
    source, content = cat_dog
    model = model_for(WITH_BIRD)
    before = heads(model)
    with caplog.at_level(logging.INFO):
        report = load_weights(model, content, resize_head=True, label_map=WITH_BIRD)
    check_rows(before, heads(model), heads(source), [None, 0, 1, 2])
    assert caplog.text.count("taken over by name: 'cat' (id 1), 'dog' (id 2); new: 'bird' (id 0)") == 1
    assert set(report.resized) == set(before) and not report.missing
    assert torch.equal(model.query_feat.weight, source.query_feat.weight)


@pytest.mark.parametrize("names, rows", [
    (("dog", "cat"), [1, 0, 2]), (("Dog", " CAT"), [1, 0, 2]), (("cow", "dog"), [None, 1, 2]), (("cow", "owl"), [None, None, 2]),
    (("dog",), [1, 2]),
])
def test_rows_go_by_name(cat_dog, names, rows):
    source, content = cat_dog
    label_map = LabelMap(tuple(range(len(names))), names)
    model = model_for(label_map)
    before = heads(model)
    load_weights(model, content, resize_head=True, label_map=label_map)
    check_rows(before, heads(model), heads(source), rows)


def test_the_same_classes_stay_as_they_are(cat_dog):
    source, content = cat_dog
    for label_map in (CAT_DOG, LabelMap((7, 9), ("cat", "dog"))):
        for resize_head in (False, True):
            model = model_for(CAT_DOG)
            report = load_weights(model, content, resize_head=resize_head, label_map=label_map)
            assert report.resized == [] and all(torch.equal(heads(model)[name], row) for name, row in heads(source).items())


def test_the_same_classes_in_another_order_need_no_asking(cat_dog, caplog):
    source, content = cat_dog
    model = model_for(CAT_DOG)
    with caplog.at_level(logging.INFO):
        load_weights(model, content, label_map=LabelMap((1, 2), ("dog", "cat")))
    check_rows(None, heads(model), heads(source), [1, 0, 2])
    assert "taken over by name: 'dog' (id 1), 'cat' (id 2)" in caplog.text


@pytest.mark.parametrize("label_map", [WITH_BIRD, LabelMap((1, 2), ("cat", "cow")), LabelMap((1,), ("cat",))])
def test_other_classes_are_refused_with_both_lists(cat_dog, label_map):
    model = model_for(label_map)
    before = heads(model)
    with pytest.raises(InputError, match=r"other classes: the checkpoint has 2 classes, 'cat' .*the data set has .*resize"):
        load_weights(model, cat_dog[1], label_map=label_map)
    assert all(torch.equal(row, before[name]) for name, row in heads(model).items())


def test_official_weights_of_coco(pico_weights, caplog):
    """91 logits without a word about classes: COCO's ids."""
    label_map = LabelMap((0, 1, 2), ("airplane", "wbc", "toothbrush"))
    model = model_for(label_map)
    before = heads(model)
    load_weights(model, {"model": pico_weights}, resize_head=True, label_map=label_map)
    check_rows(before, heads(model), pico_weights, [5, None, 90, 83])  # 83 is none of COCO's 80
    all_of_them = LabelMap(tuple(range(80)), tuple(COCO_CLASSES.values()))
    model = model_for(all_of_them)
    load_weights(model, {"model": pico_weights}, label_map=all_of_them)
    check_rows(None, heads(model), pico_weights, [*COCO_CLASSES, 83])
    model = model_for(90)
    load_weights(model, {"model": pico_weights}, label_map=LabelMap(tuple(COCO_CLASSES), tuple(COCO_CLASSES.values()), raw=True))
    check_rows(None, heads(model), pico_weights, range(91))


@pytest.mark.parametrize("num_classes, rows", [(4, [0, 1, 2, 0, 1]), (1, [0, 1])])
def test_without_names_rows_go_by_position(cat_dog, num_classes, rows, caplog):
    source, content = cat_dog
    label_map = LabelMap(tuple(range(num_classes)), ("cow", "owl", "rat", "emu")[:num_classes])
    model = model_for(label_map)
    with caplog.at_level(logging.INFO):
        load_weights(model, {"model": content["model"]}, resize_head=True, label_map=label_map)
    check_rows(None, heads(model), heads(source), rows)
    assert "names of the classes are not known on both sides" in caplog.text


def test_names_of_published_files_count(cat_dog):
    source, content = cat_dog
    model = model_for(WITH_BIRD)
    before = heads(model)
    published = {"model": content["model"], "args": {"class_names": ["cat", "dog"]}}
    load_weights(model, published, resize_head=True, label_map=WITH_BIRD)
    check_rows(before, heads(model), heads(source), [None, 0, 1, 2])


def with_head(rows: int, **content):
    return {"model": {"class_embed.bias": torch.zeros(rows)}, **content}


@pytest.mark.parametrize("content, expected", [
    (with_head(3, label_map=CAT_DOG.to_dict(), args={"class_names": ["x", "y"]}), CAT_DOG),
    (with_head(3, args={"class_names": ["cat", "dog"]}), LabelMap((0, 1), ("cat", "dog"))),
    (with_head(4, args={"class_names": ["cat", "dog"]}), LabelMap((0, 1), ("cat", "dog"))),
    (with_head(3, class_names=("cat", "cat")), LabelMap((0, 1), ("cat (id 0)", "cat (id 1)"))),
    (with_head(4, args={"class_names": {"1": "cat", "3": "dog"}}), LabelMap((1, 3), ("cat", "dog"), raw=True)),
    (with_head(91, args={"class_names": list(COCO_CLASSES.values())}), LabelMap(*zip(*COCO_CLASSES.items()), raw=True)),
    (with_head(91), LabelMap(*zip(*COCO_CLASSES.items()), raw=True)),
    (with_head(3), LabelMap((0, 1), ("0", "1"))),
    (with_head(3, args={"class_names": ["cat", "dog", "owl", "cow"]}), LabelMap((0, 1), ("0", "1"))),  # of another model
])
def test_what_a_file_knows_of_its_classes(content, expected):
    assert checkpoint_classes(content) == expected


def test_a_label_map_that_does_not_fit_the_head():
    with pytest.raises(InputError, match="label map has 3 classes, too many for its class head with 2 logits"):
        checkpoint_classes(with_head(2, label_map=WITH_BIRD.to_dict()))


def test_when_an_average_can_go_on(cat_dog):
    source, content = cat_dog
    other = official_state_dict(model_for(CAT_DOG))
    same, with_bird = model_for(CAT_DOG), model_for(WITH_BIRD)
    assert not average_can_continue(same, content, label_map=CAT_DOG)  # there is none
    average = {f"module.{name}": tensor for name, tensor in other.items()}
    both = {**content, "ema_model": {**average, "n_averaged": torch.tensor(3)}}
    assert average_can_continue(same, both, label_map=CAT_DOG)
    assert average_can_continue(same, both, label_map=LabelMap((1, 2), ("dog", "cat")))
    assert not average_can_continue(with_bird, both, label_map=WITH_BIRD)  # its row has no average
    assert not average_can_continue(model_for(4), {**both, "label_map": None, "args": {}})
    assert not average_can_continue(same, {**both, "best_total_source": "ema"}, label_map=CAT_DOG)
    assert not average_can_continue(same, {**both, "ema_model": official_state_dict(source)}, label_map=CAT_DOG)
    report = load_weights(same, both, ema=True, label_map=CAT_DOG)
    assert report.unexpected == [] and torch.equal(same.class_embed.bias, other["class_embed.bias"])
