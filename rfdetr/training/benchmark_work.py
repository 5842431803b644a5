"""One measurement of `rfdetr benchmark`, in a process of its own, which prints JSON.

It also runs in an environment of the published package, or of another version of this project, and imports only what is there.
"""

import importlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

try:
    import resource
except ImportError:  # not on Windows
    resource = None

VIEWS = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view",
         "promote_types", "_record_function_enter_new", "_record_function_exit"}  # and what else moves nothing
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRODUCT_SIZES = {"cuda": 8192, "cpu": 2048}  # of the matrix product that stands for a device's peak

Settings = dict[str, Any]


class Detector:
    """Model, criterion, optimizer and one batch, made by whichever package is installed."""

    def __init__(self, settings: Settings, *, training: bool = True) -> None:
        self.precision, self.device = settings["precision"], torch.device(settings["device"])
        torch.manual_seed(0)
        make = _ours if _is_ours() else _published
        self.model, self.criterion, self.optimizer = make(settings, self.device)
        self.model.train(training), self.criterion.train(training)
        generator = torch.Generator().manual_seed(0)
        size, count, num_images = settings["resolution"], settings["boxes"], settings["batch_size"]
        self.images = torch.randn(num_images, 3, *size, generator=generator).to(self.device)
        self.targets = [{"boxes": (torch.rand(count, 4, generator=generator) * 0.3 + 0.2).to(self.device),
                         "labels": torch.randint(settings["num_classes"], (count,), generator=generator).to(self.device)}
                        for _ in range(num_images)]
        if settings["has_masks"]:
            for target in self.targets:
                target["masks"] = torch.ones(count, *size, dtype=torch.bool, device=self.device)

    def forward(self) -> dict[str, Any]:
        """Run the model in the precision asked for."""
        with torch.autocast(self.device.type, dtype=DTYPES.get(self.precision), enabled=self.precision in DTYPES):
            return self.model(self.images)

    def loss(self, outputs: dict[str, Any]) -> Tensor:
        """Match, and return the weighted sum of the losses."""
        losses, weights = self.criterion(outputs, self.targets), self.criterion.weight_dict
        return sum(weights[name] * value for name, value in losses.items() if name in weights)

    def step(self) -> None:
        """Make one update."""
        self.loss(self.forward()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _is_ours() -> bool:
    return hasattr(importlib.import_module("rfdetr"), "build_model")


def _ours(settings: Settings, device: torch.device) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    from engine.device import use_device
    from rfdetr.build import build_criterion
    from rfdetr.training.assemble import build_optimizer
    from rfdetr.training.evaluation import config_of
    from rfdetr.training.start import compile_parts, make_model

    use_device(device)
    config = config_of({"args": {}}, settings["run"])
    architecture = config.model.architecture(settings["num_classes"])
    model = make_model(config, architecture, None, None).to(device)
    criterion = build_criterion(architecture, config.loss)
    if config.train.compile:
        compile_parts(model, criterion, blocks_only=False)
    return model, criterion, build_optimizer(config, model)


def _published(settings: Settings, device: torch.device) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    import rfdetr
    from rfdetr.models.criterion import SetCriterion
    from rfdetr.models.matcher import HungarianMatcher

    sizes = {name: settings[name] for name in ("num_classes", "num_queries", "group_detr")}
    make = getattr(rfdetr, f"RFDETR{settings['variant'].capitalize()}")
    made = make(pretrain_weights=None, device=device.type, resolution=settings["resolution"][0], **sizes)
    model = made.model.model.to(device)
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    suffixes = (*range(settings["dec_layers"] - 1), "enc")
    weights |= {f"{key}_{suffix}": value for key, value in dict(weights).items() for suffix in suffixes}
    criterion = SetCriterion(settings["num_classes"] + 1, HungarianMatcher(2, 5, 2), weights, 0.25,
                             ["labels", "boxes", "cardinality"], group_detr=settings["group_detr"], ia_bce_loss=True)
    return model, criterion, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def facts(settings: Settings) -> dict[str, Any]:
    """What a measurement depends on beside the code, and whose code it is."""
    device = torch.device(settings["device"])
    torch.empty(0, device=device)  # fails where there is none
    package = "rfdetr-engine" if _is_ours() else "rfdetr"
    try:
        package = f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        pass  # a checkout that is not installed
    processor = _processor()
    return {
        "package": package, "is_ours": _is_ours(), "python": platform.python_version(), "torch": torch.__version__,
        "processor": processor, "instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def forward(settings: Settings) -> dict[str, float]:
    """Seconds of an evaluation's forward pass."""
    detector = Detector(settings, training=False)
    with torch.no_grad():
        return {"seconds": _median(detector.forward, detector.device, settings["repeats"])}


def losses(settings: Settings) -> dict[str, float]:
    """Seconds of matching and losses on fixed outputs."""
    detector = Detector(settings)
    with torch.no_grad():
        outputs = detector.forward()
    return {"seconds": _median(lambda: detector.loss(outputs), detector.device, settings["repeats"])}


def step(settings: Settings) -> dict[str, float]:
    """Seconds of a training step, and the peak memory of the process, or of the GPU."""
    detector = Detector(settings)
    seconds = _median(detector.step, detector.device, settings["repeats"])
    if detector.device.type == "cuda":
        return {"seconds": seconds, "megabytes": torch.cuda.max_memory_allocated(detector.device) / 1e6}
    if resource is None:
        return {"seconds": seconds}
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, else kilobytes
    return {"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def kernels(settings: Settings) -> dict[str, int]:
    """Kernels that an eager step in fp32 asks the device for, views left out."""

    class Count(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.total += not (operation.is_view or operation._schema.name.partition("::")[2] in VIEWS)
            return operation(*args, **(kwargs or {}))

    detector = Detector({**_eager(settings), "precision": "fp32"})
    detector.step()
    with Count() as count:
        detector.step()
    return {"count": count.total}


def cost(settings: Settings) -> dict[str, float]:
    """Floating-point operations of a step, and how many a second the device makes of a large product in the same precision."""
    detector = Detector(_eager(settings))
    with FlopCounterMode(display=False, custom_mapping=_cpu_formulas()) as counter:
        detector.step()
    size = PRODUCT_SIZES.get(detector.device.type, 4096)
    factor = torch.randn(size, size, device=detector.device).to(DTYPES.get(settings["precision"], torch.float32))
    seconds = _median(lambda: factor @ factor, detector.device, settings["repeats"])
    return {"flop": counter.get_total_flops(), "peak_flop_per_s": 2 * size**3 / seconds, "product_size": size}


def _cpu_formulas() -> dict[Any, Callable[..., int]]:
    """Operation counts of what PyTorch's counter does not know: our linear layer, and attention on a CPU; of shapes."""
    aten, linear = torch.ops.aten, getattr(torch.ops.rfdetr, "onednn_linear", None)
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward:
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
        **({} if linear is None else {linear: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]}),
    }


def evaluate(settings: Settings) -> dict[str, float]:
    """Seconds of COCO's metrics, from results of the model to the numbers."""
    results, targets = _made_up(settings["images"], settings["detections"], settings["num_classes"])
    if _is_ours():
        from rfdetr.evaluation import CocoMetrics

        make = CocoMetrics
    else:
        from rfdetr.training.coco_map import OnePassCocoMeanAveragePrecision

        def make() -> Any:
            return OnePassCocoMeanAveragePrecision(max_detection_thresholds=[1, 10, 500], backend="vernier", class_metrics=True)

    def run() -> None:
        metric = make()
        for first in range(0, len(results), 16):
            metric.update(results[first : first + 16], targets[first : first + 16])
        metric.compute()

    return {"seconds": _median(run, torch.device("cpu"), 3)}


def start(settings: Settings) -> dict[str, float]:
    """Nothing: what counts is the time of the process, from its start through the imports to the end of the first step."""
    detector = Detector(settings)
    detector.step()
    _wait_for(detector.device)
    return {}


def _eager(settings: Settings) -> Settings:
    run = settings["run"]
    return {**settings, "run": {**run, "train": {**run["train"], "compile": False}}}


def _made_up(num_images: int, num_found: int, num_classes: int) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Results and targets of images with 8 objects, each found by one of the detections."""
    generator = torch.Generator().manual_seed(0)
    results, targets = [], []
    for _ in range(num_images):
        boxes = torch.rand(num_found, 4, generator=generator) * torch.tensor([400.0, 300, 200, 150]) + 1
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.randint(num_classes, (num_found,), generator=generator)
        results.append({"boxes": boxes, "labels": labels, "scores": torch.rand(num_found, generator=generator)})
        targets.append({"boxes": boxes[:8] + 3, "labels": labels[:8], "iscrowd": torch.zeros(8, dtype=torch.int64)})
    return results, targets


def _median(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of `run`, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


JOBS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "facts": facts, "step": step, "forward": forward, "losses": losses, "evaluate": evaluate, "start": start,
    "kernels": kernels, "cost": cost,
}


def main(job: str, settings: Settings) -> dict[str, Any] | None:
    """Return the numbers of a job, None where it is one of this project's own and another package is installed."""
    if job in JOBS:
        return JOBS[job](settings)
    return importlib.import_module("rfdetr.training.run_timing").JOBS[job](settings) if _is_ours() else None


if __name__ == "__main__":
    sys.path[:] = [folder for folder in sys.path if folder]  # without the working directory, which may hold another rfdetr
    sys.stdout.write("\n" + json.dumps(main(sys.argv[2], json.loads(sys.argv[3]))) + "\n")
