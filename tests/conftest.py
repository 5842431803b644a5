"""One thread a process: the models of the tests are so small that threads only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
for name in ("CI", "TERM", "COLUMNS", "PAGER"):  # the tests give terminals, and what they print is compared
    os.environ.pop(name, None)


def pytest_configure(config):
    """Keep the order of the files with ``-n 2`` too: tests/cuda start threads, behind which a forked process cannot train."""
    config.option.loadscopereorder = False
