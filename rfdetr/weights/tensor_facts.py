"""What a set of weights was made for, as far as the tensors themselves tell."""

import dataclasses
import re
from dataclasses import dataclass

from torch import Tensor

from rfdetr.weights.adapt import CLASS_BIAS, QUERY_TABLES, count_groups
from rfdetr.weights.names import PATCH_KERNEL, POSITION_TABLE

_LAYER = re.compile(
    r"(backbone\.0\.encoder\.encoder\.encoder\.layer|backbone\.0\.projector\.stages|transformer\.decoder\.layers)\.(\d+)\."
)


@dataclass(frozen=True)
class TensorFacts:
    """What the tensors themselves fix; two detectors with equal values can exchange weights."""

    patch_size: int
    encoder_width: int
    encoder_depth: int
    dec_layers: int
    hidden_dim: int
    dim_feedforward: int
    projector_levels: int
    segmentation_head: bool

    def differences(self, other: "TensorFacts") -> list[str]:
        """Return "field value here, value there" for what is not the same."""
        return [
            f"{field.name.replace('_', ' ')} {getattr(self, field.name)} in the file, {getattr(other, field.name)} in the model"
            for field in dataclasses.fields(self) if getattr(self, field.name) != getattr(other, field.name)
        ]


def not_a_detector(origin: str, state: dict[str, Tensor]) -> str:
    """Return the message for weights that `tensor_facts` does not recognise."""
    return f"{origin}: not the weights of an RF-DETR detector (its first tensors: {', '.join(list(state)[:3])})"


def tensor_facts(state: dict[str, Tensor]) -> TensorFacts | None:
    """Read the facts off a state under the published names; None where it is not an RF-DETR detector's."""
    numbers: dict[str, set[str]] = {}
    for name in state:
        if found := _LAYER.match(name):
            numbers.setdefault(found[1], set()).add(found[2])
    hidden = state.get("transformer.decoder.norm.weight")
    feed_forward = state.get("transformer.decoder.layers.0.linear1.bias")
    kernel = state.get(PATCH_KERNEL)
    if len(numbers) < 3 or hidden is None or feed_forward is None or kernel is None or kernel.ndim != 4:
        return None
    layers = {stem.rsplit(".", 1)[-1]: len(found) for stem, found in numbers.items()}
    return TensorFacts(
        patch_size=kernel.shape[-1], encoder_width=kernel.shape[0], encoder_depth=layers["layer"], dec_layers=layers["layers"],
        hidden_dim=hidden.numel(), dim_feedforward=feed_forward.numel(), projector_levels=layers["stages"],
        segmentation_head=any(name.startswith("segmentation_head.") for name in state),
    )


def sizes_of(state: dict[str, Tensor]) -> dict[str, int]:
    """Return the sizes that differ between models of one architecture, under the field names of ModelConfig."""
    sizes: dict[str, int] = {}
    if CLASS_BIAS in state:
        sizes["num_classes"] = state[CLASS_BIAS].numel() - 1
    if POSITION_TABLE in state and state[POSITION_TABLE].ndim == 3 and state[POSITION_TABLE].shape[1] > 1:
        sizes["positional_encoding_size"] = round((state[POSITION_TABLE].shape[1] - 1) ** 0.5)
    groups = count_groups(state)
    if groups and QUERY_TABLES[0] in state and state[QUERY_TABLES[0]].ndim == 2:
        sizes |= {"group_detr": groups, "num_queries": state[QUERY_TABLES[0]].shape[0] // groups}
    return sizes
