import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

import kills
from lorasynth.core.config import from_dict, to_dict
from lorasynth.core.errors import BundleError, ConfigError, LibraryError
from lorasynth.hypernet import CleanError, LatentDiffusion, Prediction, TrainingSet
from lorasynth.hypernet import train as training
from lorasynth.hypernet.normaliser import Normaliser
from lorasynth.hypernet.train import HypernetConfig, accelerator_on, train
from lorasynth.library.vectors import write_vectors

from . import toy

HELD_OUT = toy.conditions(200, seed=60)


@cache
def learned(parameterisation: str, modulation: str) -> LatentDiffusion:
    config = toy.config(
        350, parameterisation=parameterisation, denoiser_options={"modulation": modulation}
    )
    # x_0's own loss neglects small noise, which leaves samples without spread; Min-SNR does not.
    config = replace(config, min_snr=None if parameterisation == "v" else 5.0)
    return train(toy.data(), config, probes=[CleanError(toy.truth(HELD_OUT), HELD_OUT)])


@pytest.mark.parametrize("parameterisation", ["v", "x0"])
@pytest.mark.parametrize("modulation", ["ada_norm", "low_rank"])
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
    assert 0.5 * toy.SPREAD < float(z.std(1).mean()) < 1.5 * toy.SPREAD


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


def test_trains_without_conditions() -> None:
    model = train(TrainingSet(latents=toy.data().latents), toy.config(150))
    z = model.sample(None, model.draw_noise(0, range(200)))
    assert (z.mean(0) - toy.data().latents.mean(0)).abs().max() < 0.4


class KilledError(Exception):
    pass


def _kill_at(step: int) -> Any:
    def objective(prediction: Prediction) -> Mapping[str, Tensor]:
        if prediction.step == step:
            raise KilledError
        return {}

    return objective


def _never(prediction: Prediction) -> Mapping[str, Tensor]:
    return {}


def test_a_killed_run_resumes_exactly(tmp_path: Path) -> None:
    config = toy.config(30, denoiser_options={"dropout": 0.2})
    config = replace(
        config,
        mixing=0.3,
        condition_noise=0.1,
        record_every=7,
        optimisation=replace(config.optimisation, checkpoint_seconds=0.0),
    )
    expected = train(toy.data(50), config, objectives=[_never])
    path = tmp_path / "checkpoint"
    for step in (11, 24):
        with pytest.raises(KilledError):
            train(toy.data(50), config, objectives=[_kill_at(step)], checkpoint=path)
    assert path.is_file()
    found = train(toy.data(50), config, objectives=[_never], checkpoint=path)
    for name, value in expected.state_dict().items():
        assert value.equal(found.state_dict()[name]), name
    assert found.history == expected.history
    assert [row["step"] for row in found.history] == [7, 14, 21, 28, 30]
    again = train(toy.data(50), config, objectives=[_never], checkpoint=path)
    assert again.state_dict()["denoiser.leave.weight"].equal(found.denoiser.leave.weight)


@pytest.mark.long
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """In processes of its own."""
    write_vectors(tmp_path / "v.npy", torch.randn(200, kills.LATENTS))
    killed = kills.command("hypernet", tmp_path / "v.npy", tmp_path / "run", tmp_path / "killed")
    for delay in torch.rand(2).mul(0.2).tolist():
        assert kills.kill_after_checkpoint(killed, tmp_path / "run", delay)
    undisturbed = kills.command(
        "hypernet", tmp_path / "v.npy", tmp_path / "other run", tmp_path / "undisturbed"
    )
    for command in (killed, undisturbed):
        subprocess.run(command, check=True, capture_output=True)
    assert kills.contents(tmp_path / "killed") == kills.contents(tmp_path / "undisturbed")


def test_a_checkpoint_of_another_run_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    train(toy.data(20), toy.config(2), checkpoint=path)
    with pytest.raises(ConfigError, match=r"config\.mixing was 0\.0 and is now 0\.5"):
        train(toy.data(20), replace(toy.config(2), mixing=0.5), checkpoint=path)
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


def test_objectives_see_latents_in_the_codecs_units_and_steer() -> None:
    seen: list[Prediction] = []

    def towards_ten(prediction: Prediction) -> Mapping[str, Tensor]:
        seen.append(prediction)
        return {"towards_ten": (prediction.x0 - 10).square().mean()}

    data = toy.data(50)
    config = replace(toy.config(60, parameterisation="x0"), latent_weight=0.0, record_every=20)
    model = train(data, config, objectives=[towards_ten])
    assert torch.isin(seen[0].truth[:, 0], data.latents[:, 0]).all()
    torch.testing.assert_close(seen[0].truth, data.latents[seen[0].subjects])
    assert model.history[-1]["towards_ten"] < 0.3 * model.history[0]["towards_ten"]
    z = model.sample(toy.conditions(4, 9), model.draw_noise(0, range(4)))
    assert (z - 10).abs().mean() < 2


def test_probes_measure_the_averaged_weights() -> None:
    model = learned("v", "ada_norm")
    assert [row["step"] for row in model.history] == [100, 200, 300, 350]
    assert model.history[-1]["x0_error"] < model.history[0]["x0_error"] < 1
    assert model.history[-1]["x0_error_0.1"] < model.history[-1]["x0_error_10"]
    found = CleanError(toy.truth(HELD_OUT), HELD_OUT)(350, model)
    assert found.items() <= model.history[-1].items()


def test_keeps_the_weights_where_a_figure_was_lowest(tmp_path: Path) -> None:
    """The figure falls, then rises; the run is killed between its lowest point and its end."""

    def probe(step: int, model: LatentDiffusion) -> Mapping[str, float]:
        return {"figure": abs(step - 6.0)}

    config = replace(toy.config(12), record_every=3, keep_lowest="figure")
    config = replace(config, optimisation=replace(config.optimisation, checkpoint_seconds=0.0))
    seen: dict[int, Tensor] = {}

    def remember(step: int, model: LatentDiffusion) -> Mapping[str, float]:
        seen[step] = model.denoiser.leave.weight.clone()  # type: ignore[union-attr, operator]
        return probe(step, model)

    path = tmp_path / "checkpoint"
    with pytest.raises(KilledError):
        train(toy.data(50), config, probes=[remember], objectives=[_kill_at(8)], checkpoint=path)
    model = train(toy.data(50), config, probes=[probe], checkpoint=path)
    assert model.denoiser.leave.weight.equal(seen[6])
    with pytest.raises(ConfigError, match="this run has step, loss"):
        train(toy.data(50), replace(config, keep_lowest="likeness"))


def test_divergence_is_told() -> None:
    def broken(prediction: Prediction) -> Mapping[str, Tensor]:
        return {"broken": prediction.x0.mean() * float("inf")}

    with pytest.raises(ConfigError, match="diverged before step 5"):
        train(toy.data(50), replace(toy.config(9), record_every=5), objectives=[broken])


def test_the_config_goes_through_json() -> None:
    config = toy.config(7, denoiser_options={"modulation": "low_rank"})
    assert from_dict(HypernetConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_spreads_the_noise_over_the_spectrum(whitening: float) -> None:
    spectrum = torch.tensor([4.0, 1.0, 0.25])
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * spectrum + 2
    normaliser = Normaliser(3).fit(x, whitening)
    y = normaliser(x)
    torch.testing.assert_close(normaliser.inverse(y), x)
    assert float(y.square().mean()) == pytest.approx(1, abs=1e-3)
    ratio = float(y[:, 0].std() / y[:, 2].std())
    assert ratio == pytest.approx(16 ** (1 - whitening), rel=0.1)
    constant = Normaliser(2).fit(torch.ones(5, 2))
    assert constant(torch.ones(5, 2)).equal(torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("latents", "conditions", "match"),
    [
        (torch.zeros(1, 3), None, "two or more"),
        (torch.zeros(4, 3), torch.zeros(5, 1, 2), "4 latents and 5 rows"),
        (torch.full((4, 3), float("nan")), None, "finite"),
    ],
)
def test_bad_data_is_refused(latents: Tensor, conditions: Tensor | None, match: str) -> None:
    with pytest.raises(LibraryError, match=match):
        TrainingSet(latents=latents, conditions=conditions)


@pytest.mark.parametrize(
    "options", [{"condition_dropout": 1.5}, {"mixing": -0.1}, {"record_every": 0}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        HypernetConfig(**options)


def test_a_model_is_what_train_returns() -> None:
    model = train(toy.data(20), toy.config(2))
    assert isinstance(model, LatentDiffusion)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("name", "chosen"), [("cpu", []), ("cuda", []), ("cuda:1", ["cuda:1"])])
def test_the_device_that_was_chosen_trains(
    monkeypatch: pytest.MonkeyPatch, name: str, chosen: list[str]
) -> None:
    seen: list[object] = []

    def made(cpu: bool) -> Accelerator:
        seen.append(cpu)
        return Accelerator.__new__(Accelerator)

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append(str(device)))
    monkeypatch.setattr(training, "Accelerator", made)
    accelerator_on(torch.device(name))
    assert seen == [*chosen, name == "cpu"]
