"""Every kind of coordinates: what descent on them promises, on a tiny base model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lorasynth.adapter import Factor, Factors, Layout, cosines, map_factors
from lorasynth.base import BaseModel
from lorasynth.codec import PCA, VAE, PCAConfig, VAEConfig
from lorasynth.core.randomness import torch_stream
from lorasynth.engine import OptimizerConfig, Recipe, Trainable, descend, train_fleet
from lorasynth.images import Subject
from lorasynth.optimise import (
    Coordinates,
    Inversion,
    InversionConfig,
    Mixture,
    MixtureConfig,
    weights2weights,
)

RECIPE = Recipe(rank=2, targets=("to_q", "to_v", "ff.net.2"), steps=20, learning_rate=2e-2)
DESCENT = OptimizerConfig(steps=25, learning_rate=0.5, images_per_step=2, average=0.0, clip=None)


def subject(name: str) -> Subject:
    stream = torch_stream(5, name)
    colour = torch.randint(0, 256, (1, 1, 1, 3), generator=stream)
    pixels = (colour + torch.randint(-20, 20, (3, 16, 16, 3), generator=stream)).clamp(0, 255)
    return Subject(id=name, photos=pixels.to(torch.uint8), captions=["a portrait"] * 3)


@pytest.fixture(scope="module")
def base(pipeline_folder: Any) -> BaseModel:
    return BaseModel.load(pipeline_folder)


@pytest.fixture(scope="module")
def library(base: BaseModel) -> tuple[torch.Tensor, Layout]:
    """Vectors of three trained adapters, and their opposites thrice: the mean is a bad adapter."""
    factors = train_fleet(base, RECIPE, [subject(f"known-{i}") for i in range(3)]).factors
    layout = Layout.from_factors(factors)
    vectors = layout.flatten(factors)
    opposite = layout.flatten({name: Factor(f.A, -3 * f.B) for name, f in factors.items()})
    return torch.cat([vectors, opposite]), layout


def mixture(config: MixtureConfig) -> Callable[..., Coordinates]:
    def make(n: int, rows: torch.Tensor, layout: Layout, descent: OptimizerConfig) -> Coordinates:
        return Mixture(replace(config, optimizer=descent), n, rows, layout.unflatten)

    return make


def inversion(config: InversionConfig) -> Callable[..., Coordinates]:
    def make(n: int, rows: torch.Tensor, layout: Layout, descent: OptimizerConfig) -> Coordinates:
        codec = PCA.fit(rows, PCAConfig(latents=3))
        return Inversion(
            replace(config, optimizer=descent),
            n,
            codec.encode(rows),
            lambda latents: layout.unflatten(codec.decode(latents)),
        )

    return make


ROWS = {
    "mixture": mixture(MixtureConfig()),
    "mixture, penalised": mixture(MixtureConfig(penalty=1e-3)),
    "mixture, simplex": mixture(MixtureConfig(simplex=True)),
    "inversion": inversion(InversionConfig()),
    "inversion, equal steps off": inversion(InversionConfig(equal_steps=False)),
}
SUBJECTS = ["known-1", "new-0", "new-1"]


@pytest.mark.parametrize("kind", ROWS)
def test_starts_at_the_mean_and_lowers_the_loss(base: BaseModel, library: Any, kind: str) -> None:
    rows, layout = library
    people = [subject(name) for name in SUBJECTS]
    coordinates = ROWS[kind](3, rows, layout, DESCENT)
    begin = layout.flatten(coordinates()).detach()
    torch.testing.assert_close(begin, rows.mean(dim=0).expand(3, -1), rtol=1e-3, atol=1e-5)
    found = descend(base, people, coordinates)
    assert found.losses.shape == (3, 25)
    before = loss_of(base, people, layout.unflatten(begin))
    assert (loss_of(base, people, found.factors) < before).all()


def loss_of(base: BaseModel, people: list[Subject], factors: Factors) -> torch.Tensor:
    """Mean denoising loss of fixed adapters over the draws of `DESCENT`."""
    return descend(base, people, Fixed(factors, len(people))).losses.mean(dim=1)


class Fixed(Trainable):
    """Adapters that do not move."""

    def __init__(self, fixed: Factors, n: int) -> None:
        super().__init__(replace(DESCENT, learning_rate=1e-30))
        self.fixed = fixed
        self.nothing = torch.nn.Parameter(torch.zeros(n, 1))

    def forward(self) -> Factors:
        extra = 0 * self.nothing[:, :, None]
        return {n: type(f)(f.A, f.B.detach() + extra) for n, f in self.fixed.items()}


def test_the_latent_of_a_vae_is_found_through_its_decoder(base: BaseModel, library: Any) -> None:
    rows, layout = library
    codec = VAE.fit(rows, VAEConfig(latents=3, depth=2, epochs=200, batch=6))
    known = codec.encode(rows)
    people = [subject(name) for name in SUBJECTS]
    config = InversionConfig(optimizer=DESCENT)

    def decode(latents: torch.Tensor) -> Factors:
        return layout.unflatten(codec.decode(latents))

    coordinates = Inversion(config, 3, known, decode)
    begin = map_factors(torch.detach, coordinates())
    found = descend(base, people, coordinates)
    assert (loss_of(base, people, found.factors) < loss_of(base, people, begin)).all()


def test_weights2weights_moves_coefficients_of_standardised_weights() -> None:
    stream = torch_stream(7, "vectors")
    codec = weights2weights.components_of(torch.randn(5, 12, generator=stream))
    found = weights2weights.in_latents(weights2weights.SETTINGS, codec)
    latents = torch.zeros(1, codec.latents)
    moved = latents.clone()
    moved[0, 0] = found.optimizer.learning_rate
    weights = (codec.decode(moved) - codec.decode(latents)) / codec.scaled.unit
    assert weights.norm().item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("kind", ROWS)
def test_a_subject_alone_gets_what_it_gets_among_others(
    base: BaseModel, library: Any, kind: str
) -> None:
    rows, layout = library
    descent = replace(DESCENT, steps=4)
    together = ROWS[kind](3, rows, layout, descent)
    alone = ROWS[kind](1, rows, layout, descent)
    descend(base, [subject(name) for name in SUBJECTS], together)
    descend(base, [subject(SUBJECTS[1])], alone)
    same = (alone.values[0] - together.values[1]).norm()
    other = (together.values[0] - together.values[1]).norm()
    assert same < 1e-3 * together.values[1].norm()
    assert same < 0.5 * other


def test_coefficients_on_the_simplex_stay_there(base: BaseModel, library: Any) -> None:
    rows, layout = library
    one = Mixture(MixtureConfig(simplex=True, optimizer=DESCENT), 1, rows, layout.unflatten)
    descend(base, [subject("known-1")], one)
    assert one.coefficients.std() > 0.01
    torch.testing.assert_close(one.coefficients.sum(), torch.tensor(1.0))
    assert (one.coefficients >= 0).all()


def test_a_strong_prior_and_a_strong_penalty_keep_the_mean(base: BaseModel, library: Any) -> None:
    rows, layout = library
    people = [subject("new-0")]
    for kind, strong in (
        ("mixture", mixture(MixtureConfig(penalty=1e3))),
        ("inversion", inversion(InversionConfig(prior=1e3))),
    ):
        free = ROWS[kind](1, rows, layout, replace(DESCENT, learning_rate=0.05))
        held = strong(1, rows, layout, replace(DESCENT, learning_rate=0.05))
        for coordinates in (free, held):
            descend(base, people, coordinates)
        assert held.values.norm() < 0.5 * free.values.norm()


def test_mixing_vectors_of_one_shared_a_mixes_their_updates(library: Any) -> None:
    rows, layout = library
    mixed = layout.unflatten(torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]) @ rows)
    one, other = (layout.unflatten(rows[i : i + 1]) for i in (0, 1))
    summed = {name: type(f)(f.A, 0.5 * (one[name].B + other[name].B)) for name, f in mixed.items()}
    assert cosines(mixed, summed).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "weight"), [(MixtureConfig, "penalty"), (InversionConfig, "prior")]
)
def test_negative_weights_are_refused(kind: Callable[..., object], weight: str) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        kind(**{weight: -1.0})
