"""The embedded data set "shapes": made on the spot, the same for everybody, in Roboflow's COCO layout with masks."""

import json
import logging
import uuid
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rfdetr.data.coco_writer import object_entry
from rfdetr.errors import InputError
from rfdetr.files import appearing_folder
from rfdetr.run_length import run_lengths
from rfdetr.shapes import scenes
from rfdetr.shapes.scenes import CLASS_NAMES, Scene, draw_scene

ANNOTATION_FILE = "_annotations.coco.json"
MARKER_FILE = "shapes.json"

logger = logging.getLogger(__name__)


def make_shapes(
    root: Path, *, num_train: int = 240, num_val: int = 60, num_test: int = 30, image_size: int = 256, seed: int = 0
) -> Path:
    """Make the data set in the folder ``root``, unless it is there already, and return ``root``.

    An image depends on ``seed``, its split and its number only, so a larger set begins with the images of a smaller one.
    The folder appears complete or not at all; processes that start at the same time may all call this.

    Args:
        root: folder to make; holds ``train``, ``valid`` and ``test`` afterwards.
        num_train: number of training images; ``num_val`` and ``num_test`` likewise.
        image_size: longer side of the images in pixels.
        seed: another seed gives other images.
    """
    root = Path(root)
    splits = {"train": num_train, "valid": num_val, "test": num_test}
    parameters = _parameters(splits, image_size, seed)
    if _is_ready(root, parameters):
        return root
    logger.info("making %d images of shapes in %s", sum(splits.values()), root)
    partial = root.absolute().with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
    try:
        with appearing_folder(root, partial):
            for number, (split, num_images) in enumerate(splits.items()):
                _write_split(partial / split, num_images, image_size, (seed, number))
            (partial / MARKER_FILE).write_text(json.dumps(parameters, indent=1) + "\n")
    except OSError as error:
        if not _is_ready(root, parameters):  # else another process was quicker with the same set
            raise InputError(f"cannot write the shapes data set to {root}: {error}; choose another folder") from error
    return root


def _parameters(splits: dict[str, int], image_size: int, seed: int) -> dict:
    """Everything that the pictures depend on, as it reads after a trip through JSON."""
    knobs = {name.lower(): value for name, value in vars(scenes).items() if name.isupper()}
    return json.loads(json.dumps({"num_images": splits, "image_size": image_size, "seed": seed, "scene": knobs}))


def _is_ready(root: Path, parameters: dict) -> bool:
    """Tell whether ``root`` holds this very data set; anything else that it holds is never touched."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = "choose another folder, or delete this one to have the data set made again"
    try:
        found = json.loads((root / MARKER_FILE).read_text())
    except (OSError, ValueError):
        raise InputError(f"{root} exists and is not a shapes data set ({MARKER_FILE} is missing); {advice}") from None
    if found == parameters:
        return True
    names = sorted(name for name in parameters if not isinstance(found, dict) or found.get(name) != parameters[name])
    raise InputError(f"{root} holds a shapes data set made with another {' and '.join(names)}; {advice}")


def _write_split(folder: Path, num_images: int, image_size: int, entropy: tuple[int, int]) -> None:
    """Write the images of one split and their annotation file."""
    folder.mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(num_images):
        scene = draw_scene(image_size, *entropy, number)
        file_name = f"{folder.name}_{number:05d}.png"
        # PNG: what is read back is what was drawn, whatever the decoder
        Image.fromarray(scene.image).save(folder / file_name, compress_level=1)
        height, width = scene.image.shape[:2]
        images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        annotations += _scene_annotations(scene, image_id=number, first_id=len(annotations) + 1)
    categories = [{"id": index + 1, "name": name, "supercategory": "shape"} for index, name in enumerate(CLASS_NAMES)]
    content = {"info": {"description": "shapes"}, "images": images, "annotations": annotations, "categories": categories}
    (folder / ANNOTATION_FILE).write_text(json.dumps(content))


def _scene_annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    """COCO annotations of what can be seen of each object."""
    annotations = []
    for offset, (label, mask) in enumerate(zip(scene.labels, scene.masks, strict=True)):
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        runs = run_lengths(torch.from_numpy(mask)[None])[0]
        annotations.append(object_entry(first_id + offset, image_id=image_id, category_id=label + 1, box=box,
                                        area=int(mask.sum()), segmentation=runs))
    return annotations
