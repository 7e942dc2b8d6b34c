import pytest
import torch
from torch.utils.data import DataLoader

from lorasynth.core.errors import LibraryError
from lorasynth.library import LibraryDataset


def test_pairs_belong_together(fill, tmp_path) -> None:
    library = fill(tmp_path / "lib", 2, 5)
    library.attach("embedding", torch.arange(10.0).view(5, 2))
    dataset = LibraryDataset(library, "embedding")
    assert len(dataset) == 5
    vector, condition = dataset[3]
    assert torch.equal(vector, library.vectors([3])[0])
    assert condition.tolist() == [6, 7]


def test_a_loader_sees_every_row_of_a_view_once(fill, tmp_path) -> None:
    library = fill(tmp_path / "lib", 2, 7)
    library.attach("number", torch.arange(7.0)[:, None])
    dataset = LibraryDataset(library.where("hair", "black"), "number")
    loader = DataLoader(dataset, 3, shuffle=True, generator=torch.Generator().manual_seed(0))
    seen = {}
    for vectors, numbers in loader:
        seen |= dict(zip(numbers[:, 0].tolist(), vectors, strict=True))
    assert sorted(seen) == [0, 2, 4, 6]
    for number, vector in seen.items():
        assert torch.equal(vector, library.vectors([int(number)])[0])


def test_without_condition(fill, tmp_path) -> None:
    vector, condition = LibraryDataset(fill(tmp_path / "lib", 2))[1]
    assert len(condition) == 0
    assert len(vector) > 0


def test_an_unknown_column_is_refused(fill, tmp_path) -> None:
    with pytest.raises(LibraryError, match="must be attached"):
        LibraryDataset(fill(tmp_path / "lib", 1), "embedding")
