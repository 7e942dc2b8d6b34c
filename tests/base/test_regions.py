"""Which adapter decides at which place of an image."""

import torch

from lorasynth.base.sampling import mixed, region_weights


def test_regions_share_what_lies_in_several_or_in_none() -> None:
    weights = region_weights([(0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0)], (2, 4))
    expected = torch.tensor([[1.0, 0.5, 0.0, 0.5], [0.0, 0.5, 1.0, 0.5]])
    assert torch.equal(weights[:, 0], expected)
    assert torch.equal(weights[:, 1], expected)


def test_each_place_has_the_prediction_of_its_adapter() -> None:
    weights = region_weights([(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)], (2, 3))
    predicted = torch.arange(2.0 * 2 * 5 * 2 * 3).reshape(4, 5, 2, 3)  # 2 adapters, 2 images
    found = mixed(predicted, weights)
    assert torch.equal(found[:2], found[2:])
    assert torch.equal(found[:2, :, 0], predicted[:2, :, 0])
    assert torch.equal(found[:2, :, 1], predicted[2:, :, 1])
    frames = predicted[:, :, None]  # of a video model, with one frame
    assert torch.equal(mixed(frames, weights), found[:, :, None])
