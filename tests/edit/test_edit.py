"""Directions, movements and interpolations on planted latents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasynth.codec import PCA, PCAConfig
from lorasynth.core.errors import ConfigError
from lorasynth.edit import attribute_names, direction, lerp, moved, slerp


def planted(correlated: bool) -> tuple[torch.Tensor, dict[str, list[object]], torch.Tensor]:
    """Latents in which glasses and beards add a direction each; beards often come with glasses."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(400, 3, generator=generator)
    glasses = draw[:, 0] < 0.5
    beard = (
        torch.where(glasses, draw[:, 1] < 0.9, draw[:, 1] < 0.1) if correlated else draw[:, 1] < 0.5
    )
    directions = torch.randn(3, 6, generator=generator)
    facts = torch.stack([glasses, beard, draw[:, 2]], dim=1).float()
    noise = 0.05 * torch.randn(400, 6, generator=generator)
    columns: dict[str, list[object]] = {
        "glasses": ["round" if x else "none" for x in glasses.tolist()],
        "beard": ["full" if x else "none" for x in beard.tolist()],
        "scale": draw[:, 2].tolist(),
        "constant": ["same"] * 400,
    }
    return 2 + facts @ directions + noise, columns, directions


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize(("name", "row"), [("glasses", 0), ("beard:full", 1), ("scale", 2)])
def test_a_direction_is_that_of_its_attribute_alone(correlated: bool, name: str, row: int) -> None:
    latents, columns, directions = planted(correlated)
    found = direction(latents, columns, name)
    assert (found - directions[row]).norm() < 0.06 * directions[row].norm()


def test_names_and_the_refusal_of_others() -> None:
    latents, columns, _ = planted(correlated=False)
    assert attribute_names(columns) == ["glasses", "glasses:round", "beard", "beard:full", "scale"]
    with pytest.raises(ConfigError, match=r"one of glasses, .* but is 'hat'"):
        direction(latents, columns, "hat")


def test_colours_are_three_attributes() -> None:
    columns: dict[str, list[object]] = {"hair": ["#ff0000", "#000000", "#00ff33"]}
    assert attribute_names(columns) == ["hair:red", "hair:green", "hair:blue"]


def test_a_column_with_a_gap_has_no_attributes() -> None:
    assert attribute_names({"age": [31.0, None], "hat": [None, "cap"], "tall": [1.0, 0.0]}) == [
        "tall"
    ]


def test_names_of_subjects_are_no_attributes() -> None:
    names: list[object] = [f"person {number}" for number in range(150)]
    groups: list[object] = [f"group {number % 100}" for number in range(150)]
    assert len(attribute_names({"person": names, "group": groups})) == 100


@pytest.fixture(scope="module")
def codec() -> PCA:
    generator = torch.Generator().manual_seed(1)
    return PCA.fit(torch.randn(40, 12, generator=generator), PCAConfig(latents=5))


def test_a_step_of_zero_keeps_even_what_the_codec_cannot_hold(codec: PCA) -> None:
    vectors = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(moved(codec, vectors, torch.zeros(5)), vectors)
    step = torch.tensor([1.0, 0, 0, 0, 0])
    after = codec.encode(moved(codec, vectors, step)) - codec.encode(vectors)
    torch.testing.assert_close(after, step.expand(3, -1), rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_slerp_keeps_lengths_between_those_of_its_ends(seed: int, share: float) -> None:
    start, end = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))
    [point] = slerp(start, end, torch.tensor([share]))
    expected = torch.lerp(start.norm(), end.norm(), share)
    torch.testing.assert_close(point.norm(), expected, rtol=1e-3, atol=1e-3)


def test_slerp_of_parallel_ends_is_the_straight_line() -> None:
    start, shares = torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.5])
    torch.testing.assert_close(slerp(start, 3 * start, shares), lerp(start, 3 * start, shares))
    torch.testing.assert_close(slerp(start, -start, shares), lerp(start, -start, shares))
