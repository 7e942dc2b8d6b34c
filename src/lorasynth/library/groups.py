"""Which rows of a collection are about one person, where nobody says so."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.core.errors import LibraryError

#: Cosine of ArcFace embeddings above which two images are taken to show one person.  Images of
#: two people hardly ever reach it (their cosines are about 0.05 ± 0.1).
LIKE = 0.5

#: Rows that are compared with all others at a time.
_ROWS = 1024


def groups_by_likeness(embeddings: Float[Tensor, "n e"], like: float = LIKE) -> list[int]:
    """A group for each row: the first row that it is joined with by a chain of likenesses.

    Single linkage: whoever is like one member is a member.  That may join two people but never
    parts two rows that are alike, which is what a split needs.

    Args:
        embeddings: one for each row, of any length.
        like: least cosine of two rows that are joined.

    Raises:
        LibraryError: most pairs of thousands of rows are alike.
    """
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    return joined(range(len(unit)), _alike(unit, like))


def joined(leaders: Iterable[int], pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The groups after some rows were joined: for each row the first of its group.

    Args:
        leaders: for each row the first of its group before; itself where it is alone.
        pairs: of rows that are of one group.
    """
    leader = list(leaders)

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    for pair in pairs:
        one, other = sorted(map(find, pair))
        leader[other] = one
    return [find(row) for row in range(len(leader))]


def _alike(unit: Float[Tensor, "n e"], like: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows whose cosine is at least `like`."""
    for start in range(0, len(unit), _ROWS):
        alike = unit[start : start + _ROWS] @ unit[start:].T >= like
        if alike.count_nonzero() > _ROWS * len(unit) // 2:
            raise LibraryError(
                f"embeddings must tell people apart, but from row {start} on most pairs have a "
                f"cosine of {like} or more: use those of an encoder of faces"
            )
        for row, others in enumerate(alike, start):
            for other in (others.nonzero().flatten() + start).tolist():
                yield row, other
