"""Find objects on pictures: ``python tools/predict.py --checkpoint FILE --input IMAGE|FOLDER [--output DIR] [--threshold 0.5]``.

Model, classes and input size come out of the checkpoint, ours or a published one. The output folder gets predictions.json
(COCO's results, with names) and the pictures with what was found drawn on them. A picture that cannot be read is reported and
left out; the exit code is 2 only if that leaves none. From Python it is `rfdetr.training.predict`.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("predict")
