"""What a network from conditions learns by: it sees one image, others must be denoised."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.base import BaseModel, Texts
from lorasynth.collect.collector import checked_ids
from lorasynth.collect.embedding import as_many_of_each
from lorasynth.collect.failures import Failures
from lorasynth.condition import ConditionEncoder, framed_subject, subject_conditions
from lorasynth.core.errors import CollectionError, ImageError
from lorasynth.core.progress import console, progress
from lorasynth.core.randomness import stream_seed
from lorasynth.core.splits import held_out
from lorasynth.core.weights import kept_tensors
from lorasynth.engine import Optimisation
from lorasynth.engine.draws import Draw
from lorasynth.engine.encoded import EncodedSubjects, encode_subjects
from lorasynth.images import Subject, SubjectSource

#: Subjects of which some are held out where no split is stated, and most of these.
_LEAST, _MOST = 8, 64
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
    images: int,
    step: int,
) -> tuple[Float[Tensor, "b m"], EncodedSubjects, Draw]:
    """Draw the subjects of a step, one embedding of each, and what each must denoise.

    Args:
        base: the base model.
        encoded: all subjects.
        embeddings: of the same images.
        options: the seed, and as the batch the number b of subjects.
        images: denoised of each.
        step: names the stream of random numbers.

    Returns:
        The conditions, the subjects drawn, and their draws.
    """
    device, batch = base.device, options.batch
    generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "predict", step))
    shape = (batch, images)

    def below(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator, device=device)

    rows = below(len(embeddings), batch)
    seen = embeddings[rows, below(embeddings.shape[1], batch)]
    noise = torch.randn(*shape, *encoded.latents.shape[1:], generator=generator, device=device)
    draw = Draw(
        images=below(embeddings.shape[1], *shape),
        times=base.draw_times(shape, generator),
        noise=noise,
        dropped=torch.zeros(shape, dtype=torch.bool, device=device),
    )
    return seen, replace(encoded, first=encoded.first[rows]), draw


class Taught(NamedTuple):
    """Subjects that a network learns from.

    Attributes:
        ids: of those whose photos can be used.
        encoded: what the base model sees.
        embeddings: of the same photos.
    """

    ids: list[str]
    encoded: EncodedSubjects
    embeddings: Float[Tensor, "n k m"]

    def of(self, names: Sequence[str]) -> "Taught":
        """Those of them that are named."""
        wanted = set(names)
        rows = [i for i, name in enumerate(self.ids) if name in wanted]
        encoded = replace(self.encoded, first=self.encoded.first[rows])
        return Taught([self.ids[i] for i in rows], encoded, self.embeddings[rows])


def divided(source: SubjectSource, share: float) -> tuple[list[str], list[str]]:
    """The ids of subjects to learn from, and of those held out, as `PredictorTraining` says."""
    ids, splits = list(source.ids), getattr(source, "splits", {})
    if splits:
        aside = [name for name in ids if splits.get(name) == "validation"]
        known = [name for name in ids if splits.get(name, "train") == "train"]
        return known, aside[:_MOST] if share else []
    aside = held_out(ids, share, _MOST) if share and len(ids) >= _LEAST else []
    return [name for name in ids if name not in set(aside)], aside


@torch.no_grad()
def encode_with_embeddings(
    base: BaseModel,
    encoder: ConditionEncoder,
    source: SubjectSource,
    kept: Path,
    *,
    strict: bool = False,
) -> Taught:
    """All subjects as the base model sees them, and the embeddings of the same photos.

    A subject that cannot be used is left out; why is listed beside `kept` (`Failures`).

    Args:
        base: the base model.
        encoder: makes the embeddings.
        source: the subjects.
        kept: folder for what is encoded, some subjects in a file, so that a run that was killed
            does not do it again.
        strict: stop at the first subject that cannot be used.

    Raises:
        CollectionError: there is no subject that can be used, or two have one name.
        ImageError: `strict`, and a subject cannot be used.
    """
    ids, parts, usable = checked_ids(source), [], list[str]()
    failures = Failures(kept)
    with progress("encode subjects", len(ids)) as advance:
        for start in range(0, len(ids), _PART):
            names = ids[start : start + _PART]
            path = kept / f"{_name_of(base, encoder, source, names)}.safetensors"
            if path.is_file():
                advance(len(names))

            def look(name: str) -> Subject | ImageError:
                advance()
                try:
                    return framed_subject(source.load(name), base.image_size, [encoder])
                except ImageError as error:
                    if strict:
                        raise
                    return error

            part = kept_tensors(path, partial(_encoded, base, encoder, names, look, failures))
            chosen = part["usable"].tolist()
            usable += [name for name, good in zip(names, chosen, strict=True) if good]
            if any(chosen):
                parts.append(part)
    if not parts:
        raise CollectionError(
            f"one subject or more must have photos that can be used, but none of {len(ids)} has: "
            f"{failures.path} says why"
        )

    def whole(name: str, dtype: torch.dtype) -> Tensor:  # files widen fp16
        return torch.cat([tensors[name] for tensors in parts]).to(base.device, dtype)

    empty = base.empty_prompts(1)
    texts = {name: whole(_TEXT + name, part.dtype) for name, part in empty.parts.items()}
    counts = [int(count) for tensors in parts for count in tensors["counts"]]
    encoded = EncodedSubjects.of(whole("latents", base.dtype), Texts(texts), empty, counts)
    embeddings = as_many_of_each([row for tensors in parts for row in tensors["embeddings"]])
    return Taught(usable, encoded, embeddings.to(base.device))


def _encoded(
    base: BaseModel,
    encoder: ConditionEncoder,
    names: Sequence[str],
    look: Callable[[str], Subject | ImageError],
    failures: Failures,
) -> dict[str, Tensor]:
    """Some subjects as named tensors; those that cannot be used are said and listed."""
    rows: list[Tensor] = []
    bad: dict[str, dict[str, str]] = {}

    def subjects() -> Iterator[Subject]:
        for name in names:
            subject = look(name)
            if isinstance(subject, Subject):
                rows.append(subject_conditions(encoder, subject))
                yield subject
            else:
                bad[name] = {"reason": str(subject)}
                console.print(f"left out {name}: {subject}", soft_wrap=True, markup=False)

    try:
        encoded = encode_subjects(base, subjects())
    except CollectionError:
        if rows:
            raise
        failures.update(bad, [])
        return {"usable": torch.zeros(len(names), dtype=torch.bool)}
    failures.update(bad, [])
    texts = {_TEXT + name: part for name, part in encoded.texts.parts.items()}
    return {
        "latents": encoded.latents,
        "counts": torch.tensor(encoded.counts),
        "embeddings": as_many_of_each(rows),
        "usable": torch.tensor([name not in bad for name in names]),
        **texts,
    }


def _name_of(
    base: BaseModel, encoder: ConditionEncoder, source: SubjectSource, names: Sequence[str]
) -> str:
    """Identifies what is encoded of whom, as far as a source says what it is."""
    version = getattr(source, "version", None)  # of files; others are values themselves
    said = version(names) if version else source
    stated = [2, base.fingerprint, base.image_size, str(base.dtype), encoder.fingerprint]
    return hashlib.sha256(repr([stated, said, names]).encode()).hexdigest()[:24]
