"""Train a detector: ``python tools/train.py --cfg FILE [--section.key VALUE ...] [--resume PATH|auto] [--overwrite]``.

Under ``torchrun --nproc-per-node N tools/train.py ...`` it trains in N processes. From Python it is `rfdetr.training.train`, of
an installed package ``rfdetr fit``.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("fit")
