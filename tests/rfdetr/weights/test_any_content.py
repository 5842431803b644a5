"""A checkpoint is data: whatever it holds, only InputError leaves, and no number in it costs gigabytes."""

import contextlib
import copy
import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rfdetr.build import build_model
from rfdetr.config import VARIANTS, ModelConfig
from rfdetr.data.label_map import LabelMap
from rfdetr.errors import InputError
from rfdetr.weights import (
    average_can_continue,
    checkpoint_classes,
    checkpoint_payload,
    load_weights,
    model_config_from_checkpoint,
    official_state_dict,
    read_checkpoint,
)
from rfdetr.weights.reading import normalise

TINY = dataclasses.replace(VARIANTS["pico"], num_classes=2, dec_layers=1, num_queries=4, num_select=4, group_detr=1,
                           resolution=32)
CAT_DOG = LabelMap((3, 7), ("cat", "dog"))
MODEL = build_model(TINY)
PAYLOAD = checkpoint_payload(MODEL, TINY, label_map=CAT_DOG)

NAMES = st.sampled_from([
    "model", "state_dict", "ema_model", "args", "label_map", "class_names", "model_config", "epoch", "loops", "callbacks", "kind",
    "classes", "label", "category_id", "name", "contiguous", "coco", "best_total_source", "average_model_state_dict",
    *[field.name for field in dataclasses.fields(ModelConfig)], *official_state_dict(MODEL), *MODEL.state_dict(),
])
ODD_TENSORS = [torch.zeros(1).expand(10**9), torch.zeros(5, 5).to_sparse(), torch.zeros(10**6, device="meta")]
ODD_VALUES = [10**12, -1, 10**5000, float("inf"), "x" * 10**6, 2**63, range]  # drawn by place, since hypothesis prints choices
TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype), st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([torch.float32, torch.int64, torch.bool, torch.float16]),
) | st.integers(0, len(ODD_TENSORS) - 1).map(lambda place: ODD_TENSORS[place])
PLAIN = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | NAMES
         | st.integers(0, len(ODD_VALUES) - 1).map(lambda place: ODD_VALUES[place]))
KEYS = NAMES | st.integers(-3, 200) | st.text(max_size=5) | st.none()
ANY = st.recursive(PLAIN | TENSORS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
                   max_leaves=12)


def paths_of(value, here=()):
    """Places in nested dicts and lists."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*here, key))


PATHS = list(paths_of({key: value for key, value in PAYLOAD.items() if key != "model"}))[1:]


@st.composite
def spoiled(draw):
    """A good file with one to three places overwritten."""
    content = {**copy.deepcopy({key: value for key, value in PAYLOAD.items() if key != "model"}), "model": dict(PAYLOAD["model"])}
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(PATHS) | st.tuples(st.sampled_from(["model", "ema_model", "args", "model_config"]), KEYS))
        value, target = draw(ANY), content
        with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError):  # an earlier value is in the way
            for key in place[:-1]:
                target = target[key] if isinstance(target, (dict, list)) else None
            if isinstance(target, (dict, list)):
                target[place[-1]] = value
    return content


def use(content):
    """All that is done with a checkpoint; every step by itself, since it may be the first that looks at something."""
    as_dict = content if isinstance(content, dict) else {"model": content}
    for step in (
        lambda: normalise(content, "the file"),
        lambda: model_config_from_checkpoint(content),
        lambda: checkpoint_classes(content),
        lambda: load_weights(MODEL, as_dict, resize_head=True, label_map=CAT_DOG, allow_partial=True),
        lambda: load_weights(MODEL, as_dict, label_map=CAT_DOG),
        lambda: average_can_continue(MODEL, content, label_map=CAT_DOG),
        lambda: LabelMap.from_dict(content),
    ):
        try:
            step()
        except InputError as error:
            assert len(str(error)) < 3000


SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))


def quick_and_slow(number, slow_number):
    """Run a property with a few examples, and with many where that is asked for."""
    return pytest.mark.parametrize("examples", [number, pytest.param(slow_number, marks=SLOW)])


def check(strategy, examples):
    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(content):
        use(content)

    run()


@quick_and_slow(150, 10_000)
def test_any_values(examples):
    check(ANY, examples)


@quick_and_slow(60, 10_000)
def test_good_files_with_a_few_wrong_values(examples):
    check(spoiled(), examples)


@quick_and_slow(300, 10_000)
def test_any_label_map(examples):
    row = st.fixed_dictionaries({"label": PLAIN, "category_id": PLAIN, "name": PLAIN})
    kind = st.sampled_from(["contiguous", "coco"]) | PLAIN
    maps = st.fixed_dictionaries({"kind": kind, "classes": st.lists(row | ANY, max_size=3)})

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(maps)
    def run(values):
        try:
            made = LabelMap.from_dict(values)
        except InputError:
            return
        assert LabelMap.from_dict(made.to_dict()) == made and len(made.names) <= 100_001

    run()


@pytest.mark.parametrize("change", [
    {"model_config": {"dec_n_points": 10**6}}, {"model_config": {"resolution": 10**12}}, {"model_config": {"num_windows": 2.5}},
    {"model_config": {"out_feature_indexes": [99]}}, {"model_config": {"projector_scale": ["P9"]}},
    {"model_config": {"projector_scale": ["P3", "P4", "P5"], "sa_nheads": -4}}, {"model_config": {"encoder": ["pico"]}},
], ids=str)
def test_sizes_that_no_file_has(change, tmp_path):
    torch.save({**PAYLOAD, **change}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="does not describe a model|of no known variant"):
        build_model(model_config_from_checkpoint(read_checkpoint(tmp_path / "file.pth")))
