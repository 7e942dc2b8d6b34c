import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lorasynth.condition.similarity import likeness, self_likeness
from lorasynth.core.randomness import torch_stream
from lorasynth.evaluation.metrics import mean_pairwise_distance


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch_stream(seed, "unit")), dim=-1)


def test_identical_images_have_a_likeness_of_one() -> None:
    one = unit(3, 1, 8)
    torch.testing.assert_close(likeness(one.expand(-1, 4, -1), one), torch.ones(3))
    torch.testing.assert_close(likeness(-one, one.expand(-1, 2, -1)), -torch.ones(3))
    torch.testing.assert_close(self_likeness(one.expand(-1, 5, -1)), torch.ones(3))


def test_likeness_is_the_mean_over_all_pairs_of_each_subject() -> None:
    generated, references = unit(3, 4, 8), unit(3, 2, 8, seed=1)
    expected = [
        torch.stack([g @ r for g in generated[i] for r in references[i]]).mean() for i in range(3)
    ]
    torch.testing.assert_close(likeness(generated, references), torch.stack(expected))


def test_a_image_is_not_compared_with_itself() -> None:
    references = unit(2, 3, 8)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = [
        torch.stack([subject[i] @ subject[j] for i, j in pairs]).mean() for subject in references
    ]
    torch.testing.assert_close(self_likeness(references), torch.stack(expected))
    orthogonal = torch.eye(4)[None]
    assert self_likeness(orthogonal).item() == pytest.approx(0)


def test_diversity_is_none_among_equals_and_one_among_strangers() -> None:
    same = unit(2, 1, 6).expand(-1, 3, -1)
    torch.testing.assert_close(mean_pairwise_distance(same), torch.zeros(2), atol=1e-6, rtol=0)
    strangers = torch.eye(4)[None] * torch.tensor([1.0, 2, 3, 4])[:, None]  # size is no diversity
    torch.testing.assert_close(mean_pairwise_distance(strangers), torch.ones(1))
    opposite = torch.tensor([[[1.0, 0], [-1, 0]]])
    torch.testing.assert_close(mean_pairwise_distance(opposite), torch.full((1,), 2.0))


def test_diversity_is_one_less_the_likeness_within() -> None:
    features = unit(3, 5, 8)
    torch.testing.assert_close(mean_pairwise_distance(features), 1 - self_likeness(features))
