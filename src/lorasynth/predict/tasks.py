"""What a network from conditions learns by: it sees one image, others must be denoised."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor

from lorasynth.base import BaseModel, Texts
from lorasynth.collect.collector import checked_ids
from lorasynth.collect.failures import Failures
from lorasynth.condition import ConditionEncoder, framed_subject, subject_conditions
from lorasynth.core.errors import CollectionError, ImageError
from lorasynth.core.progress import console, progress
from lorasynth.core.randomness import stream_seed
from lorasynth.core.splits import held_out
from lorasynth.core.weights import write_weights
from lorasynth.engine import Optimisation
from lorasynth.engine.draws import Draw
from lorasynth.engine.encoded import EncodedSubjects, encode_subjects
from lorasynth.engine.processes import Processes
from lorasynth.engine.stored import Ragged, StoredRows
from lorasynth.images import Subject, SubjectSource, stamp_of

#: Subjects of which some are held out where no split is stated, and most of these.
_LEAST, _MOST = 8, 64
#: Folder beside a checkpoint for what is encoded, which all that is trained there share.
ENCODED = "encoded"
#: Subjects in one file.
_PART = 128
#: What the tensors of prompts are called there.
_TEXT = "text."


class Taught(NamedTuple):
    """Subjects that a network learns from; what is encoded of them stays in files.

    Attributes:
        ids: of those whose photos can be used.
        latents: of their images, those of one subject in the order of their sides.
        sides: height and width of latents that there are.
        numbers: images of each subject that have each of these.
        texts: prompt embeddings of their captions, by the names of the denoiser's arguments.
        empty: what the base model takes where nothing is said.
        embeddings: of the same photos, one or more of each.
    """

    ids: list[str]
    latents: Ragged
    sides: Int64[Tensor, "k 2"]
    numbers: Int64[Tensor, "n k"]
    texts: Mapping[str, StoredRows]
    empty: Texts
    embeddings: Ragged

    def of(self, names: Sequence[str]) -> "Taught":
        """Those of them that are named."""
        wanted = set(names)
        rows = torch.tensor([i for i, name in enumerate(self.ids) if name in wanted]).long()
        ids = [self.ids[row] for row in rows.tolist()]
        latents, embeddings = self.latents.select(rows), self.embeddings.select(rows)
        numbers = self.numbers[rows]
        return self._replace(ids=ids, latents=latents, numbers=numbers, embeddings=embeddings)

    @property
    def width(self) -> int:
        """Of an embedding."""
        return self.embeddings.rows.shape[1]

    def of_sides(self, subject: int, image: int) -> tuple[int, Int64[Tensor, " s"]]:
        """Which sides an image of a subject has, and who has images with these."""
        ends = self.numbers[subject % len(self.ids)].cumsum(0)
        which = int((ends > image % int(ends[-1])).nonzero()[0])
        return which, self.numbers[:, which].nonzero().flatten()


def draw_task(
    base: BaseModel,
    taught: Taught,
    options: Optimisation,
    images: int,
    step: int,
    processes: Processes | None = None,
) -> tuple[Float[Tensor, "b m"], EncodedSubjects, Draw]:
    """Draw the subjects of a step, one embedding of each, and what each must denoise.

    What is denoised in one step has equal sides: those of a random image of a random subject.

    Args:
        base: the base model.
        taught: all subjects.
        options: the seed, and as the batch the number of subjects.
        images: denoised of each.
        step: names the stream of random numbers.
        processes: this one of several, which gets its share of the batch; None: all of it.

    Returns:
        The conditions, the images drawn of each subject, and their draws.
    """
    device, batch = base.device, options.batch
    generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "predict", step))
    shape, share = (batch, images), (processes or Processes()).share

    def draw(*size: int) -> Tensor:
        return torch.randint(1 << 31, size, generator=generator, device=device)

    which, those = 0, torch.arange(len(taught.ids))
    if len(taught.sides) > 1:
        which, those = taught.of_sides(*draw(2).tolist())
    rows = those[share(draw(batch) % len(those)).cpu()]
    seen, shown = taught.embeddings.select(rows), taught.numbers[rows]
    first = taught.latents.first[rows] + shown[:, :which].sum(dim=1)
    condition = share(draw(batch)).cpu() % seen.counts
    noise = torch.randn(*shape, *taught.latents.rows.shape[1:], generator=generator, device=device)
    places = share(draw(*shape)).cpu() % shown[:, which, None]
    times = share(base.draw_times(shape, generator))
    index = (places + first[:, None]).flatten()
    texts = Texts({name: part[index] for name, part in taught.texts.items()})
    counts, sides = [images] * len(rows), taught.sides[which].expand(len(index), 2)
    drawn = EncodedSubjects.of(taught.latents.rows[index], texts, taught.empty, counts, sides)
    own = torch.arange(images, device=device).expand(len(rows), images)
    dropped = torch.zeros_like(own, dtype=torch.bool)
    found = Draw(images=own, times=times, noise=share(noise), dropped=dropped)
    return taught.embeddings.rows[seen.first + condition], drawn, found


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
    ids, processes = checked_ids(source), Processes.here(base.device)
    name = kept.name if processes.is_first else f"{kept.name}-{processes.index}"
    failures = Failures(kept.with_name(name))
    chunks = [ids[start : start + _PART] for start in range(0, len(ids), _PART)]
    paths = [kept / f"{_name_of(base, encoder, source, names)}.safetensors" for names in chunks]
    with progress("encode subjects", len(ids), shown=processes.is_first) as advance:

        def look(name: str) -> Subject | ImageError:
            advance()
            try:
                return framed_subject(source.load(name), base.frames, [encoder])
            except ImageError as error:
                if strict:
                    raise
                return error

        for number, (names, path) in enumerate(zip(chunks, paths, strict=True)):
            if path.is_file():
                advance(len(names))
            elif number % processes.count == processes.index:
                write_weights(path, _encoded(base, encoder, names, look, failures))
    processes.wait()
    return _taught(base, chunks, paths, failures)


def _taught(
    base: BaseModel, chunks: Sequence[Sequence[str]], paths: Sequence[Path], failures: Failures
) -> Taught:
    """What lies in files, of those subjects that can be used."""
    usable, counts, conditions, used = list[str](), list[int](), list[int](), list[Path]()
    sides = list[Tensor]()
    for names, path in zip(chunks, paths, strict=True):
        with safe_open(str(path), framework="pt") as file:
            chosen = file.get_tensor("usable").tolist()
            if any(chosen):
                used.append(path)
                counts += file.get_tensor("counts").tolist()
                sides.append(file.get_tensor("sides"))
                conditions += file.get_tensor("conditions").tolist()
        usable += [name for name, good in zip(names, chosen, strict=True) if good]
    if not used:
        raise CollectionError(
            f"one subject or more must have photos that can be used, but none of "
            f"{sum(map(len, chunks))} has: {failures.path} says why"
        )
    empty, on = base.empty_prompts(1), base.device
    there, which = torch.cat(sides).unique(dim=0, return_inverse=True)
    numbers = torch.zeros(len(usable), len(there), dtype=torch.int64)
    owners = torch.arange(len(usable)).repeat_interleave(torch.tensor(counts))
    numbers.index_put_((owners, which), torch.ones_like(owners), accumulate=True)
    return Taught(
        usable,
        Ragged.of(StoredRows(used, "latents", base.dtype, on), counts),
        there,
        numbers,
        {n: StoredRows(used, _TEXT + n, part.dtype, on) for n, part in empty.parts.items()},
        empty,
        Ragged.of(StoredRows(used, "embeddings", torch.float32, on), conditions),
    )


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
    square = torch.tensor(encoded.latents.shape[2:]).expand(len(encoded.latents), 2)
    return {
        "latents": encoded.latents,
        "counts": torch.tensor(encoded.counts),
        "sides": square if encoded.sides is None else encoded.sides,
        "embeddings": torch.cat(rows),
        "conditions": torch.tensor([len(one) for one in rows]),
        "usable": torch.tensor([name not in bad for name in names]),
        **texts,
    }


def _name_of(
    base: BaseModel, encoder: ConditionEncoder, source: SubjectSource, names: Sequence[str]
) -> str:
    """Identifies what is encoded of whom."""
    stated = [4, base.fingerprint, base.frames, str(base.dtype), encoder.fingerprint]
    return hashlib.sha256(repr([stated, stamp_of(source, names)]).encode()).hexdigest()[:24]
