"""What a training loop relies on in SetCriterion: gradients everywhere, exact accumulation, one wait for the device."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from rfdetr.losses import HungarianMatcher, SetCriterion
from rfdetr.losses.functional import FOREGROUND

GROUPS = 3


def make_layer(queries: int = 12, masks: str | None = None, batch_size: int = 2) -> dict:
    boxes = torch.rand(batch_size, queries, 4) / 2 + 0.2
    layer = {"pred_logits": torch.randn(batch_size, queries, 5), "pred_boxes": boxes}
    if masks == "tensor":
        layer["pred_masks"] = torch.randn(batch_size, queries, 16, 16)
    elif masks == "dict":
        layer["pred_masks"] = {
            "spatial_features": torch.randn(batch_size, 6, 16, 16),
            "query_features": torch.randn(batch_size, queries, 6),
            "bias": torch.zeros(1),
        }
    return layer


def make_outputs(masks: str | None = None, enc_queries: int = 12) -> dict:
    torch.manual_seed(0)
    aux, enc = make_layer(masks=masks), make_layer(enc_queries, masks)
    return make_layer(masks=masks) | {"aux_outputs": [aux], "enc_outputs": enc}


def make_targets(*sizes: int, masks: tuple[int, int] | None = None) -> list[dict]:
    targets = []
    for size in sizes:
        target = {"boxes": torch.rand(size, 4) / 2 + 0.1, "labels": torch.randint(0, 5, (size,))}
        targets.append(target | ({"masks": torch.rand(size, *masks) > 0.5} if masks else {}))
    return targets


def make_criterion(masks: bool = False, **options) -> SetCriterion:
    terms = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    terms |= {"loss_mask_ce": 5.0, "loss_mask_dice": 5.0} if masks else {}
    weights = {name + suffix: weight for name, weight in terms.items() for suffix in ("", "_0", "_enc")}
    losses = ("labels", "boxes", "cardinality", "masks") if masks else ("labels", "boxes", "cardinality")
    return SetCriterion(HungarianMatcher(), weights, losses=losses, group_detr=GROUPS, **options)


def leaves_of(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [leaf for part in parts for leaf in leaves_of(part)]


def total(criterion: SetCriterion, losses: dict) -> torch.Tensor:
    return sum(criterion.weight_dict[name] * losses[name] for name in losses if name in criterion.weight_dict)


def map_images(value, images: slice):
    """Cut the batch axis of every tensor of the outputs."""
    if isinstance(value, torch.Tensor):
        return value[images]
    if isinstance(value, dict):
        return {name: part if name == "bias" else map_images(part, images) for name, part in value.items()}
    return [map_images(part, images) for part in value]


@pytest.mark.parametrize("class_loss", FOREGROUND)
@pytest.mark.parametrize("masks", [None, "tensor", "dict"])
@pytest.mark.parametrize("sizes", [(0, 0), (2, 0)])
def test_every_output_gets_a_finite_gradient(class_loss, masks, sizes):
    outputs = make_outputs(masks)
    leaves = [leaf.requires_grad_() for leaf in leaves_of(outputs)]
    criterion = make_criterion(masks is not None, class_loss=class_loss)
    losses = criterion(outputs, make_targets(*sizes, masks=(32, 32) if masks else None))
    assert set(criterion.weight_dict) <= set(losses)
    total(criterion, losses).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_accumulation_with_the_boxes_of_the_window_equals_one_big_batch():
    outputs, targets, criterion = make_outputs(), make_targets(4, 1), make_criterion()
    leaves = [leaf.requires_grad_() for leaf in leaves_of(outputs)]
    total(criterion, criterion(outputs, targets)).backward()
    big = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    num_boxes = torch.tensor(float(sum(criterion.count_boxes([target]) for target in targets)))
    for image, target in enumerate(targets):
        part = map_images(outputs, slice(image, image + 1))
        total(criterion, criterion(part, [target], num_boxes=num_boxes)).backward()
    torch.testing.assert_close([leaf.grad for leaf in leaves], big, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("training", [True, False])
def test_layers_together_equal_each_layer_alone(training):
    outputs, targets = make_outputs(enc_queries=6), make_targets(3, 1)
    criterion = make_criterion().train(training)
    together = criterion(outputs, targets)
    for suffix, layer in {"_0": outputs["aux_outputs"][0], "_enc": outputs["enc_outputs"]}.items():
        alone = criterion(layer, targets)
        del alone["class_error"]
        torch.testing.assert_close(alone, {name: together[name + suffix] for name in alone}, rtol=1e-6, atol=0)


def test_sixteen_bit_outputs_under_autocast_give_float32_losses():
    outputs, targets, criterion = make_outputs("dict"), make_targets(3, 1, masks=(32, 32)), make_criterion(masks=True)
    halved = [leaf.data.bfloat16() for leaf in leaves_of(outputs)]
    for leaf, half in zip(leaves_of(outputs), halved):
        leaf.data = half.float()
    torch.manual_seed(1)
    expected = criterion(outputs, targets)
    for leaf, half in zip(leaves_of(outputs), halved):
        leaf.data = half
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion(outputs, targets)
    assert all(value.dtype == torch.float32 for value in losses.values())
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0)


class _CountReads(TorchDispatchMode):
    """Count the operations that hand a single number to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_all_layers_groups_and_images_are_copied_to_the_host_at_once(monkeypatch):
    copied = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (copied.append(self.shape), self.to("cpu"))[1])
    with _CountReads() as reads:
        make_criterion()(make_outputs(), make_targets(3, 1))
    assert copied == [(4, 36)] and reads.count == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("masks", [None, "dict"])
def test_the_device_is_waited_for_once(masks):
    outputs, targets = make_outputs(masks), make_targets(3, 1, masks=(32, 32) if masks else None)
    for leaf in leaves_of(outputs):
        leaf.data = leaf.data.cuda()
    criterion = make_criterion(masks is not None)
    criterion(outputs, targets)  # libraries wait when they start
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            criterion(outputs, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in caught if "synchronizing" in str(warning.message)]) == 1


def test_box_counts_are_averaged_over_the_processes(monkeypatch):
    outputs, targets, criterion = make_outputs(), make_targets(3, 1), make_criterion()
    expected = criterion(outputs, targets, num_boxes=(4 * GROUPS + 2) / 2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(2))  # the other process has two boxes
    torch.testing.assert_close(criterion(outputs, targets), expected)


def test_masks_of_different_sizes_are_padded_like_their_images():
    outputs, criterion = make_outputs("tensor"), make_criterion(masks=True)
    targets = make_targets(2, 1, masks=(32, 32))
    for target in targets:
        target["masks"][:, 20:, :] = target["masks"][:, :, 24:] = False
    smaller = [targets[0], targets[1] | {"masks": targets[1]["masks"][:, :20, :24]}]
    results = []
    for given in (targets, smaller):
        torch.manual_seed(2)
        results.append(criterion(outputs, given))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("masks", ["tensor", "dict"])
def test_an_object_without_a_mask_teaches_no_mask(masks):
    outputs, targets, criterion = make_outputs(masks), make_targets(3, 1, masks=(32, 32)), make_criterion(masks=True)
    targets[0]["has_mask"], targets[1]["has_mask"] = torch.tensor([True, False, True]), torch.tensor([False])
    pairs = criterion.matcher(make_layer() | {name: outputs[name] for name in ("pred_logits", "pred_boxes")}, targets)
    torch.testing.assert_close(criterion.matcher(outputs, targets)[1], pairs[1])  # by class and box

    losses = {}
    for image, target in enumerate(targets):
        one = map_images(outputs, slice(image, image + 1))
        losses[image] = {name: value for name, value in criterion(one, [target]).items() if "mask" in name}
    assert all(losses[0].values()) and not any(losses[1].values())


def test_chosen_losses_only():
    criterion = SetCriterion(HungarianMatcher(), {}, losses=("boxes",))
    outputs = make_layer()
    assert set(criterion(outputs, make_targets(1, 2))) == {"loss_bbox", "loss_giou"}


@pytest.mark.parametrize("options", [{"class_loss": "bce"}, {"losses": ("labels", "keypoints")}])
def test_unknown_names_are_refused(options):
    with pytest.raises(ValueError, match="unknown .*known: "):
        SetCriterion(HungarianMatcher(), {}, **options)


def test_mask_losses_need_masks():
    with pytest.raises(ValueError, match="pred_masks"):
        make_criterion(masks=True)(make_outputs(), make_targets(1, 2))


@pytest.mark.parametrize("class_loss", FOREGROUND)
def test_class_weights_multiply_what_objects_of_a_class_cost(class_loss):
    outputs, targets = make_outputs(), make_targets(3, 2)
    for label, target in enumerate(targets):
        target["labels"][:] = label
    weighted = [make_criterion(class_loss=class_loss, class_weights=weights)(outputs, targets)
                for weights in ([1, 1, 1, 1, 1], [3, 1, 1, 1, 1], [1, 3, 1, 1, 1], [3, 3, 1, 1, 1], [1, 1, 9, 9, 9])]
    plain = make_criterion(class_loss=class_loss)(outputs, targets)
    for name in ("loss_ce", "loss_ce_0", "loss_ce_enc"):
        ones, first, second, both, others = (losses[name] for losses in weighted)
        assert torch.equal(ones, plain[name]) and torch.equal(others, plain[name])
        torch.testing.assert_close(first + second - ones, both)
        assert first != ones
    assert all(torch.equal(weighted[3][name], plain[name]) for name in plain if "loss_ce" not in name)
    assert "class_weights" not in make_criterion(class_weights=[1.0] * 5).state_dict()
