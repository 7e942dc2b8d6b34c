from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorasynth.core.config import from_dict
from lorasynth.core.errors import BundleError, ConfigError, LibraryError
from lorasynth.hypernet import CleanError, HypernetConfig, LatentDiffusion, TrainingSet
from lorasynth.hypernet import train as training
from lorasynth.hypernet.normaliser import Normaliser
from lorasynth.hypernet.probes import gradient_norms
from lorasynth.hypernet.train import train

from . import toy

HELD_OUT = toy.conditions(200, seed=60)


@cache
def learned(parameterisation: str, modulation: str) -> LatentDiffusion:
    config = toy.config(
        350, parameterisation=parameterisation, denoiser_options={"modulation": modulation}
    )
    probes = [CleanError(toy.truth(HELD_OUT), HELD_OUT), gradient_norms]
    return train(toy.data(), config, probes=probes)


@pytest.mark.parametrize(
    ("parameterisation", "modulation"), [("v", "ada_norm"), ("x0", "low_rank")]
)
def test_learns_a_known_conditional_distribution(parameterisation: str, modulation: str) -> None:
    model = learned(parameterisation, modulation)
    c = toy.conditions(8, seed=50)
    draws = 64
    noise = model.draw_noise(0, range(8 * draws))
    z = model.sample(c.repeat_interleave(draws, 0), noise).unflatten(0, (8, draws))
    # A mean of 64 draws is itself known to 0.04, the subjects' own means differ by more than 1.
    between = toy.truth(c).std(0).mean()
    error = (z.mean(1) - toy.truth(c)).square().mean().sqrt()
    assert float(error) < 0.15 * float(between)
    # x_0's own loss neglects small noise, which leaves samples with less spread
    least = 0.5 if parameterisation == "v" else 0.1
    assert least * toy.SPREAD < float(z.std(1).mean()) < 1.5 * toy.SPREAD


def test_samples_without_a_condition_and_guides() -> None:
    model = learned("v", "ada_norm")
    c = toy.conditions(1, seed=50).expand(256, -1)
    noise = model.draw_noise(0, range(256))
    free = model.sample(None, noise)
    everyone = toy.data().latents
    assert (free.mean(0) - everyone.mean(0)).abs().max() < 0.4
    assert free.std(0).mean() > 2 * model.sample(c, noise).std(0).mean()
    torch.testing.assert_close(model.sample(c, noise, guidance=0.0), free)
    away = [
        float((model.sample(c, noise, guidance=g).mean(0) - everyone.mean(0)).norm())
        for g in (0.0, 0.5, 1.0, 1.5)
    ]
    assert away == sorted(away)


def _killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let drawing the batch of a step, counted from the run's start, raise as Ctrl-C does."""
    draw, calls = training.draw_batch, iter(range(step + 1))

    def drawn(*args: Any, **more: Any) -> Any:
        if next(calls) == step:
            raise KeyboardInterrupt
        return draw(*args, **more)

    monkeypatch.setattr(training, "draw_batch", drawn)


@pytest.mark.parametrize("held_out", [None, toy.data(20)], ids=["to the end", "held out"])
def test_a_killed_run_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: TrainingSet | None
) -> None:
    config = toy.config(30, denoiser_options={"dropout": 0.2})
    optimisation = replace(config.optimisation, checkpoint_seconds=0.0)
    config = replace(config, record_every=7, patience=2, optimisation=optimisation)
    data, path = replace(toy.data(50), held_out=held_out), tmp_path / "checkpoint"
    expected = train(data, config)
    for steps in (11, 13):
        with monkeypatch.context() as patch:
            _killed_at(patch, steps)
            with pytest.raises(KeyboardInterrupt):
                train(data, config, checkpoint=path)
    for _ in range(2):
        found = train(data, config, checkpoint=path)
        for name, value in expected.state_dict().items():
            assert value.equal(found.state_dict()[name]), name
        assert found.history == expected.history
    assert [row["step"] for row in found.history] == [7, 14, 21, 28, 30]


def test_held_out_subjects_end_the_training_early() -> None:
    """With latents that no condition tells of, the training subjects are learned by heart."""
    noise = torch.randn(60, toy.K, generator=torch.Generator().manual_seed(3))
    c = toy.conditions(60, seed=4)[:, None]
    known = TrainingSet(latents=noise[:40], conditions=c[:40])
    data = replace(known, held_out=TrainingSet(latents=noise[40:], conditions=c[40:]))
    config = replace(toy.config(600), record_every=20, patience=2)
    model = train(data, config)
    errors = [row["x0_error"] for row in model.history]
    assert len(errors) < 30
    assert errors.index(min(errors)) == len(errors) - 3
    assert CleanError.of(data.held_out)(0, model)["x0_error"] == min(errors)  # type: ignore[arg-type]


def test_a_checkpoint_of_another_run_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    train(toy.data(20), toy.config(2), checkpoint=path)
    with pytest.raises(ConfigError, match=r"config\.condition_dropout was 0\.1 and is now 0\.5"):
        train(toy.data(20), replace(toy.config(2), condition_dropout=0.5), checkpoint=path)
    with pytest.raises(ConfigError, match=r"another computation .*data was"):
        train(toy.data(21), toy.config(2), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BundleError, match="must be an intact checkpoint"):
        train(toy.data(20), toy.config(2), checkpoint=path)


def test_training_leaves_the_global_stream_alone_and_repeats() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = train(toy.data(20), toy.config(3))
    assert torch.rand(1).equal(expected)
    second = train(toy.data(20), toy.config(3))
    assert first.denoiser.leave.weight.equal(second.denoiser.leave.weight)


def test_probes_measure_the_averaged_weights() -> None:
    model = learned("v", "ada_norm")
    assert [row["step"] for row in model.history] == [100, 200, 300, 350]
    assert model.history[-1]["x0_error"] < model.history[0]["x0_error"] < 1
    norms = [value for name, value in model.history[-1].items() if name.startswith("gradient_")]
    assert sum(norm**2 for norm in norms) == pytest.approx(1, rel=1e-4)
    assert model.history[-1]["x0_error_0.1"] < model.history[-1]["x0_error_10"]
    found = CleanError(toy.truth(HELD_OUT), HELD_OUT)(350, model)
    assert found.items() <= model.history[-1].items()


@pytest.mark.parametrize("each", [True, False])
def test_units_are_of_each_dimension_or_of_all(each: bool) -> None:
    spectrum = torch.tensor([4.0, 1.0, 0.25])
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * spectrum + 2
    normaliser = Normaliser(3).fit(x, each=each)
    y = normaliser(x)
    torch.testing.assert_close(normaliser.inverse(y), x)
    assert float(y.square().mean()) == pytest.approx(1, abs=1e-3)
    assert float(y[:, 0].std() / y[:, 2].std()) == pytest.approx(1 if each else 16, rel=0.1)
    constant = Normaliser(2).fit(torch.ones(5, 2))
    assert constant(torch.ones(5, 2)).equal(torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("latents", "conditions", "match"),
    [
        (torch.zeros(1, 3), torch.zeros(1, 1, 2), "two or more"),
        (torch.zeros(4, 3), torch.zeros(5, 1, 2), "4 latents and 5 rows"),
        (torch.full((4, 3), float("nan")), torch.zeros(4, 1, 2), "finite"),
    ],
)
def test_bad_data_is_refused(latents: Tensor, conditions: Tensor, match: str) -> None:
    with pytest.raises(LibraryError, match=match):
        TrainingSet(latents=latents, conditions=conditions)


@pytest.mark.parametrize(
    "options",
    [
        {"condition_dropout": 1.5},
        {"record_every": 0},
        {"model": {"solver": "euler"}},
        {"optimisation": {"steps": 1, "batch": 1, "lr": -1.0}},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="HypernetConfig"):
        from_dict(HypernetConfig, options)


def test_a_model_is_what_train_returns() -> None:
    model = train(toy.data(20), toy.config(2))
    assert isinstance(model, LatentDiffusion)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
