"""Write a checkpoint as a file for other programs: ``python tools/export.py --checkpoint FILE [--format onnx] [--output FILE]``.

The file is written only if it finds on pictures what the checkpoint finds in PyTorch; else the exit code is 1. `rfdetr.load` and
tools/eval.py take ONNX files too. From Python it is `rfdetr.training.export`.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("export")
