"""How fast a device is, for the record: steps of nano and medium at batch 16, as `rfdetr benchmark` measures them."""

import pytest
import torch

from engine.precision import resolve_precision
from rfdetr.training import benchmark_work
from rfdetr.training.actions import work_settings


@pytest.mark.parametrize("variant", ["nano", "medium", "pico"])
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_throughput_of_steps(device, variant, compile, configure, report, tmp_path):
    is_for_a_cpu = variant == "pico"
    if is_for_a_cpu != (device.type == "cpu") or (is_for_a_cpu and compile):
        pytest.skip("large variants are for a GPU, pico is for a CPU")
    own_sizes = {} if is_for_a_cpu else {"resolution": None, "num_queries": None, "group_detr": None}
    config = configure(device, model={"variant": variant, **own_sizes}, data={"batch_size": 2 if is_for_a_cpu else 16},
                       train={"precision": "auto", "compile": compile})
    precision = resolve_precision("auto", device)
    settings = {**work_settings(config, tmp_path, str(device), precision, 2 if is_for_a_cpu else 20), "boxes": 15}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step, cost = (benchmark_work.main(job, settings) for job in ("step", "cost"))
    found = {"images_per_s": settings["batch_size"] / step["seconds"], "megabytes": step["megabytes"], "precision": precision,
             "share_of_peak": cost["flop"] / step["seconds"] / cost["peak_flop_per_s"]}
    report[f"{variant} {'compiled' if compile else 'eager'}, batch of {settings['batch_size']}, {device}"] = found
    assert found["images_per_s"] > 0 and 0 < found["share_of_peak"] < 1.5


def test_what_it_was_measured_on(device, report):
    report[f"facts of {device}"] = benchmark_work.main("facts", {"device": str(device)})
