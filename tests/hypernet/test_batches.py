import torch

from lorasynth.hypernet import TrainingSet
from lorasynth.hypernet.batches import Batch, draw_batch


def _set(n: int = 30, images: int = 3) -> TrainingSet:
    generator = torch.Generator().manual_seed(0)
    conditions = torch.randn(n, images, 5, generator=generator)
    conditions = conditions / conditions.norm(dim=2, keepdim=True)
    return TrainingSet(latents=torch.randn(n, 4, generator=generator), conditions=conditions)


def _draw(data: TrainingSet) -> Batch:
    return draw_batch(data, 400, torch.Generator().manual_seed(1), dropout=0.25)


def test_rows_are_subjects_with_one_of_their_own_conditions() -> None:
    data = _set()
    batch = _draw(data)
    same = (batch.latents[:, None] == data.latents).all(dim=2)
    assert (same.sum(1) == 1).all()
    own = data.conditions[same.int().argmax(1)]
    same = (own == batch.condition[:, None]).all(dim=2)
    assert (same.sum(1) == 1).all()
    assert (same.sum(0) > 80).all()


def test_times_are_spread_evenly_and_conditions_dropped_at_the_asked_share() -> None:
    batch = _draw(_set())
    assert (batch.t.diff() > 0).all()
    assert ((batch.t * 400).floor() == torch.arange(400)).all()
    assert 0.15 < float((~batch.keep).float().mean()) < 0.35
