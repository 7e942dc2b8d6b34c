"""Few long vectors are learned in their span: the same loss for less, and nothing beside it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorasynth.codec import VAE, VAEConfig
from lorasynth.codec.scaled import Scaled, ScaledConfig
from lorasynth.codec.span import Span
from lorasynth.codec.vae_training import InMemory, Training, split
from synthetic_vectors import SyntheticConfig, SyntheticVectors

ROWS, WIDTH = 60, 400
CONFIG = VAEConfig(latents=8, epochs=40, beta=0.02)


def vectors(rows: int = ROWS) -> Tensor:
    return SyntheticVectors(SyntheticConfig(rows=120, width=WIDTH)).rows(0, rows)


@settings(deadline=None, max_examples=25)
@given(rank=st.integers(1, 12), repeated=st.integers(1, 3), seed=st.integers(0, 99))
def test_coordinates_give_the_vectors_back(rank: int, repeated: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rank, 40, generator=generator).repeat(repeated, 1)
    span = Span.of(x, seed)
    assert span.basis.shape == (rank, 40)
    torch.testing.assert_close(span.basis @ span.basis.T, torch.eye(rank), atol=1e-5, rtol=0)
    rebuilt = span.unit * span.coordinates @ span.basis
    torch.testing.assert_close(rebuilt, x, atol=1e-4, rtol=0)
    assert span.coordinates.square().mean().item() == pytest.approx(x.square().mean().item())


@pytest.mark.parametrize("depth", [1, 2])
def test_its_loss_is_that_of_the_whole_vectors(depth: int) -> None:
    config = replace(CONFIG, depth=depth, hidden=16)
    codec = VAE.fit(vectors(), config)
    _, held_out = split(ROWS, config)
    with torch.no_grad():
        x = codec.scaled.encode(vectors()[held_out])
        terms = codec.terms(x, torch.zeros(len(x), config.latents))
    best = min(codec.report["epochs"], key=lambda epoch: epoch["held_out_loss"])
    loss = float(terms.reconstruction + config.beta * terms.divergence)
    assert loss == pytest.approx(best["held_out_loss"], rel=1e-4)
    assert float(terms.reconstruction) == pytest.approx(best["held_out_reconstruction"], rel=1e-4)
    assert float(terms.divergence) == pytest.approx(best["held_out_divergence"], rel=1e-4)


def test_it_is_no_worse_than_training_in_all_numbers() -> None:
    """On vectors that it was not fitted to, since nothing outside of the span disturbs it."""
    known, unseen = vectors(), vectors(120)[ROWS:]
    inside = VAE.fit(known, CONFIG)
    outside = VAE.untrained(CONFIG, WIDTH, "cpu")
    outside.scaled = Scaled.fit(known, ScaledConfig(scale="global"))
    Training(outside, InMemory(outside.scaled.encode(known), CONFIG)).run()
    errors = [c.decode(c.encode(unseen)) - unseen for c in (inside, outside)]
    assert errors[0].square().sum() < errors[1].square().sum()


def test_what_is_outside_of_the_span_changes_nothing() -> None:
    x = vectors()
    codec = VAE.fit(x, CONFIG)
    away = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    basis = Span.of(x - x.mean(0), 0).basis
    away -= away @ basis.T @ basis
    torch.testing.assert_close(codec.encode(x + away), codec.encode(x), atol=1e-4, rtol=1e-4)


def test_vectors_that_are_all_alike_have_no_span_and_are_learned_as_they_are() -> None:
    codec = VAE.fit(torch.ones(4, 20), VAEConfig(latents=2, epochs=60))
    rebuilt = codec.decode(codec.encode(torch.ones(1, 20)))
    torch.testing.assert_close(rebuilt, torch.ones(1, 20), atol=0.05, rtol=0)
