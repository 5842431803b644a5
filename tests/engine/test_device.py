"""Preparing a process for its device."""

import platform
import subprocess
import sys

import pytest


MEMORY_TEST = """
import resource, sys, torch
from engine.device import use_device
use_device(torch.device("cpu"))
torch.empty(2**24).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(2**24).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is asked to")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", MEMORY_TEST], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # pages of 4 KiB that the system had to fill; each of the ten tensors has 16,384
