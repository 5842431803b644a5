"""Which precision "auto" is, and what is said where bf16 is only emulated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import precision
from engine.precision import multiplies_bf16, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch):
    """Make up what PyTorch says of the processor."""

    def pretend(*, onednn: bool, avx512_bf16: bool = False, amx: bool = False, machine: str = "x86_64") -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(precision.platform, "machine", lambda: machine)
        precision._warn_of_emulation.cache_clear()

    return pretend


@pytest.mark.parametrize(("said", "expected"), [
    ({"onednn": False}, "fp32"),  # AVX2
    ({"onednn": False, "avx512_bf16": True}, "fp32"),  # oneDNN was told not to use it
    ({"onednn": True}, "fp32"),  # AVX-512 that converts each number
    ({"onednn": True, "avx512_bf16": True}, "bf16"),
    ({"onednn": True, "amx": True}, "bf16"),
    ({"onednn": True, "machine": "aarch64"}, "bf16"),
])  # fmt: skip
def test_auto_on_a_cpu_is_bf16_exactly_where_it_is_multiplied(processor, said, expected):
    processor(**said)
    assert resolve_precision("auto", CPU) == expected
    assert multiplies_bf16(CPU) == (expected == "bf16")


def test_emulated_bf16_is_said_once(processor, caplog):
    processor(onednn=False)
    assert [resolve_precision("bf16", CPU) for _ in range(3)] == ["bf16"] * 3
    (record,) = caplog.records
    assert "bf16 is emulated on this CPU" in record.getMessage() and "use auto or fp32" in record.getMessage()
    caplog.clear()
    processor(onednn=True, avx512_bf16=True)
    resolve_precision("bf16", CPU)
    assert caplog.records == []


def test_what_onednn_may_use_decides():
    """oneDNN's own switch takes the instructions away, whatever the processor has."""
    code = "import torch; from engine.precision import resolve_precision; print(resolve_precision('auto', torch.device('cpu')))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "fp32\n"
