"""Raw outputs to detections: the published package's results, and what it does at the edges."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rfdetr.models import PostProcess


@pytest.mark.parametrize("case", ["postprocess_boxes", "postprocess_masks", "postprocess_more_than_pairs"])
def test_goldens(case, golden_postprocess):
    inputs, expected, num_select = golden_postprocess(case)
    target_sizes = inputs.pop("target_sizes")
    results = PostProcess(num_select)(inputs, target_sizes)
    assert len(results) == len(expected)
    for result, want in zip(results, expected):
        np.testing.assert_array_equal(result["labels"].numpy(), want["labels"])
        np.testing.assert_allclose(result["scores"].numpy(), want["scores"], rtol=1e-6)
        np.testing.assert_allclose(result["boxes"].numpy(), want["boxes"], rtol=1e-6)
        assert result["labels"].dtype == torch.int64
        if "masks_packed" in want:
            shape = want["masks_shape"]
            masks = np.unpackbits(want["masks_packed"], count=int(shape.prod())).reshape(shape).astype(bool)
            assert result["masks"].shape == masks.shape and result["masks"].dtype == torch.bool
            assert (result["masks"].numpy() != masks).mean() <= 1e-5
        else:
            assert "masks" not in result


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    return {
        "pred_logits": torch.randn(1, 40, 3, generator=generator),
        "pred_boxes": torch.rand(1, 40, 4, generator=generator),
        "pred_masks": torch.randn(1, 40, 24, 24, generator=generator),
    }


def test_large_masks_are_resized_in_pieces_with_the_same_result(outputs):
    """40 masks of 700 x 800 pixels are more than PostProcess resizes at once."""
    result = PostProcess(40)(outputs, torch.tensor([[700, 800]]))[0]
    queries = outputs["pred_logits"].flatten(1).argsort(1, descending=True)[0, :40] // 3
    whole = F.interpolate(outputs["pred_masks"][0, queries][:, None], size=(700, 800), mode="bilinear") > 0
    torch.testing.assert_close(result["masks"], whole)


def test_boxes_stay_inside_the_image(outputs):
    outputs["pred_boxes"] = outputs["pred_boxes"] * 3 - 1
    boxes = PostProcess(120)(outputs, torch.tensor([[30, 50]]))[0]["boxes"]
    assert boxes.min() == 0
    assert boxes[:, 0::2].max() == 50
    assert boxes[:, 1::2].max() == 30


def test_equal_scores_come_in_the_order_of_query_and_class():
    outputs = {"pred_logits": torch.full((1, 3, 2), 100.0), "pred_boxes": torch.zeros(1, 3, 4)}
    outputs["pred_boxes"][0, :, 0] = torch.tensor([0.1, 0.2, 0.3])
    result = PostProcess(5)(outputs, torch.tensor([[10, 10]]))[0]
    assert result["labels"].tolist() == [0, 1, 0, 1, 0]
    torch.testing.assert_close(result["boxes"][:, 0], torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0]))


def test_the_threshold_drops_what_does_not_score_higher(outputs):
    everything = PostProcess(40)(outputs, torch.tensor([[30, 50]]))[0]
    threshold = everything["scores"][7].item()
    kept = PostProcess(40)(outputs, torch.tensor([[30, 50]]), score_threshold=threshold)[0]
    assert {name: len(x) for name, x in kept.items()} == dict.fromkeys(("scores", "labels", "boxes", "masks"), 7)
    torch.testing.assert_close(kept["masks"], everything["masks"][:7])


def test_half_precision_outputs_give_float32_results(outputs):
    halved = {name: x.bfloat16() for name, x in outputs.items()}
    result = PostProcess(10)(halved, torch.tensor([[30, 50]]))[0]
    assert result["scores"].dtype == result["boxes"].dtype == torch.float32


def test_a_wrong_number_of_sizes_is_named(outputs):
    with pytest.raises(ValueError, match="2 rows for 1 images"):
        PostProcess(10)(outputs, torch.tensor([[30, 50], [30, 50]]))
