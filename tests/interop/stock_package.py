"""Runs in the environment of the published package: opens files, and writes down what its models make of them.

Called with a folder that holds job.json, a list of jobs: {"class": "RFDETRNano", "keywords": {...}} and, where the model
is to be run, "input" (.npy, a normalised batch), "image" (.npy, RGB) and "output" (.npz). The answers go to answers.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import rfdetr


def run(job: dict, folder: Path) -> dict:
    detector = getattr(rfdetr, job["class"])(device="cpu", **job["keywords"])
    module = detector.model.model
    names = detector.class_names
    answer = {
        "layout": {name: list(tensor.shape) for name, tensor in module.state_dict().items()},
        "class_names": list(names.values()) if isinstance(names, dict) else list(names or []),
    }
    if job.get("reopen"):
        answer["reopened"] = type(rfdetr.RFDETR.from_checkpoint(job["keywords"]["pretrain_weights"], device="cpu")).__name__
    found = {}
    if "image" in job:
        image = Image.fromarray(np.load(folder / job["image"]))
        detections = detector.predict(image, threshold=job["threshold"])
        found |= {"xyxy": detections.xyxy, "confidence": detections.confidence, "class_id": detections.class_id}
        if detections.mask is not None:
            found["mask"] = detections.mask
    if "input" in job:
        module.double().eval()
        with torch.no_grad():
            outputs = module(torch.from_numpy(np.load(folder / job["input"])))
        found |= {name: outputs[name].numpy() for name in ("pred_logits", "pred_boxes", "pred_masks") if name in outputs}
    if found:
        np.savez(folder / job["output"], **found)
    return answer


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    answers = [run(job, folder) for job in json.loads((folder / "job.json").read_text())]
    (folder / "answers.json").write_text(json.dumps(answers))
