"""Every denoiser keeps the contract with every modulation; one row each."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorasynth.core.config import from_dict
from lorasynth.hypernet import (
    DENOISERS,
    MODULATIONS,
    Denoiser,
    LatentDiffusion,
    LatentDiffusionConfig,
    load_hypernet,
)
from lorasynth.hypernet.contract import Widths

K, M, B = 6, 5, 7
#: Options that make each denoiser small.
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "depth": 2, "embedding": 12},
    "unet": {"channels": (16, 16), "blocks": 1, "embedding": 12},
}
MODULATION_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "ada_norm": ("ada_norm", {}),
    "low_rank-layer": ("low_rank", {"rank": 2}),
    "low_rank-product": ("low_rank", {"rank": 2, "form": "product"}),
    "low_rank-residual": ("low_rank", {"rank": 2, "form": "residual"}),
}
denoisers = pytest.mark.parametrize("name", SMALL)
modulations = pytest.mark.parametrize("row", MODULATION_ROWS)


def options(name: str, row: str) -> dict[str, Any]:
    modulation, its_options = MODULATION_ROWS[row]
    return SMALL[name] | {"modulation": modulation, "modulation_options": its_options}


def build(name: str, row: str) -> Denoiser:
    torch.manual_seed(0)
    kind = DENOISERS.get(name)
    return kind(from_dict(kind.config_class, options(name, row)), K, M)


@cache
def trained(name: str, row: str, steps: int = 60) -> Denoiser:
    """A denoiser that has learned to give back part of its condition, and less when late."""
    denoiser = build(name, row)
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    for _ in range(steps):
        x, t, y = inputs(64)
        target = torch.cat([y, y[:, :1]], dim=1) * (1 - t[:, None]) + 0.1 * x
        keep = torch.rand(64) > 0.2
        loss = (denoiser(x, t, y, keep) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return denoiser.eval()


def inputs(rows: int = B) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, K), torch.rand(rows), torch.randn(rows, M)


def test_every_plug_in_has_a_row() -> None:
    assert set(SMALL) == set(DENOISERS.names())
    assert {name for name, _ in MODULATION_ROWS.values()} == set(MODULATIONS.names())


@denoisers
@modulations
def test_starts_at_zero_with_the_right_shape(name: str, row: str) -> None:
    x, t, y = inputs()
    out = build(name, row)(x, t, y)
    assert out.shape == (B, K)
    assert (out == 0).all()


@denoisers
@modulations
def test_gradient_reaches_every_parameter(name: str, row: str) -> None:
    denoiser = trained(name, row, steps=2)
    x, t, y = inputs()
    keep = torch.arange(B) % 2 == 0
    denoiser(x, t, y, keep).square().sum().backward()
    without = [
        name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert without == []


@denoisers
@modulations
def test_condition_time_and_input_change_the_output(name: str, row: str) -> None:
    denoiser = trained(name, row)
    x, t, y = inputs()
    out = denoiser(x, t, y)
    for other in (
        denoiser(x, t, -y),
        denoiser(x, 1 - t, y),
        denoiser(-x, t, y),
        denoiser(x, t, None),
    ):
        assert (other - out).abs().max() > 0.05


@denoisers
@modulations
def test_a_trajectory_is_the_denoiser_at_each_time(name: str, row: str) -> None:
    denoiser = trained(name, row)
    x, _, y = inputs()
    times, state = [0.9, 0.5, 0.1], denoiser.prepare(y)
    nets = list(denoiser.trajectory(times, state, B))
    assert len(nets) == len(times)
    for time, net in zip(times, nets, strict=True):
        expected = denoiser.denoise(x, torch.full((B,), time), state)
        torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-4)


@denoisers
@modulations
def test_it_learns_from_its_condition(name: str, row: str) -> None:
    denoiser = trained(name, row, steps=100)
    x, t, y = inputs(200)
    target = torch.cat([y, y[:, :1]], dim=1) * (1 - t[:, None]) + 0.1 * x
    with torch.no_grad():
        error = float((denoiser(x, t, y) - target).square().mean() / target.square().mean())
    assert error < 0.5


@denoisers
@modulations
def test_dropped_conditions_are_no_conditions(name: str, row: str) -> None:
    denoiser = trained(name, row)
    x, t, y = inputs()
    keep = torch.arange(B) < 3
    out = denoiser(x, t, y, keep)
    torch.testing.assert_close(out[:3], denoiser(x[:3], t[:3], y[:3]))
    torch.testing.assert_close(out[3:], denoiser(x[3:], t[3:], None))


@denoisers
@modulations
def test_a_prepared_condition_equals_a_fresh_one_at_every_step(name: str, row: str) -> None:
    denoiser = trained(name, row)
    x, t, y = inputs()
    state = denoiser.prepare(y)
    assert all(len(tensor) == B for tensor in state)
    for shift in (0.0, 0.1):
        torch.testing.assert_close(
            denoiser.denoise(x + shift, t * 0.9, state), denoiser(x + shift, t * 0.9, y)
        )


@denoisers
@modulations
def test_save_and_load(name: str, row: str, tmp_path: Path) -> None:
    config = LatentDiffusionConfig(denoiser=name, denoiser_options=options(name, row), steps=5)
    model = LatentDiffusion(config, K, M)
    model.denoiser = trained(name, row)
    condition, noise = torch.randn(3, M), model.draw_noise(0, ["a", "b", "c"])
    expected = model.sample(condition, noise)
    model.save(tmp_path / "whole")
    assert load_hypernet(tmp_path / "whole").sample(condition, noise).equal(expected)
    model.save(tmp_path / "half", half=True)
    half = load_hypernet(tmp_path / "half").sample(condition, noise)
    torch.testing.assert_close(half, expected, atol=0.05, rtol=0)


@modulations
def test_a_modulation_takes_tokens(row: str) -> None:
    """Axes between batch and width (a U-Net's positions, a transformer's tokens) share y."""
    name, its_options = MODULATION_ROWS[row]
    kind = MODULATIONS.get(name)
    modulation = kind(from_dict(kind.config_class, its_options), Widths(4, 3, 5, 6))
    for parameter in modulation.parameters():
        torch.nn.init.normal_(parameter)
    layer = torch.nn.Linear(4, 3)
    h, time, state = torch.randn(2, 7, 4), torch.randn(2, 5), modulation.prepare(torch.randn(2, 6))
    out = modulation(layer, h, time, state)
    assert out.shape == (2, 7, 3)
    torch.testing.assert_close(out[:, 4], modulation(layer, h[:, 4], time, state))
