"""Preparing a process for its device."""

import platform
import subprocess
import sys

import pytest

ARE_IN_HEAP = """
import torch
from engine.device import use_device
use_device(torch.device("cpu"))
ranges = [line.split() for line in open("/proc/self/maps")]
start, _ = next((int(address, 16) for address in words[0].split("-")) for words in ranges if words[-1] == "[heap]")
blocks = [torch.empty(2**count) for count in (21, 23)]  # 8 and 32 MiB
grown = next(int(line.split()[0].split("-")[1], 16) for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]"))
print(*(start <= block.data_ptr() < grown for block in blocks))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is asked to")
def test_large_blocks_stay_in_the_process_and_the_largest_do_not():
    found = subprocess.run([sys.executable, "-c", ARE_IN_HEAP], capture_output=True, text=True, check=True)
    assert found.stdout == "True False\n"
