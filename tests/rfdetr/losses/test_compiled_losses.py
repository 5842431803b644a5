"""Losses that torch.compile made, on any number of objects."""

import pytest
import torch

from rfdetr.losses import HungarianMatcher, SetCriterion


def outputs_of(seed):
    draw = torch.Generator().manual_seed(seed)
    layers = [{"pred_logits": torch.randn(2, 24, 5, generator=draw).requires_grad_(),
               "pred_boxes": torch.rand(2, 24, 4, generator=draw).mul(0.5).add(0.1).requires_grad_()} for _ in range(2)]
    return {**layers[0], "aux_outputs": layers[1:]}, [value for layer in layers for value in layer.values()]


@pytest.mark.slow
@pytest.mark.parametrize("class_loss", ["ia_bce", "position_supervised"])
def test_compiled_losses_and_gradients_equal_eager_ones(class_loss):
    weights = [1.0, 2.0, 1.0, 1.0, 0.5]
    eager, compiled = (SetCriterion(HungarianMatcher(), {}, class_loss=class_loss, group_detr=3, class_weights=weights)
                       for _ in range(2))
    for unit in compiled.compile_units:
        unit.compile(fullgraph=True)
    for seed, counts in enumerate([(3, 4), (0, 0), (1, 0), (8, 5), (2, 2)]):
        generator = torch.Generator().manual_seed(seed)
        targets = [{"boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
                    "labels": torch.randint(5, (count,), generator=generator)} for count in counts]
        results = []
        for criterion in (eager, compiled):
            outputs, leaves = outputs_of(seed)
            losses = criterion(outputs, targets)
            sum(loss for name, loss in losses.items() if name.startswith("loss")).backward()
            results.append((losses, [leaf.grad for leaf in leaves]))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
