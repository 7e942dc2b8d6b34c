"""The three forms of the low-rank layer are the formulas they say."""

import pytest
import torch
from torch import Tensor, nn

from lorasynth.core.config import from_dict
from lorasynth.core.errors import ConfigError
from lorasynth.hypernet import LowRankModulation, LowRankModulationConfig
from lorasynth.hypernet.contract import Widths


def _modulation(form: str) -> tuple[LowRankModulation, nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    modulation = LowRankModulation(
        LowRankModulationConfig(form=form, rank=2),  # type: ignore[arg-type]
        Widths(4, 3, 5, 6),
    )
    nn.init.normal_(modulation.g.weight)
    nn.init.normal_(modulation.scale_and_shift.project.weight)
    return modulation, nn.Linear(4, 3), torch.randn(2, 4), torch.randn(2, 5), torch.randn(2, 6)


@pytest.mark.parametrize("form", ["layer", "product", "residual"])
def test_forms(form: str) -> None:
    modulation, layer, h, time, y = _modulation(form)
    A, B = modulation.prepare(y)
    out = modulation(layer, h, time, (A, B))
    timed = modulation.scale_and_shift(h, time)
    BA = torch.einsum("bor,bri->boi", B, A)
    low_rank = torch.einsum("boi,bi->bo", BA, timed)
    expected = {
        "layer": lambda: layer(timed) + low_rank,
        "product": lambda: layer(low_rank),
        "residual": lambda: layer(timed + low_rank),
    }[form]()
    torch.testing.assert_close(out, expected)
    assert (torch.linalg.matrix_rank(BA) == 2).all()


@pytest.mark.parametrize("form", ["layer", "residual"])
def test_starts_as_the_layer_alone(form: str) -> None:
    modulation = LowRankModulation(
        LowRankModulationConfig(form=form),  # type: ignore[arg-type]
        Widths(4, 3, 5, 6),
    )
    layer, h = nn.Linear(4, 3), torch.randn(2, 4)
    out = modulation(layer, h, torch.randn(2, 5), modulation.prepare(torch.randn(2, 6)))
    torch.testing.assert_close(out, layer(h))


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="greater than or equal to 1, but got 0"):
        from_dict(LowRankModulationConfig, {"rank": 0})
