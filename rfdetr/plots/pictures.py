"""Pictures with boxes, masks and names drawn on them: detections, predictions next to the truth, training samples."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import max_pool2d, pad
from torchvision.transforms.v2 import functional as F

from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.evaluation.metrics import absolute_targets
from rfdetr.plots.colors import Color, class_color, text_color
from rfdetr.plots.text import picture_font, shorten

GAP = 8  # pixels between the pictures of a grid
PAPER, INK = (250, 250, 250), (30, 30, 30)
MASK_OPACITY = 0.4
MAX_PLATE, MAX_COVERED = 0.7, 0.2  # width of a name, and area of all names, as shares of a picture
HEADING, TITLE = 13, 16  # pixels, sizes of the letters of a grid

Box = tuple[float, float, float, float]


def draw_detections(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor | Sequence[int],
    *,
    class_names: Sequence[str],
    scores: Tensor | None = None,
    masks: Tensor | None = None,
    notes: Sequence[str] = (),
) -> Tensor:
    """Draw objects onto a copy of a picture, one colour a class; where they meet, the better score lies on top.

    Names are written where there is room for them: where it is crowded, those of the lower scores are left out.

    Args:
        image: (3, H, W) uint8.
        boxes: (N, 4) xyxy pixels.
        labels: (N,) indices into `class_names`; others are written as numbers.
        scores: (N,), written behind the names.
        masks: (N, H, W) or (N, 1, H, W) bool.
        notes: written before the names.

    Returns:
        (3, H, W) uint8.
    """
    height, width = image.shape[-2:]
    labels = [int(label) for label in labels]
    order = list(range(len(labels))) if scores is None else torch.argsort(scores).tolist()
    line_width = max(1, round(min(height, width) / 160))
    pixels = image.permute(1, 2, 0).cpu().numpy().copy()
    if masks is not None:
        _tint(pixels, masks.reshape(-1, height, width).cpu(), labels, order, line_width)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    corners = _drawable(boxes, height, width)
    for index in order:
        color, (x0, y0, x1, y1) = class_color(labels[index]), corners[index]
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=text_color(color))  # seen on a ground of the same colour
        draw.rectangle((x0, y0, x1, y1), outline=color, width=line_width)
    tags = _Tags(draw, (width, height))
    for index in reversed(order):
        label = labels[index]
        name = class_names[label] if 0 <= label < len(class_names) else str(label)
        before = f"{notes[index]} " if notes and notes[index] else ""
        after = "" if scores is None else f" {float(scores[index]):.2f}"
        tags.write(corners[index], before, name, after, class_color(label))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


class _Tags:
    """Names on plates in the colours of their classes, none on another, all inside a picture of `size` (w, h)."""

    def __init__(self, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
        self.draw, self.size = draw, size
        self.font = picture_font(max(10, round(max(size) / 30)))
        self.height = sum(self.font.getmetrics()) + 1
        self.taken: list[Box] = []
        self.room = max(MAX_COVERED * size[0] * size[1], size[0] * self.height)  # square pixels

    def write(self, box: Box, before: str, name: str, after: str, color: Color) -> None:
        """Write a name above its box, or else inside it, below it or at its right end; nowhere if there is no room."""
        limit = MAX_PLATE * self.size[0]
        text = before + shorten(name, lambda name: self.font.getlength(before + name + after) <= limit) + after
        width = self.font.getlength(text) + 4
        if not text.strip() or width > self.size[0] or width * self.height > self.room:
            return
        x0, y0, x1, y1 = box
        places = ((x0, y0 - self.height), (x0, y0), (x0, y1), (x1 - width, y0 - self.height), (x1 - width, y1 - self.height))
        for x, y in places:
            x = min(max(x, 0), self.size[0] - width)
            plate = (x, y, x + width, y + self.height)
            if 0 <= y <= self.size[1] - self.height and not any(_overlap(plate, other) for other in self.taken):
                self.taken.append(plate)
                self.room -= width * self.height
                self.draw.rectangle((x, y, x + width - 1, y + self.height - 1), fill=color)
                self.draw.text((x + 2, y), text, fill=text_color(color), font=self.font)
                return


def training_picture(
    samples: Sequence[tuple[Tensor, dict[str, Tensor]]], *, class_names: Sequence[str], headings: Sequence[str] = (),
    title: str = "", columns: int = 4, tile: int = 320,
) -> Image.Image:
    """Show augmented training samples as the model gets them, with their boxes; padding is at the bottom and on the right."""
    pictures = []
    for image, target in samples:
        height, width = image.shape[-2:]
        canvas = target["canvas"].tolist() if "canvas" in target else (height, width)
        margins = (0, canvas[1] - width, 0, canvas[0] - height)
        scale = torch.tensor([width / canvas[1], height / canvas[0]] * 2)
        target = {**target, "boxes": target["boxes"] * scale}  # masks have the size of the canvas already
        pictures.append(draw_truth(pad(image, margins), target, display_size(canvas, tile), class_names))
    return picture_grid(pictures, columns, headings, title)


def draw_truth(
    image: Tensor, target: dict[str, Tensor], size: tuple[int, int], class_names: Sequence[str], notes: Sequence[str] = ()
) -> Tensor:
    """Draw a data set's own annotations on a normalised picture, at (h, w) `size`; (3, h, w) uint8."""
    truth = absolute_targets([{**target, "orig_size": torch.tensor(size)}])[0]  # as if the picture had the size of its display
    return draw_detections(displayable(image, size), truth["boxes"], truth["labels"], class_names=class_names,
                           masks=truth.get("masks"), notes=notes)


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


def picture_grid(pictures: Sequence[Tensor], columns: int, headings: Sequence[str] = (), title: str = "") -> Image.Image:
    """Lay out pictures (3, H, W) uint8 in rows, each below its heading, all below a title."""
    if not pictures:
        raise ValueError("picture_grid: there is no picture to lay out")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell_height, cell_width = (max(picture.shape[side] for picture in pictures) for side in (-2, -1))
    heading, header = HEADING + 6 if headings else 0, TITLE + 10 if title else 0
    width = columns * (cell_width + GAP) + GAP
    sheet = Image.new("RGB", (width, header + rows * (heading + cell_height + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, 6), title, TITLE, width - 2 * GAP)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = GAP + column * (cell_width + GAP), header + GAP + row * (heading + cell_height + GAP)
        if headings:
            _write(draw, (left, top), headings[index], HEADING, cell_width)
        margins = (cell_width - picture.shape[-1]) // 2, (cell_height - picture.shape[-2]) // 2
        sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (left + margins[0], top + heading + margins[1]))
    return sheet


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, width: int) -> None:
    font = picture_font(size)
    draw.text(place, shorten(text, lambda text: font.getlength(text) <= width), fill=INK, font=font)


def _drawable(boxes: Tensor, height: int, width: int) -> list[Box]:
    """Clamp boxes (N, 4) xyxy into the picture and make them at least a pixel large."""
    limits = torch.tensor([width - 1, height - 1], dtype=torch.float32)
    points = boxes.detach().cpu().float().reshape(-1, 2, 2).nan_to_num().clamp(min=0).minimum(limits)
    return [(x0, y0, max(x0, x1), max(y0, y1)) for x0, y0, x1, y1 in points.reshape(-1, 4).tolist()]


def _tint(pixels: np.ndarray, masks: Tensor, labels: Sequence[int], order: Sequence[int], line_width: int) -> None:
    """Colour the pixels (H, W, 3) of masks (N, H, W), in place, and draw the outline of each."""
    for index in order:
        mask, color = masks[index].bool(), np.array(class_color(labels[index]), dtype=np.float32)
        around = max_pool2d((~mask)[None].float(), 2 * line_width + 1, stride=1, padding=line_width)[0].bool()
        edge, mask = (mask & around).numpy(), mask.numpy()
        pixels[mask] = (pixels[mask] * (1 - MASK_OPACITY) + color * MASK_OPACITY).astype(np.uint8)
        pixels[edge] = color


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
