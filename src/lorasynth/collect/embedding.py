"""The embeddings of a library's subjects, as a column beside their adapters."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.condition import ConditionEncoder, subject_conditions
from lorasynth.condition.contract import as_word
from lorasynth.core.cache import Cache
from lorasynth.core.errors import LibraryError
from lorasynth.core.progress import progress
from lorasynth.images import SubjectSource
from lorasynth.library import Library

#: Subjects whose embeddings are written at once; a run that was killed keeps those before.
_PART = 256


def column_of(encoder: ConditionEncoder) -> str:
    """The name of the column that holds the embeddings of an encoder with just these weights."""
    name = f"{encoder.name.replace('-', '_')}_{encoder.fingerprint}"
    return name if name.isidentifier() else f"encoder_{as_word(name).replace('-', '_')}"


def embed_library(
    library: Library,
    source: SubjectSource,
    encoder: ConditionEncoder,
    embed: Callable[[Sequence[str]], Iterable[Tensor]] | None = None,
    known: Mapping[str, Float[Tensor, "_ m"]] | None = None,
) -> Float[Tensor, "N P m"]:
    """Embed the training images of every subject, attach them as a column, and return them.

    A column that is there and covers all rows is returned as it is; a run that was killed goes on.

    Args:
        library: what to attach the column to.
        source: where the images come from; P is the number that every subject has at least.
        encoder: whose name names the column.
        embed: embeds subjects, one after another; None for this process.
        known: conditions of subjects that were looked at already, by their ids.

    Raises:
        LibraryError: the library is empty.
        ImageError: the source lacks a subject, or an image cannot be read, or none of a
            subject's shows a face to an encoder of faces.
    """
    ids, name = library.ids, column_of(encoder)
    if not ids:
        raise LibraryError(
            f"a library must hold adapters before its subjects can be embedded, but {library.path} "
            "is empty: collect some"
        )
    try:
        return library.column(name)
    except LibraryError:  # absent, damaged, or made before the last adapters came
        pass
    finished, parts = Cache(library.path / f".{name}"), []
    with progress("embed subjects", len(ids)) as advance:

        def embedded(some: Sequence[str]) -> dict[str, Tensor]:
            found = {one: known[one] for one in some if one in known} if known else {}
            advance(len(found))
            missing = [one for one in some if one not in found]
            here = (subject_conditions(encoder, source.load(one)) for one in missing)
            made = here if embed is None or not missing else embed(missing)
            for one, row in zip(missing, made, strict=True):
                found[one] = row.cpu()
                advance()
            return {"embeddings": as_many_of_each([found[one] for one in some])}

        for start in range(0, len(ids), _PART):
            some = ids[start : start + _PART]
            if len(ids) <= _PART:
                parts.append(embedded(some)["embeddings"])
                continue
            if finished.path("part", some, ".safetensors").is_file():
                advance(len(some))
            parts.append(finished.tensors("part", some, partial(embedded, some))["embeddings"])
    embeddings = as_many_of_each([row for part in parts for row in part])
    library.attach(name, embeddings)
    shutil.rmtree(finished.folder, ignore_errors=True)
    return embeddings


def as_many_of_each(rows: Sequence[Float[Tensor, "_ m"]]) -> Float[Tensor, "n P m"]:
    """The embeddings of n subjects, cut to the number of images that all have."""
    images = min(len(row) for row in rows)
    return torch.stack([row[:images] for row in rows])
