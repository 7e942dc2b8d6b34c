"""A torch `Dataset` over a library, for training in any framework."""

from typing import TypeAlias

from torch import Tensor
from torch.utils.data import Dataset

from lorasynth.library.store import Library, LibraryView

#: A vector (D) and its condition; without a condition an empty tensor.
Sample: TypeAlias = tuple[Tensor, Tensor]


class LibraryDataset(Dataset[Sample]):
    """Pairs of a canonical vector and its condition.

    Vectors are read from disk as they are asked for, so a library may be larger than memory.

    Args:
        source: A library, or some of its rows.
        condition: Name of an attached column; None for empty conditions.

    Raises:
        LibraryError: the column does not exist or is damaged.
    """

    def __init__(self, source: Library | LibraryView, condition: str | None = None) -> None:
        view = source.select(range(len(source))) if isinstance(source, Library) else source
        self._view = view
        self._conditions = view.column(condition) if condition else None

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._view)

    def __getitem__(self, index: int) -> Sample:
        """One pair."""
        [pair] = self.__getitems__([index])
        return pair

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Several pairs with one read; torch's loaders ask for batches this way."""
        vectors = self._view.library.vectors(self._view.rows[indices])
        if self._conditions is None:
            return [(vector, vector.new_empty(0)) for vector in vectors]
        return list(zip(vectors, self._conditions[indices], strict=True))
