"""Evaluate a checkpoint: ``python tools/eval.py --checkpoint FILE [--split val|test] [--output FILE] [--section.key VALUE ...]``.

Model, classes, data set and settings of the evaluation come out of the checkpoint; ``--cfg FILE`` and overrides go over them.
From Python it is `rfdetr.training.evaluate`, of an installed package ``rfdetr validate`` and ``rfdetr test``.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("validate")
