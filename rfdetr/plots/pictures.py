"""Pictures with boxes, masks and names drawn on them: detections, predictions next to the truth, training samples."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.evaluation.metrics import absolute_targets
from rfdetr.plots.colors import class_color, text_color

GAP = 6  # pixels between the pictures of a grid
PAPER, INK = (250, 250, 250), (30, 30, 30)
MASK_OPACITY = 0.4


def draw_detections(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor | Sequence[int],
    *,
    class_names: Sequence[str],
    scores: Tensor | None = None,
    masks: Tensor | None = None,
) -> Tensor:
    """Draw objects onto a copy of a picture, one colour a class; where labels meet, the better score lies on top.

    Args:
        image: (3, H, W) uint8.
        boxes: (N, 4) xyxy pixels.
        labels: (N,) indices into `class_names`; others are written as numbers.
        scores: (N,), written behind the names.
        masks: (N, H, W) or (N, 1, H, W) bool.

    Returns:
        (3, H, W) uint8.
    """
    height, width = image.shape[-2:]
    labels = [int(label) for label in labels]
    order = range(len(labels)) if scores is None else torch.argsort(scores).tolist()
    pixels = image.permute(1, 2, 0).cpu().numpy().copy()
    if masks is not None:
        _tint(pixels, masks.reshape(-1, height, width).cpu().numpy(), [labels[index] for index in order], order)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    line_width = max(1, round(min(height, width) / 160))
    corners = _drawable(boxes, height, width)
    for index in order:
        draw.rectangle(corners[index], outline=class_color(labels[index]), width=line_width)
    font = ImageFont.load_default(max(11, round(max(height, width) / 28)))
    for index in order:
        label = labels[index]
        name = class_names[label] if 0 <= label < len(class_names) else str(label)
        text = name if scores is None else f"{name} {float(scores[index]):.2f}"
        _write_tag(draw, corners[index], text, class_color(label), font, width)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def prediction_picture(
    samples: Sequence[tuple[Tensor, dict[str, Tensor]]],
    results: Sequence[dict[str, Tensor]],
    *,
    class_names: Sequence[str],
    score_threshold: float,
    tile: int = 320,
) -> Image.Image:
    """Put predictions next to the truth, three images a row.

    Args:
        samples: (image (3, h, w) normalised, target) as a data set for evaluation gives them.
        results: of `PostProcess`, for the sizes that `display_size` gives for each target's ``orig_size``.
        score_threshold: predictions below are left out.
        tile: longer side of a picture in the grid, in pixels.
    """
    pictures = []
    for (image, target), result in zip(samples, results):
        size = display_size(target["orig_size"], tile)
        pictures.append(_draw_truth(image, target, size, class_names))
        kept = result["scores"] >= score_threshold
        found = {key: value[kept].cpu() for key, value in result.items()}
        pictures.append(draw_detections(
            displayable(image, size), found["boxes"], found["labels"], class_names=class_names, scores=found["scores"].float(),
            masks=found.get("masks"),
        ))
    return picture_grid(pictures, columns=6, titles=["truth", f"found, score {score_threshold:.2f} or better"])


def training_picture(
    samples: Sequence[tuple[Tensor, dict[str, Tensor]]], *, class_names: Sequence[str], columns: int = 4, tile: int = 320
) -> Image.Image:
    """Show augmented training samples as the model gets them, with their boxes."""
    pictures = []
    for image, target in samples:
        height, width = image.shape[-2:]
        if "masks" in target:  # padded as the batch will be
            target = {**target, "masks": target["masks"][:, :height, :width]}
        pictures.append(_draw_truth(image, target, display_size((height, width), tile), class_names))
    return picture_grid(pictures, columns)


def display_size(size: Tensor | Sequence[int], tile: int = 320) -> tuple[int, int]:
    """Return (h, w) in the proportions of `size`, with the longer side `tile`."""
    height, width = (int(side) for side in size)
    scale = tile / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def displayable(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Turn a normalised image (3, h, w) back into colours and resize it: (3, H, W) uint8."""
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (image.detach().cpu().float() * std + mean).clamp(0.0, 1.0)
    return (F.resize(pixels, list(size), antialias=True).clamp(0.0, 1.0) * 255).round().to(torch.uint8)


def picture_grid(pictures: Sequence[Tensor], columns: int, titles: Sequence[str] = ()) -> Image.Image:
    """Lay out pictures (3, H, W) uint8 in rows; `titles` are repeated over the columns of the first row."""
    if not pictures:
        raise ValueError("picture_grid: there is no picture to lay out")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell_height, cell_width = (max(picture.shape[side] for picture in pictures) for side in (-2, -1))
    font = ImageFont.load_default(15)
    header = 24 if titles else 0
    sheet = Image.new("RGB", (columns * (cell_width + GAP) + GAP, header + rows * (cell_height + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = GAP + column * (cell_width + GAP), header + GAP + row * (cell_height + GAP)
        if titles and row == 0:
            draw.text((left, 5), titles[column % len(titles)], fill=INK, font=font)
        margins = (cell_width - picture.shape[-1]) // 2, (cell_height - picture.shape[-2]) // 2
        sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (left + margins[0], top + margins[1]))
    return sheet


def _draw_truth(image: Tensor, target: dict[str, Tensor], size: tuple[int, int], class_names: Sequence[str]) -> Tensor:
    """Draw a data set's own annotations; (3, H, W) uint8."""
    truth = absolute_targets([{**target, "orig_size": torch.tensor(size)}])[0]  # as if the picture had the size of its display
    return draw_detections(
        displayable(image, size), truth["boxes"], truth["labels"], class_names=class_names, masks=truth.get("masks")
    )


def _drawable(boxes: Tensor, height: int, width: int) -> list[tuple[float, float, float, float]]:
    """Clamp boxes (N, 4) xyxy into the picture and make them at least a pixel large."""
    limits = torch.tensor([width - 1, height - 1], dtype=torch.float32)
    points = boxes.detach().cpu().float().reshape(-1, 2, 2).nan_to_num().clamp(min=0).minimum(limits)
    return [(x0, y0, max(x0, x1), max(y0, y1)) for x0, y0, x1, y1 in points.reshape(-1, 4).tolist()]


def _tint(pixels: np.ndarray, masks: np.ndarray, labels: Sequence[int], order: Sequence[int]) -> None:
    """Colour the pixels (H, W, 3) of masks (N, H, W), in place."""
    for label, index in zip(labels, order):
        mask = masks[index].astype(bool)
        color = np.array(class_color(label), dtype=np.float32)
        pixels[mask] = (pixels[mask] * (1 - MASK_OPACITY) + color * MASK_OPACITY).astype(np.uint8)


def _write_tag(
    draw: ImageDraw.ImageDraw, box: Sequence[float], text: str, color: tuple[int, int, int], font: ImageFont.ImageFont, width: int
) -> None:
    """Write a name on a plate of its class's colour: above the box, or inside it where there is no room above."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    plate_width, plate_height = right - left + 4, bottom - top + 4
    x = min(box[0], max(0, width - plate_width))
    y = box[1] - plate_height if box[1] >= plate_height else box[1]
    draw.rectangle((x, y, x + plate_width, y + plate_height), fill=color)
    draw.text((x + 2 - left, y + 2 - top), text, fill=text_color(color), font=font)
