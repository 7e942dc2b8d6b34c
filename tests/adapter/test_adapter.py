import pytest
import torch

from lorasynth.adapter import Adapter, AdapterMetadata, Factor, Layout
from lorasynth.core.errors import ConfigError, LayoutError


def test_vector_round_trip(make_factors) -> None:
    adapter = Adapter(make_factors(None), AdapterMetadata(trigger_phrase="sks"))
    vector = adapter.to_vector()
    again = Adapter.from_vector(vector, adapter.layout, adapter.metadata)
    assert torch.equal(again.to_vector(), vector)
    assert again.metadata.trigger_phrase == "sks"
    assert Adapter.from_vector(vector, adapter.layout).layout == adapter.layout


def test_to_vector_refuses_another_layout(make_factors) -> None:
    other = Layout.from_factors(make_factors(None, rank=1))
    with pytest.raises(LayoutError, match="must have the layout's shapes"):
        Adapter(make_factors(None)).to_vector(other)


def test_scaled_scales_the_update(make_factors, dense) -> None:
    adapter = Adapter(make_factors(None))
    torch.testing.assert_close(dense(adapter.scaled(-0.5).factors), -0.5 * dense(adapter.factors))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((2, 3), (4, 1), r"m has A \(2, 3\) and B \(4, 1\)"),
        ((0, 3), (4, 0), "r at least 1"),
        ((1, 2, 3), (1, 4, 2), r"A must be \(r, in\)"),
    ],
)
def test_contradicting_shapes_are_refused(a: tuple, b: tuple, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Adapter({"m": Factor(torch.zeros(a), torch.zeros(b))})


def test_nothing_and_nan_are_refused() -> None:
    with pytest.raises(LayoutError, match="at least one module"):
        Adapter({})
    with pytest.raises(LayoutError, match="A of m holds NaN"):
        Adapter({"m": Factor(torch.full((1, 2), torch.nan), torch.zeros(2, 1))})


def test_a_cast_that_overflows_is_refused(make_factors) -> None:
    with pytest.raises(LayoutError, match="infinite"):
        Adapter(make_factors(None)).scaled(1e6).to(torch.float16)


def test_an_unknown_format_lists_the_known(make_factors, tmp_path) -> None:
    with pytest.raises(
        ConfigError, match="one of auto, comfyui, diffusers, kohya, peft, but got 'pickle'"
    ):
        Adapter(make_factors(None)).save(tmp_path / "x.safetensors", format="pickle")
