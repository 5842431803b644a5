"""Multi-scale sizes, and the one that a step draws, against the goldens of the published tool."""

import json
import random
from pathlib import Path

import pytest

from rfdetr.data import multi_scale_sizes

CASES = json.loads((Path(__file__).parents[2] / "goldens" / "training" / "multi_scale.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['resolution']}-{case['patch_size']}")
def test_golden_sizes_and_draws(case):
    sizes = multi_scale_sizes(case["resolution"], case["patch_size"], case["num_windows"], case["expanded"])
    assert sizes == case["scales"]
    steps = range(case["step_offset"], case["step_offset"] + len(case["chosen"]))
    assert [random.Random(step).choice(sizes) for step in steps] == case["chosen"]
