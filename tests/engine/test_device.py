"""Preparing a process for its device."""

import platform
import subprocess
import sys

import pytest

IS_IN_HEAP = """
import torch
from engine.device import use_device
use_device(torch.device("cpu"))
address = torch.empty(2**24).data_ptr()  # 64 MiB, which glibc would map by themselves and give back at once
ranges = [line.split()[0].split("-") for line in open("/proc/self/maps")]
size, = (int(end, 16) - int(start, 16) for start, end in ranges if int(start, 16) <= address < int(end, 16))
print(size > 2**26 + 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is asked to")
def test_large_blocks_stay_in_the_process():
    assert subprocess.run([sys.executable, "-c", IS_IN_HEAP], capture_output=True, text=True, check=True).stdout == "True\n"
