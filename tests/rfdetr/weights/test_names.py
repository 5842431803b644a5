"""Names and shapes of the published layout, and the way there and back without losing a bit."""

import dataclasses

import pytest
import torch

from rfdetr.build import build_model
from rfdetr.config import VARIANTS
from rfdetr.weights import load_weights, official_state_dict

PUBLISHED_SIZES = {  # entries of the file, numbers in it (with the mask token)
    "nano": (466, 30_467_298), "small": (488, 32_111_170), "medium": (510, 33_687_458), "large": (510, 33_933_218),
    "base": (488, 32_174_530), "large_deprecated": (534, 135_637_474), "seg_preview": (545, 34_153_555),
    "seg_nano": (545, 33_577_475), "seg_small": (545, 33_711_107), "seg_medium": (573, 35_694_259),
    "seg_large": (573, 35_873_971), "seg_xlarge": (601, 38_113_635), "seg_2xlarge": (601, 38_648_163),
}


def on_meta(config):
    with torch.device("meta"):
        return build_model(config)


@pytest.mark.parametrize("variant", PUBLISHED_SIZES)
def test_every_variant_has_the_published_size(variant):
    state = official_state_dict(on_meta(VARIANTS[variant]))
    numbers = sum(tensor.numel() for name, tensor in state.items() if name != "_kp_active_mask")
    assert (len(state), numbers) == PUBLISHED_SIZES[variant]


@pytest.mark.parametrize("variant", ["nano", "seg_nano"])
def test_names_and_shapes_equal_the_published_ones(variant, layout):
    state = official_state_dict(on_meta(VARIANTS[variant]))
    published = {name: spec["shape"] for name, spec in layout(variant).items()}
    assert {name: list(tensor.shape) for name, tensor in state.items()} == published


def random_state(model):
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor.clone() if tensor.dtype == torch.bool else torch.randn(tensor.shape, generator=generator)
        for name, tensor in official_state_dict(model).items()
    }


CHANGED = {"pico": VARIANTS["pico"], "pico_seg": VARIANTS["pico_seg"], "nano": VARIANTS["nano"], "seg_nano": VARIANTS["seg_nano"],
           "two levels": dataclasses.replace(VARIANTS["pico"], projector_scale=("P3", "P5"))}


@pytest.mark.parametrize("config", CHANGED.values(), ids=CHANGED)
def test_load_and_write_is_bit_exact(config, blank):
    target = blank(config)
    source = random_state(target)
    report = load_weights(target, {"model": source})
    written = official_state_dict(target)
    assert not (report.missing or report.unexpected or report.resized)
    assert written.keys() == source.keys()
    different = [name for name, tensor in source.items() if not torch.equal(written[name], tensor)]
    assert different == ["backbone.0.encoder.encoder.embeddings.mask_token"]
    assert not written[different[0]].any()


class Compiled(torch.nn.Module):
    """Wraps a model as torch.compile does."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, Compiled, lambda model: torch.nn.DataParallel(Compiled(model))])
def test_wrapped_models_have_the_same_names(wrap, pico, pico_weights):
    wrapped = wrap(pico)
    assert official_state_dict(wrapped).keys() == pico_weights.keys()
    load_weights(wrapped, {"model": pico_weights})
    assert torch.equal(official_state_dict(pico)["query_feat.weight"], pico_weights["query_feat.weight"])


def test_the_model_keeps_its_dtype(pico, pico_weights):
    pico.double()
    load_weights(pico, {"model": pico_weights})
    written = official_state_dict(pico)
    assert {tensor.dtype for name, tensor in written.items() if name != "_kp_active_mask"} == {torch.float64}
    assert torch.equal(written["class_embed.weight"], pico_weights["class_embed.weight"].double())
