import pytest
import torch
from torch.nn.functional import normalize

from lorasynth.core.randomness import torch_stream
from lorasynth.evaluation.identification import identification


def test_subjects_whose_images_agree_are_all_found() -> None:
    axes = torch.eye(5)
    found = identification(axes, axes)
    assert (found.rank1, found.same, found.different, found.n) == (1, 1, 0, 5)


def test_subjects_mistaken_for_another_are_counted() -> None:
    first, second = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]  # 2 and 3 look like each other
    found = identification(first, second)
    assert found.rank1 == 0.5
    assert found.same == 0.5
    assert found.different == pytest.approx(2 / 12)


def test_each_second_image_seeks_among_the_first_ones() -> None:
    first = normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    second = normalize(torch.tensor([[1.0, 0.3], [1.0, 0.2]]), dim=1)
    # Both second images are nearest to the first subject's first one; the other way about, both
    # first images would be nearest to a second one of their own or the other's.
    found = identification(first, second)
    assert found.rank1 == 0.5
    assert found.same == pytest.approx((second * first).sum(dim=1).mean().item())


def test_guessing_finds_one_in_n() -> None:
    first, second = (
        normalize(torch.randn(400, 16, generator=torch_stream(0, name)), dim=1) for name in "ab"
    )
    found = identification(first, second)
    assert found.rank1 < 0.02
    assert found.same == pytest.approx(0, abs=0.05)
    assert found.different == pytest.approx(0, abs=0.01)
