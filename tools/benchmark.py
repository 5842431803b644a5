"""Measure how fast this machine trains: ``python tools/benchmark.py [--cfg FILE] [--rows step,losses] [--json FILE] [--cost]``.

With ``--cfg`` of a run it says how long that run will take here. ``--against PYTHON`` does the same work, in turn, in an
environment of the published package, and prints the ratios.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("benchmark")
