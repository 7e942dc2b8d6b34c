import pytest
import torch

from lorasynth.core.errors import LibraryError
from lorasynth.library.groups import groups_by_likeness


def test_rows_that_are_alike_are_one_group(monkeypatch) -> None:
    monkeypatch.setattr("lorasynth.library.groups._ROWS", 3)
    stream = torch.Generator().manual_seed(0)
    people = torch.randn(5, 64, generator=stream)
    who = [0, 1, 2, 0, 3, 1, 1, 4, 0]
    embeddings = people[who] + 0.2 * torch.randn(9, 64, generator=stream)
    assert groups_by_likeness(embeddings) == [0, 1, 2, 0, 4, 1, 1, 7, 0]
    scaled = embeddings * torch.arange(1.0, 10)[:, None]
    assert groups_by_likeness(scaled) == groups_by_likeness(embeddings), "only directions count"


def test_a_chain_of_likenesses_joins_its_ends() -> None:
    angles = torch.tensor([0.0, 0.9, 1.8, 4.5])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    assert groups_by_likeness(embeddings, like=0.6) == [0, 0, 0, 3]
    assert groups_by_likeness(embeddings, like=0.7) == [0, 1, 2, 3]


def test_embeddings_that_are_all_alike_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("lorasynth.library.groups._ROWS", 3)
    embeddings = torch.eye(9).repeat_interleave(2, 0)
    assert len(set(groups_by_likeness(embeddings))) == 9
    with pytest.raises(LibraryError, match=r"from row 3 on most pairs have a cosine of 0\.5"):
        groups_by_likeness(torch.cat([torch.eye(9)[:3], torch.ones(15, 9)]))
