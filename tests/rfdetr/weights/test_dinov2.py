"""Starting the ViT from DINOv2's weights, here from locally made files."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from rfdetr.build import build_model
from rfdetr.config import VARIANTS
from rfdetr.errors import InputError
from rfdetr.weights import dinov2, load_backbone_weights, official_state_dict


@pytest.fixture
def narrow(monkeypatch):
    """A DINOv2 of pico's width and depth: 14-pixel patches, 37 x 37 positions."""
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(img_size=518, patch_size=14, embed_dim=192, depth=6, num_heads=3, num_classes=0,
                                        init_values=1e-5)
    state = {name: torch.randn_like(tensor) for name, tensor in vit.state_dict().items()}
    x = torch.linspace(0, 1, 37)
    smooth = torch.stack([x[:, None].expand(37, 37), x[None].expand(37, 37)]).flatten(1).T  # (1369, 2): row, column
    state["pos_embed"][0, 1:, :2] = smooth
    return state


def check(model, state):
    encoder = model.backbone.encoder
    for name, tensor in encoder.state_dict().items():
        if name not in ("patch_embed.proj.weight", "pos_embed"):
            assert torch.equal(tensor, state[name]), name
    table = encoder.pos_embed.detach()
    assert torch.equal(table[:, :1], state["pos_embed"][:, :1])
    grid = table[0, 1:].unflatten(0, (16, 16))
    centres = (torch.arange(16) + 0.5) / 16 * 37 / 36 - 0.5 / 36  # of the 16 cells, where the 37 go from 0 to 1
    torch.testing.assert_close(grid[2:-2, 8, 0], centres[2:-2], atol=2e-3, rtol=0)
    torch.testing.assert_close(grid[8, 2:-2, 1], centres[2:-2], atol=2e-3, rtol=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_from_a_file(suffix, narrow, pico, tmp_path):
    before = {name: tensor.clone() for name, tensor in pico.state_dict().items() if not name.startswith("backbone.encoder.")}
    path = tmp_path / f"model{suffix}"
    save_file(narrow, path) if suffix == ".safetensors" else torch.save({"model": narrow} if suffix == ".pth" else narrow, path)
    load_backbone_weights(pico, path)
    check(pico, narrow)
    assert all(torch.equal(pico.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_patch_kernel_sees_the_same_in_larger_patches(narrow, pico, tmp_path):
    """An enlarged patch gives nearly the same token as the patch itself did."""
    smooth = F.interpolate(torch.randn(192, 3, 4, 4), size=(14, 14), mode="bicubic")
    narrow["patch_embed.proj.weight"] = smooth
    save_file(narrow, tmp_path / "model.safetensors")
    load_backbone_weights(pico, tmp_path / "model.safetensors")
    patch = F.interpolate(torch.randn(8, 3, 4, 4), size=(14, 14), mode="bicubic")
    token = F.conv2d(patch, smooth).flatten()
    enlarged = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    larger = F.conv2d(enlarged, pico.backbone.encoder.patch_embed.proj.weight).flatten()
    assert (larger - token).abs().max() < 0.02 * token.abs().max()


def test_from_timm(narrow, pico, monkeypatch):
    class Model:
        def state_dict(self):
            return narrow

    monkeypatch.setitem(dinov2.TIMM_MODELS, 192, "vit_narrow_patch14_dinov2.lvd142m")
    monkeypatch.setattr(dinov2, "create_model", lambda name, pretrained, num_classes: Model())
    load_backbone_weights(pico, "timm")
    check(pico, narrow)


def test_names_of_hugging_face(narrow, pico, tmp_path):
    native = {f"backbone.encoder.{name}": tensor for name, tensor in narrow.items()}
    names = {name.removeprefix("backbone.0.encoder.encoder."): t.clone() for name, t in dinov2_names(native).items()}
    save_file(names, tmp_path / "model.safetensors")
    load_backbone_weights(pico, tmp_path / "model.safetensors")
    check(pico, narrow)
    del names["encoder.layer.0.attention.attention.key.weight"]
    save_file(names, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="lacks.*key.weight"):
        load_backbone_weights(pico, tmp_path / "model.safetensors")


def dinov2_names(native):
    class Holder(torch.nn.Module):
        def state_dict(self):
            return native

    return {name: tensor for name, tensor in official_state_dict(Holder()).items() if name.startswith("backbone.0.encoder.")}


def test_no_network(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(dinov2, "create_model", offline)
    with pytest.raises(InputError, match=r"vit_small_patch14_dinov2\.lvd142m.*no route to host.*https://\S+model\.safetensors"):
        load_backbone_weights(build_model(VARIANTS["nano"]), "timm")


def test_refusals(narrow, pico, tmp_path):
    with pytest.raises(InputError, match="no DINOv2 of width 192"):
        load_backbone_weights(pico, "timm")
    for name in ("absent.pth", "absent.safetensors"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            load_backbone_weights(pico, tmp_path / name)
    (tmp_path / "bad.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_backbone_weights(pico, tmp_path / "bad.safetensors")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds a list"):
        load_backbone_weights(pico, tmp_path / "list.pth")
    torch.save({**narrow, "norm.weight": torch.zeros(384)}, tmp_path / "wide.pth")
    with pytest.raises(InputError, match=r"norm\.weight has the shape \(384,\), the model's \(192,\)"):
        load_backbone_weights(pico, tmp_path / "wide.pth")
    torch.save({name: tensor for name, tensor in narrow.items() if not name.startswith("blocks.5")}, tmp_path / "short.pth")
    with pytest.raises(InputError, match=r"lacks 14 of the ViT's \d+ tensors, the first: blocks\.5"):
        load_backbone_weights(pico, tmp_path / "short.pth")
