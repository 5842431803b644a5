"""The graph of a detector that other programs run, as torch.export traces it.

Inputs and outputs have the names of the published package's ONNX files. All of them are float32 (labels and sizes int64),
whatever is computed in between.

| name | shape | |
|---|---|---|
| `input` | (B, 3, H, W) | normalised pictures |
| `mask` | (B, H, W) bool | True = padding; of models whose pictures keep their shape (`data.resize: letterbox`) |
| `target_sizes` | (B, 2) int64 | height and width of the pictures; with post-processing to "pixels" |
| `dets` | (B, N, 4) | boxes cxcywh, in shares of the picture |
| `labels` | (B, N, K + 1) | class logits |
| `masks` | (B, N, h, w) | mask logits |

With post-processing inside, the outputs are the best first: `boxes` (B, k, 4) xyxy, in shares of the picture or in pixels,
`scores` (B, k), `labels` (B, k) int64, and `masks` (B, k, h, w), logits of which more than 0 is the object.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rfdetr.build import build_postprocess
from rfdetr.models.detector import RFDETR
from rfdetr.models.postprocess import PostProcess, pixel_boxes
from rfdetr.nested_tensor import NestedTensor

if TYPE_CHECKING:
    from rfdetr.config import ModelConfig

RAW = {"dets": "pred_boxes", "labels": "pred_logits", "masks": "pred_masks"}  # output -> its name in the model
SELECTED = {"boxes": "boxes", "scores": "scores", "labels": "labels", "masks": "pred_masks"}
OF_GROUPS = ("enc_output", "enc_output_norm", "enc_out_class_embed", "enc_out_bbox_embed")


class ExportGraph(nn.Module):
    """A detector with the inputs and outputs described above.

    Args:
        postprocess: chooses the detections inside; None: the outputs are the model's.
    """

    def __init__(self, model: RFDETR, postprocess: PostProcess | None) -> None:
        super().__init__()
        self.model = model
        self.postprocess = postprocess

    def forward(self, input: Tensor, mask: Tensor | None = None, target_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        images = input.to(self.model.query_feat.weight.dtype)
        outputs = self.model(images if mask is None else NestedTensor(images, mask))
        if self.postprocess is None:
            return tuple(outputs[name].float() for name in RAW.values() if name in outputs)
        found = self.postprocess.select(outputs)
        sizes = torch.ones_like(found.queries[:, :2]) if target_sizes is None else target_sizes
        selected = (pixel_boxes(found.boxes, sizes), found.scores, found.labels)
        if "pred_masks" not in outputs:
            return selected
        masks = outputs["pred_masks"]
        starts = torch.arange(0, masks.shape[0] * masks.shape[1], masks.shape[1], device=masks.device)[:, None]
        rows = (found.queries + starts).flatten()
        return *selected, masks.flatten(0, 1).index_select(0, rows).unflatten(0, found.queries.shape).float()


def trace(
    model: RFDETR, architecture: ModelConfig, *, batch_size: int | None = None, precision: str = "fp32",
    postprocess: str = "none", letterbox: bool = False,
) -> torch.export.ExportedProgram:
    """Trace a detector for pictures of its input size; the model stays as it is.

    Args:
        batch_size: pictures at a time; None: any number.
        precision: "fp32" or "fp16".
        postprocess: "none", "normalised" or "pixels".
        letterbox: pictures are padded, and a second input says where.
    """
    height, width = architecture.input_size
    batch = batch_size or 2  # torch.export takes a dimension of 1 for a constant
    examples = {"input": torch.zeros(batch, 3, height, width)}
    if letterbox:
        examples["mask"] = torch.zeros(batch, height, width, dtype=torch.bool)
    if postprocess == "pixels":
        examples["target_sizes"] = torch.tensor([[height, width]] * batch)
    dimension = torch.export.Dim("batch", min=1, max=65535)
    shapes = {name: {} if batch_size else {0: dimension} for name in examples}
    graph = ExportGraph(_deployed(model, architecture, precision),
                        None if postprocess == "none" else build_postprocess(architecture))
    image = examples.pop("input")
    with torch.no_grad():
        program = torch.export.export(graph.eval(), (image,), examples, dynamic_shapes=shapes, strict=False)
    program.graph.eliminate_dead_code()  # PyTorch 2.6 records torch.promote_types, which it then cannot read
    return program


def output_names(architecture: ModelConfig, postprocess: str) -> list[str]:
    names = RAW if postprocess == "none" else SELECTED
    return [name for name in names if name != "masks" or architecture.segmentation_head]


def _deployed(model: RFDETR, architecture: ModelConfig, precision: str) -> RFDETR:
    """Return a copy on the CPU without what only training needs, for one input size and precision."""
    deployed = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    encoder, transformer = deployed.backbone.encoder, deployed.transformer
    encoder.blocks = encoder.blocks[: encoder.taps[-1]]
    deployed.num_groups = 1
    for name in OF_GROUPS:
        setattr(transformer, name, getattr(transformer, name)[:1])
    for table in (deployed.refpoint_embed, deployed.query_feat):
        table.weight = nn.Parameter(table.weight[: deployed.num_queries].clone(), requires_grad=False)
    encoder.fix_positions(tuple(side // architecture.patch_size for side in architecture.input_size))
    if precision == "fp16":
        deployed.half()
        # which tokens become queries, boxes and scores: half precision would swap queries, and be off by pixels
        for module in (deployed.refpoint_embed, deployed.class_embed, deployed.bbox_embed.layers[-1],
                       transformer.enc_output_norm, transformer.enc_out_class_embed, transformer.enc_out_bbox_embed):
            module.float()
    return deployed
