"""The check of a data set as one picture: histograms, the worst findings, and annotated samples."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rfdetr.data.images import locate, read_image
from rfdetr.data.label_map import without_groups
from rfdetr.datacheck.boxes import TINY_SIDE, sides_at_input
from rfdetr.datacheck.dataset_check import DatasetCheck
from rfdetr.datacheck.split_check import SplitCheck
from rfdetr.datacheck.statistics import MEDIUM_SIDE, SMALL_SIDE
from rfdetr.errors import InputError
from rfdetr.plots.colors import class_color, text_color
from rfdetr.plots.pictures import display_size, draw_detections

COLUMNS = 4
SAMPLES = {"train": 8, "val": 4, "test": 4}
MAX_FINDINGS = 12  # pictures
EXAMPLES_OF_ONE = 2  # pictures of one kind in one split
MAX_CLASSES = 30  # bars
TILE = 420  # pixels, longer side
CONTEXT = 4.0  # times the object's longer side is shown around it
MIN_CONTEXT = 80  # pixels
FRAME_GAP = 5  # pixels between an object's box and the frame around what a finding is about
COLOURS = {"train": "#3b6fb6", "val": "#e08a1e", "test": "#4d9a57"}


class Tile(NamedTuple):
    """One picture of the sheet, and what is written above it."""

    pixels: Tensor  # (3, h, w) uint8
    title: str


def draw_sheet(check: DatasetCheck, path: Path) -> None:
    """Draw the sheet into a PNG file."""
    findings, samples = _finding_tiles(check), _sample_tiles(check)
    blocks = [block for block in (findings, samples) if block]
    rows = sum(-(-len(block) // COLUMNS) for block in blocks)
    figure = Figure(figsize=(4 * COLUMNS, 4.2 + 3.6 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(1 + len(blocks), 1, height_ratios=[4.2, *(3.6 * -(-len(block) // COLUMNS) for block in blocks)],
                              squeeze=False)[:, 0]
    parts[0].suptitle(f"{check.dataset_dir}  ({check.format})", fontsize=11)
    for draw, axes in zip((_draw_classes, _draw_sizes, _draw_objects), parts[0].subplots(1, 3)):
        draw(check, axes)
        axes.spines[["top", "right"]].set_visible(False)
    for part, block in zip(parts[1:], blocks):
        part.suptitle("Findings" if block is findings else "Samples", fontsize=13, x=0.01, ha="left", weight="bold")
        grid = part.subplots(-(-len(block) // COLUMNS), COLUMNS, squeeze=False).ravel()
        for axes in grid:
            axes.axis("off")
        for axes, tile in zip(grid, block):
            axes.imshow(tile.pixels.permute(1, 2, 0).numpy())
            axes.set_title(tile.title, fontsize=8, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_classes(check: DatasetCheck, axes: Axes) -> None:
    counts = {name: numbers.class_counts for name, numbers in check.statistics.items() if numbers.class_counts}
    names = sorted(counts.get("train", {}), key=lambda name: -counts["train"][name])
    more = f", the first {MAX_CLASSES} of {len(names)}" if len(names) > MAX_CLASSES else ""
    names = names[:MAX_CLASSES]
    colors = {split.category_names[id_]: class_color(label) for split in reversed(check.splits.values())
              for label, id_ in enumerate(_ids_by_label(split))}
    places, width = np.arange(len(names)), 0.8 / max(1, len(counts))
    for offset, (split, of_class) in enumerate(counts.items()):
        axes.bar(places + offset * width, [of_class[name] for name in names], width, label=split, color=COLOURS[split])
    axes.set_xticks(places + 0.4 - width / 2, [name[:16] for name in names], rotation=0 if len(names) <= 4 else 90,
                    fontsize=9 if len(names) <= 12 else 6)
    for tick, name in zip(axes.get_xticklabels(), names):  # the legend of the pictures
        plate, letters = ("#{:02x}{:02x}{:02x}".format(*color) for color in (colors[name], text_color(colors[name])))
        tick.set(color=letters, bbox={"facecolor": plate, "edgecolor": "none", "pad": 1.5})
    largest = max((count for of_class in counts.values() for count in of_class.values()), default=0)
    smallest = min((count for of_class in counts.values() for count in of_class.values() if count), default=1)
    if largest > 50 * smallest:
        axes.set_yscale("log")
    axes.margins(y=0.15)  # room for the legend
    axes.set_title(f"boxes of each class{more}; names in the colours of the pictures", fontsize=10)
    if counts:
        axes.legend(fontsize=8, frameon=False)


def _draw_sizes(check: DatasetCheck, axes: Axes) -> None:
    edges = np.geomspace(2, max(check.input_size) * 1.02, 40)
    for name, split in check.splits.items():
        rows = split.usable & ~split.raw.is_crowd
        sides = np.sqrt(sides_at_input(split, check.input_size)[rows].prod(axis=1)).clip(edges[0])
        if len(sides):
            axes.hist(sides, edges, weights=np.full(len(sides), 1 / len(sides)), histtype="step", label=name, color=COLOURS[name],
                      linewidth=1.5)
    for side, text in ((TINY_SIDE, "tiny"), (SMALL_SIDE, "small"), (MEDIUM_SIDE, "medium")):
        axes.axvline(side, color="0.7", linewidth=0.8)
        axes.text(side * 0.94, 0.98, text, rotation=90, fontsize=7, color="0.4", ha="right", va="top",
                  transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    ticks = [side for side in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if side <= max(check.input_size)]
    axes.set_xticks(ticks, [str(side) for side in ticks])
    axes.minorticks_off()
    height, width = check.input_size
    axes.set_title(f"box size at {width} x {height}: side of a square, pixels; share of boxes", fontsize=10)


def _draw_objects(check: DatasetCheck, axes: Axes) -> None:
    counts = {name: split.counts(np.flatnonzero(split.usable & ~split.raw.is_crowd)) for name, split in check.splits.items()}
    most = max((int(values.max(initial=0)) for values in counts.values()), default=0)
    edges = np.arange(-0.5, most + 1.5, max(1, most / 40))
    for name, values in counts.items():
        axes.hist(values, edges, histtype="step", label=name, color=COLOURS[name], linewidth=1.5)
    if most > 0.5 * check.num_queries:
        axes.axvline(check.num_queries, color="tab:red", linewidth=1)
        axes.text(check.num_queries, 0.98, "queries ", fontsize=8, color="tab:red", ha="right", va="top",
                  transform=axes.get_xaxis_transform())
    axes.set_yscale("symlog")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("objects an image; images", fontsize=10)


def _finding_tiles(check: DatasetCheck) -> list[Tile]:
    """Show examples of the gravest findings that concern images or objects: first one of each, then another."""
    tiles: list[Tile] = []
    for turn in range(EXAMPLES_OF_ONE):
        for found in check.findings:
            split = check.splits.get(found.split)
            if split is None or len(tiles) >= MAX_FINDINGS or found.name in ("background", "crowd"):
                continue
            objects, images = split.marked_objects.get(found.name, ()), split.marked_images.get(found.name, ())
            if turn < len(objects):
                tile = _object_tile(split, int(objects[turn]))
            elif turn < len(images):
                tile = _image_tile(split, int(images[turn]), names=False)
            else:
                continue
            if tile is not None:
                tiles.append(tile._replace(title=f"{found.kind.severity}: {found.name.replace('_', ' ')}\n{tile.title}"))
    return tiles


def _sample_tiles(check: DatasetCheck) -> list[Tile]:
    """Show images of each split, evenly over all that have objects."""
    tiles = []
    for name, split in check.splits.items():
        images = np.flatnonzero(split.counts(np.flatnonzero(split.usable)))
        chosen = images[np.linspace(0, len(images) - 1, min(SAMPLES[name], len(images))).astype(int)] if len(images) else []
        tiles += [tile for index in chosen if (tile := _image_tile(split, int(index), names=True)) is not None]
    return tiles


def _image_tile(split: SplitCheck, index: int, *, names: bool) -> Tile | None:
    pixels = _read(split, index)
    rows = np.flatnonzero((split.raw.image_indices == index) & split.usable)
    whole = np.array([0, 0, *split.raw.image_sizes[index, ::-1]], dtype=np.float64)
    names = names and len(rows) <= 12
    return pixels if pixels is None else Tile(_draw(split, pixels, rows, whole, names=names), _title(split, index))


def _object_tile(split: SplitCheck, row: int) -> Tile | None:
    """Show an object and what is around it, with all boxes there."""
    index = int(split.raw.image_indices[row])
    pixels = _read(split, index)
    if pixels is None or not np.isfinite(split.raw.boxes[row]).all():
        return None
    box, limits = split.raw.boxes[row], split.limits[row, :2]
    half = max(MIN_CONTEXT, CONTEXT * split.sides[row].max()) / 2
    centre = ((box[:2] + box[2:]) / 2).clip(0, limits)
    low = np.floor((centre - half).clip(0))
    high = np.ceil(np.minimum(centre + half, limits))
    rows = np.flatnonzero(split.raw.image_indices == index)
    boxes = split.raw.boxes[rows]
    near = np.isfinite(boxes).all(axis=1) & (boxes[:, :2] < high).all(axis=1) & (boxes[:, 2:] > low).all(axis=1)
    near |= rows == row
    region = np.concatenate([low, high])
    return Tile(_draw(split, pixels, rows[near], region, names=near.sum() <= 6, flagged=row), _title(split, index))


def _draw(
    split: SplitCheck, pixels: Tensor, rows: np.ndarray, region: np.ndarray, *, names: bool, flagged: int | None = None
) -> Tensor:
    """Cut a region xyxy out of a picture, resize it for the sheet, and draw objects on it; `flagged` gets a red frame."""
    left, top, right, bottom = region.astype(int).tolist()
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    size = display_size((bottom - top, right - left), TILE)
    shown = F.resize(pixels[:, top:bottom, left:right], list(size), antialias=True)
    scale = np.array([size[1] / (right - left), size[0] / (bottom - top)] * 2)
    boxes = torch.from_numpy((split.raw.boxes[rows] - np.array([left, top, left, top])) * scale)
    ids = _ids_by_label(split)
    labels = [ids.index(int(split.raw.category_ids[row])) for row in rows]
    class_names = [split.category_names[id_] if names else "" for id_ in ids]
    drawn = draw_detections(shown, boxes, labels, class_names=class_names)
    if flagged is None:
        return drawn
    picture = F.to_pil_image(drawn)
    left, top, right, bottom = boxes[rows.tolist().index(flagged)].tolist()
    frame = left - FRAME_GAP, top - FRAME_GAP, max(left, right) + FRAME_GAP, max(top, bottom) + FRAME_GAP
    ImageDraw.Draw(picture).rectangle(frame, outline=(230, 20, 20), width=3)
    return F.pil_to_tensor(picture)


def _ids_by_label(split: SplitCheck) -> list[int]:
    """Return category ids in the order of a run's labels, whose colours they have; those that only group others come last."""
    ordered = sorted(split.raw.categories, key=lambda category: category.id)
    classes = [category.id for category in without_groups(ordered, split.raw.category_ids.tolist())]
    return [*classes, *sorted(set(split.category_names) - set(classes))]


def _read(split: SplitCheck, index: int) -> Tensor | None:
    """Decode a picture; None where that is not possible, which is a finding of its own."""
    size = tuple(split.raw.image_sizes[index].tolist())
    try:
        path, file = locate(split.raw, index)
        return read_image(path, annotated_size=size, file=file, white_level=split.white_level, max_pixels=split.max_pixels)
    except InputError:
        return None


def _title(split: SplitCheck, index: int) -> str:
    name = split.raw.file_names[index]
    return f"{split.name}: {name if len(name) <= 48 else '...' + name[-45:]}"
