import torch

from lorasynth.hypernet import TrainingSet
from lorasynth.hypernet.batches import Batch, draw_batch


def _set(n: int = 30, images: int = 3) -> TrainingSet:
    generator = torch.Generator().manual_seed(0)
    conditions = torch.randn(n, images, 5, generator=generator)
    conditions = conditions / conditions.norm(dim=2, keepdim=True)
    return TrainingSet(latents=torch.randn(n, 4, generator=generator), conditions=conditions)


def _draw(data: TrainingSet, dropout: float = 0.25, mixing: float = 0.0) -> Batch:
    return draw_batch(data, 400, torch.Generator().manual_seed(1), dropout=dropout, mixing=mixing)


def test_rows_are_subjects_with_one_of_their_own_conditions() -> None:
    data = _set()
    batch = _draw(data)
    assert batch.latents.equal(data.latents[batch.subjects])
    own = data.conditions[batch.subjects]  # type: ignore[index]
    assert batch.condition is not None
    same = (own == batch.condition[:, None]).all(dim=2)
    assert (same.sum(1) == 1).all()
    assert (same.sum(0) > 80).all()


def test_times_are_spread_evenly_and_conditions_dropped_at_the_asked_share() -> None:
    batch = _draw(_set())
    assert (batch.t.diff() > 0).all()
    assert ((batch.t * 400).floor() == torch.arange(400)).all()
    assert 0.15 < float((~batch.keep).float().mean()) < 0.35


def test_mixtures_stay_on_the_sphere_and_between_their_subjects() -> None:
    data = _set()
    batch = _draw(data, mixing=0.5)
    assert batch.condition is not None
    torch.testing.assert_close(batch.condition.norm(dim=1), torch.ones(400))
    assert data.conditions is not None
    pure = (batch.condition[:, None] == data.conditions.flatten(0, 1)).all(dim=2).any(dim=1)
    assert 0.4 < float(pure.float().mean()) < 0.6
    unmixed = (batch.latents == data.latents[batch.subjects]).all(dim=1)
    assert unmixed[pure].all()
    # A subject may be mixed with itself, by two of its conditions.
    assert float(unmixed[~pure].float().mean()) < 0.1
    assert (batch.latents.abs().amax(0) <= data.latents.abs().amax(0)).all()


def test_without_conditions_there_are_none() -> None:
    batch = _draw(TrainingSet(latents=torch.randn(5, 4)))
    assert batch.condition is None
