"""What a network from conditions learns by: it sees one picture, others must be denoised."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.base import BaseModel, Texts
from lorasynth.collect.collector import checked_ids
from lorasynth.collect.draws import Draw
from lorasynth.collect.embedding import as_many_of_each
from lorasynth.collect.encoded import EncodedSubjects, encode_subjects
from lorasynth.condition import ConditionEncoder, embed_subject
from lorasynth.pictures import Subject, SubjectSource
from lorasynth.progress import progress
from lorasynth.randomness import stream_seed
from lorasynth.training import Optimisation
from lorasynth.weights import kept_tensors

#: Folder beside a checkpoint for what is encoded, which all that is trained there share.
ENCODED = "encoded"
#: Subjects in one file.
_PART = 128
#: What the tensors of prompts are called there.
_TEXT = "text."


def draw_task(
    base: BaseModel,
    encoded: EncodedSubjects,
    embeddings: Float[Tensor, "n k m"],
    options: Optimisation,
    pictures: int,
    step: int,
) -> tuple[Float[Tensor, "b m"], EncodedSubjects, Draw]:
    """Draw the subjects of a step, one embedding of each, and what each must denoise.

    Args:
        base: the base model.
        encoded: all subjects.
        embeddings: of the same pictures.
        options: the seed, and as the batch the number b of subjects.
        pictures: denoised of each.
        step: names the stream of random numbers.

    Returns:
        The conditions, the subjects drawn, and their draws.
    """
    device, batch = base.device, options.batch
    generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "predict", step))
    shape = (batch, pictures)

    def below(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator, device=device)

    rows = below(len(embeddings), batch)
    seen = embeddings[rows, below(embeddings.shape[1], batch)]
    noise = torch.randn(*shape, *encoded.latents.shape[1:], generator=generator, device=device)
    draw = Draw(
        pictures=below(embeddings.shape[1], *shape),
        times=base.draw_times(shape, generator),
        noise=noise,
        dropped=torch.zeros(shape, dtype=torch.bool, device=device),
    )
    return seen, replace(encoded, first=encoded.first[rows]), draw


@torch.no_grad()
def encode_with_embeddings(
    base: BaseModel, encoder: ConditionEncoder, source: SubjectSource, kept: Path
) -> tuple[EncodedSubjects, Float[Tensor, "n k m"]]:
    """All subjects as the base model sees them, and the embeddings of the same pictures.

    Args:
        base: the base model.
        encoder: makes the embeddings.
        source: the subjects.
        kept: folder for what is encoded, some subjects in a file, so that a run that was killed
            does not do it again.

    Raises:
        CollectionError: there is no subject, or two have one name.
    """
    ids, parts = checked_ids(source), []
    with progress("encode subjects", len(ids)) as advance:
        for start in range(0, len(ids), _PART):
            names = ids[start : start + _PART]
            path = kept / f"{_name_of(base, encoder, source, names)}.safetensors"
            parts.append(kept_tensors(path, partial(_encoded, base, encoder, source, names)))
            advance(len(names))

    def whole(name: str, dtype: torch.dtype) -> Tensor:  # files widen fp16
        return torch.cat([tensors[name] for tensors in parts]).to(base.device, dtype)

    empty = base.empty_prompts(1)
    texts = {name: whole(_TEXT + name, part.dtype) for name, part in empty.parts.items()}
    counts = [int(count) for tensors in parts for count in tensors["counts"]]
    encoded = EncodedSubjects.of(whole("latents", base.dtype), Texts(texts), empty, counts)
    embeddings = as_many_of_each([row for tensors in parts for row in tensors["embeddings"]])
    return encoded, embeddings.to(base.device)


def _encoded(
    base: BaseModel, encoder: ConditionEncoder, source: SubjectSource, names: Sequence[str]
) -> dict[str, Tensor]:
    """Some subjects as named tensors."""
    rows: list[Tensor] = []

    def subjects() -> Iterator[Subject]:
        for name in names:
            subject = source.load(name)
            rows.append(embed_subject(encoder, subject))
            yield subject

    encoded = encode_subjects(base, subjects())
    texts = {_TEXT + name: part for name, part in encoded.texts.parts.items()}
    counts = torch.tensor(encoded.counts)
    embeddings = as_many_of_each(rows)
    return {"latents": encoded.latents, "counts": counts, "embeddings": embeddings, **texts}


def _name_of(
    base: BaseModel, encoder: ConditionEncoder, source: SubjectSource, names: Sequence[str]
) -> str:
    """Identifies what is encoded of whom, as far as a source says what it is."""
    stated = [base.fingerprint, base.picture_size, str(base.dtype), encoder.fingerprint]
    return hashlib.sha256(repr([stated, source, names]).encode()).hexdigest()[:24]
