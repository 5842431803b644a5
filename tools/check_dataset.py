"""Check a data set before training: ``python tools/check_dataset.py --dataset_dir DIR [--output DIR] [--fix DIR] ...``.

The report goes to the terminal, and with ``--output`` into check.json and check.png as well. The exit code is 1 if something
would break or falsify training. ``--cfg FILE`` takes data set and model from the configuration of a run instead.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("check")
