import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lorasynth.condition.similarity import likeness
from lorasynth.core.randomness import torch_stream


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch_stream(seed, "unit")), dim=-1)


def test_similarity_is_the_mean_over_all_pairs_of_each_subject() -> None:
    generated, references = unit(3, 4, 8), unit(3, 2, 8, seed=1)
    expected = [
        torch.stack([g @ r for g in generated[i] for r in references[i]]).mean() for i in range(3)
    ]
    torch.testing.assert_close(likeness(generated, references), torch.stack(expected))
    same = references[:, :1].expand(-1, 4, -1)
    torch.testing.assert_close(likeness(same, references[:, :1]), torch.ones(3))


def test_conditions_of_several_parts_are_compared_by_their_angle() -> None:
    """Each part is a unit vector, so the whole is longer, and no similarity may exceed 1."""
    parts = normalize(torch.randn(1, 4, 2, 8), dim=-1).flatten(2)
    assert torch.allclose(likeness(parts[:, :1], parts[:, :1]), torch.ones(1))
    assert likeness(parts, 3 * parts) == pytest.approx(likeness(parts, parts))
