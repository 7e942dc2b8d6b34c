"""The embeddings of a library's subjects, as a column beside their adapters."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.condition import ConditionEncoder, embed_subject
from lorasynth.errors import LibraryError
from lorasynth.library import Library
from lorasynth.pictures import SubjectSource
from lorasynth.progress import progress


def column_of(encoder: ConditionEncoder) -> str:
    """The name of the column that holds the embeddings of an encoder with just these weights."""
    return f"{encoder.name.replace('-', '_')}_{encoder.fingerprint}"


def embed_library(
    library: Library,
    source: SubjectSource,
    encoder: ConditionEncoder,
    embed: Callable[[Sequence[str]], Iterable[Tensor]] | None = None,
) -> Float[Tensor, "N P m"]:
    """Embed the training pictures of every subject, attach them as a column, and return them.

    A column that is there and covers all rows is returned as it is.

    Args:
        library: what to attach the column to.
        source: where the pictures come from; P is the number that every subject has at least.
        encoder: whose name names the column.
        embed: embeds subjects, one after another; None for this process.

    Raises:
        LibraryError: the library is empty.
        PictureError: the source lacks a subject, or a picture cannot be read, or shows no face to
            an encoder of faces.
    """
    if not len(library):
        raise LibraryError(
            f"a library must hold adapters before its subjects can be embedded, but {library.path} "
            "is empty: collect some"
        )
    name = column_of(encoder)
    try:
        return library.column(name)
    except LibraryError:  # absent, damaged, or made before the last adapters came
        rows = []
    with progress("embed subjects", len(library)) as advance:
        here = (embed_subject(encoder, source.load(name)) for name in library.ids)
        for row in here if embed is None else embed(library.ids):
            rows.append(row)
            advance()
    pictures = min(len(row) for row in rows)
    embeddings = torch.stack([row[:pictures] for row in rows])
    library.attach(name, embeddings)
    return embeddings
