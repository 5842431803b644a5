"""Find objects on pictures or a video: ``python tools/predict.py --checkpoint FILE --input IMAGE|FOLDER|VIDEO [--output DIR]``.

Model, classes and input size come out of the checkpoint, ours or a published one. The output folder gets predictions.json
(COCO's results, with names) and the pictures with what was found drawn on them; of a video predictions.jsonl (a line a frame) and
video.mp4. A picture that cannot be read is reported and left out; the exit code is 2 only if that leaves none. Ctrl-C ends a
camera or a stream, with whole files and exit code 3. From Python it is `rfdetr.load(FILE).predict` and `.stream`.
"""

from rfdetr.training.main import run

if __name__ == "__main__":
    run("predict")
