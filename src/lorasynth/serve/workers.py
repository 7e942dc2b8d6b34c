"""What a worker does with a batch of what many callers ask for.

What cannot be done is a `RefusedError` in its place among the results, and leaves the others of its
batch as they are.  Nothing here logs what is asked for or writes it to a disk.
"""

import gc
import io
import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasynth.adapter import Adapter, AdapterMetadata, Layout, map_factors, stack
from lorasynth.adapter.addition import alike
from lorasynth.adapter.files import FORMATS, many_files, universal
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.base.compatibility import require_fits, require_made_for
from lorasynth.condition import SHOWN, ConditionEncoder
from lorasynth.condition.similarity import likeness
from lorasynth.core.device import is_out_of_memory, pick_device
from lorasynth.core.errors import BaseModelError, ConfigError, ImageError, LorasynthError
from lorasynth.core.places import BUNDLE, public_name
from lorasynth.edit import LatentLibrary, LatentSpace
from lorasynth.edit.attributes import attribute_names
from lorasynth.images import Subject, as_photo
from lorasynth.images.png import synthetic_png
from lorasynth.optimise import refined
from lorasynth.optimise.config import REFINE
from lorasynth.serve.config import Setup
from lorasynth.serve.jobs import open_jobs
from lorasynth.serve.requests import AskedImages, AskedLora, AskedRefine, RefusedError
from lorasynth.synthesizer import SamplingOptions, Synthesizer

log = logging.getLogger(__name__)

_MEMORY = "/dev/shm"


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA file that was made, and what the headers of an answer say of it."""

    data: bytes
    facts: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class MadeImages:
    """PNG files, and of each its similarity to the photos, where there are some."""

    files: list[bytes]
    similarity: list[float]


class Host:
    """The models of a worker: a process, or an actor."""

    def __init__(self, kind: str, setup: Setup) -> None:
        """Load what a kind of work needs.

        Raises:
            LorasynthError: it cannot be loaded, two synthesizers have one name, or they are for
                another base model; a library is not of any synthesizer's codec.
        """
        device = pick_device(setup.device)
        self.synthesizers: dict[str, Synthesizer] = {}
        self.base: BaseModel | None = None
        for folder in setup.synthesizers:
            if (name := public_name(folder)) in self.synthesizers:
                raise ConfigError(f"two synthesizers are called {name!r}: rename a folder")
            self.synthesizers[name] = Synthesizer.from_pretrained(folder, device=device)
        self.spaces = _spaces(self.synthesizers, setup.library)
        if kind != "loras" and setup.base is not None:
            self.base = BaseModel.load(setup.base, device)
            for name, synthesizer in self.synthesizers.items():
                require_made_for(self.base, synthesizer.base_fingerprint, f"synthesizer {name}")
        gc.collect()
        gc.freeze()  # else every batch looks through all that is loaded: an eighth of its time

    def described(self) -> dict[str, dict[str, Any]]:
        """What callers may know of each synthesizer."""
        return {
            name: {
                "name": name,
                "domain": one.knows,
                "encoder": one.encoder.name,
                "embedding_width": one.encoder.width,
                "attributes": {k: list(map(str, v)) for k, v in one.encoder.attributes.items()},
                "finds_faces": one.encoder.finds_faces,
                "edits": attribute_names(self.spaces[name].library.columns)
                if name in self.spaces
                else [],
                "trigger_phrase": one.trigger_phrase,
                "base": public_name(one.base_name),
                "base_fingerprint": one.base_fingerprint,
            }
            for name, one in self.synthesizers.items()
        }

    def work(self, kind: str, asked: Sequence[Any]) -> list[Any]:
        """The result of each of a batch, a `RefusedError` where there is none."""
        results: list[Any] = getattr(self, f"_{kind}")(asked)
        return results

    def _loras(self, asked: Sequence[AskedLora]) -> list[Any]:
        def changed(row: int) -> bool:
            one = asked[row]
            return bool(one.lora is not None or one.edit or one.other)

        def written(rows: Sequence[int]) -> list[Any]:
            some = [asked[row] for row in rows]
            return self._changed_files(some) if changed(rows[0]) else self._new_files(some)

        return _grouped(asked, changed, written)

    def _changed_files(self, asked: Sequence[AskedLora]) -> list[Any]:
        adapters = self._adapters(asked)
        return _grouped(
            adapters, lambda row: row, lambda rows: [_file(adapters[rows[0]], asked[rows[0]])]
        )

    def _new_files(self, asked: Sequence[AskedLora]) -> list[Any]:
        """Files of what is only drawn: adapters stay vectors, of which many are quickly written."""
        conditions = self._conditions(asked)

        def written(rows: Sequence[int]) -> list[LoraFile]:
            one = asked[rows[0]]
            found = self._drawing(one)
            some = torch.stack([conditions[row] for row in rows])
            vectors = found.vectors(some, **_options(one))
            return _files(vectors, found.layout, found.metadata(one.seed), one)

        return _grouped(conditions, lambda row: (asked[row].format, asked[row].draw), written)

    def _images(self, asked: Sequence[AskedImages]) -> list[Any]:
        adapters = self._adapters(asked)

        def key(row: int) -> Hashable:
            return asked[row].image_steps, asked[row].image_guidance, *sorted(adapters[row].factors)

        def made(rows: Sequence[int]) -> list[MadeImages]:
            return self._sampled([asked[row] for row in rows], [adapters[row] for row in rows])

        return _grouped(adapters, key, made)

    def _refine(self, asked: Sequence[tuple[AskedRefine, str, str]]) -> list[Any]:
        def one(rows: Sequence[int]) -> list[LoraFile]:
            (task, job, file), adapter = asked[rows[0]], adapters[rows[0]]
            encoder = self.synthesizers[task.model].encoder
            jobs = open_jobs(file)

            def on_step(step: int, _: Tensor) -> None:
                if not jobs.goes_on(job, step):
                    raise RefusedError(409, "the job was cancelled")

            photos = [as_photo(photo)[0] for photo in _named(task.photos)]
            captions = [task.caption] * len(photos)
            subject = Subject(id="subject", photos=photos, captions=captions)
            recipe = replace(REFINE, steps=task.refine_steps, seed=task.seed)
            assert self.base is not None
            made = refined(self.base, adapter, subject, recipe, encoder, on_step)
            return [_file(made, task)]

        adapters = self._adapters([task for task, _, _ in asked])
        return _grouped(adapters, lambda row: row, one)

    def _drawing(self, asked: AskedLora) -> Synthesizer:
        """The synthesizer that was asked for, at the strength that was."""
        found = self.synthesizers[asked.model]
        return replace(found, strength=found.strength * asked.strength)

    def _drawn(self, asked: Sequence[AskedLora]) -> list[Any]:
        """An adapter for each subject; one batch of those that are drawn alike."""
        conditions = self._conditions(asked)

        def made(rows: Sequence[int]) -> list[Adapter]:
            one, some = asked[rows[0]], torch.stack([conditions[row] for row in rows])
            return self._drawing(one).from_conditions(some, **_options(one))

        return _grouped(conditions, lambda row: asked[row].draw, made)

    def _conditions(self, asked: Sequence[AskedLora]) -> list[Any]:
        """The condition of each subject: its embedding, or what its encoder sees."""

        def seen(rows: Sequence[int]) -> list[Any]:
            some = [asked[row] for row in rows]
            found = self.synthesizers[some[0].model]
            if some[0].embedding is not None:
                return [torch.tensor(one.embedding) for one in some]
            if len(some) > 1:
                return _seen_at_once(found.encoder, some)
            photos = [*map(as_photo, _named(some[0].photos))]
            return [found.embed([p for p, _ in photos], None, some[0].face, some[0].attributes)]

        def key(row: int) -> Hashable:
            one = asked[row]
            looks = one.photos and self.synthesizers[one.model].encoder.looks
            alone = one.face or one.attributes or not looks
            return one.model, one.embedding is None, one.embedding is None and alone and row

        return _grouped(asked, key, seen)

    def _adapters(self, asked: Sequence[AskedLora]) -> list[Any]:
        """The adapter of each subject: of the file that was sent, or drawn; changed as is asked."""

        def first(rows: Sequence[int]) -> list[Any]:
            if asked[rows[0]].lora is None:
                return self._drawn([asked[row] for row in rows])
            return [self._read(asked[row]) for row in rows]

        begun = _grouped(asked, lambda row: asked[row].lora is None, first)

        def changed(rows: Sequence[int]) -> list[Adapter]:
            return [self._changed(asked[rows[0]], begun[rows[0]])]

        return _grouped(begun, lambda row: row, changed)

    def _changed(self, asked: AskedLora, adapter: Adapter) -> Adapter:
        """An adapter on its way to another subject's, and with other attributes, where asked."""
        if not (asked.other or asked.edit):
            return adapter
        if (space := self.spaces.get(asked.model)) is None:
            raise RefusedError(501, "this service cannot edit: it has no library of latents")
        if asked.other:
            alone: dict[str, Any] = {
                "photos": asked.other,
                "embedding": None,
                "attributes": {},
                "face": None,
            }
            [end] = self._drawn([asked.model_copy(update=alone)])
            if isinstance(end, RefusedError):
                raise RefusedError(end.status, f"of the other subject: {end.detail}")
            [adapter] = space.between(adapter, end, [asked.share])
        if asked.edit:
            moved = space.moved(adapter, space.direction(asked.edit))
            edited = " ".join(f"{name}={by:+g}" for name, by in asked.edit.items())
            extra = adapter.metadata.extra | {"edited": edited}
            adapter = replace(moved, metadata=replace(adapter.metadata, extra=extra))
        return adapter

    def _read(self, asked: AskedLora) -> Adapter:
        """The LoRA file that was sent.

        Raises:
            LorasynthError: it is none, or is for another base model.
        """
        with _in_memory(asked.lora or b"") as path:
            adapter = Adapter.load(path)
        stated, found = adapter.metadata.base_fingerprint, self.synthesizers[asked.model]
        if self.base is not None:
            require_made_for(self.base, stated, "the LoRA file")
            require_fits(self.base, adapter.layout)
        elif stated not in ("", found.base_fingerprint):
            raise BaseModelError(
                f"the LoRA file must be for the base model of {asked.model}, "
                f"{found.base_fingerprint}, but is for {stated}"
            )
        return adapter

    def _sampled(
        self, asked: Sequence[AskedImages], adapters: Sequence[Adapter]
    ) -> list[MadeImages]:
        """Images of subjects whose adapters change the same modules, in one batch."""
        counts = [len(one.prompts) for one in asked]
        padded = zip(alike([one.factors for one in adapters]), counts, strict=True)
        each = [factors for factors, n in padded for _ in range(n)]
        assert self.base is not None
        images = self.base.sample(
            [prompt for one in asked for prompt in one.prompts],
            [one.image_seed + number for one in asked for number in range(len(one.prompts))],
            map_factors(lambda part: part.float(), stack(each)),
            SamplingConfig(steps=asked[0].image_steps, guidance=asked[0].image_guidance),
        )
        return [
            MadeImages(files=[*map(synthetic_png, some)], similarity=self._similarity(one, some))
            for one, some in zip(asked, images.split(counts), strict=True)
        ]

    def _similarity(self, asked: AskedImages, images: Tensor) -> list[float]:
        """Mean cosine of each image's embedding and the photos'; NaN where it shows nobody.

        Raises:
            ImageError: the photos do not show what the encoder knows.
        """
        encoder = self.synthesizers[asked.model].encoder
        if not asked.photos or not encoder.looks:
            return []
        photos = encoder.see(
            [as_photo(photo)[0] for photo in _named(asked.photos)], face=asked.face
        )
        if (least := float(photos.presence.min())) < SHOWN:
            raise ImageError(encoder.missing("the photos", least))
        made = encoder.see(images)
        given = photos.embeddings.expand(len(images), -1, -1)
        cosines = likeness(made.embeddings[:, None], given)
        found: list[float] = torch.where(made.presence < SHOWN, torch.nan, cosines).tolist()
        return found


def _spaces(synthesizers: Mapping[str, Synthesizer], library: str | None) -> dict[str, LatentSpace]:
    """The latents in which adapters of synthesizers are edited.

    Raises:
        LorasynthError: the library that was asked for is damaged, or of no synthesizer.
    """
    spaces, refused = dict[str, LatentSpace](), list[LorasynthError]()
    for name, one in synthesizers.items():
        try:
            known = LatentLibrary.open(Path(library or f"{BUNDLE}/library"), one.codec)
        except LorasynthError as error:
            refused.append(error)
        else:
            spaces[name] = LatentSpace(one.layout, one.codec, known)
    if library is not None and not spaces:
        raise refused[0]
    return spaces


def memory_folder() -> str | None:
    """Where files are in memory, on systems that have such a place."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else None


@contextmanager
def _in_memory(data: bytes) -> Iterator[Path]:
    """A LoRA file as a file, for readers of files: in memory, where the system has such a place.

    Raises:
        LorasynthError: what its reader says of it, without the path.
    """
    with tempfile.NamedTemporaryFile(suffix=".safetensors", dir=memory_folder()) as file:
        file.write(data)
        file.flush()
        try:
            yield Path(file.name)
        except LorasynthError as error:
            raise type(error)(str(error).replace(file.name, "the LoRA file")) from None


def _grouped(
    items: Sequence[Any], key: Callable[[int], Hashable], work: Callable[[Sequence[int]], list[Any]]
) -> list[Any]:
    """Do what has one key at once; what was refused before stays so.

    A group that fails is done again one by one, so that a failure is of what causes it.
    """
    results, groups = list(items), dict[Hashable, list[int]]()
    for row, item in enumerate(items):
        if not isinstance(item, RefusedError):
            groups.setdefault(key(row), []).append(row)
    waiting = list(groups.values())
    while waiting:
        rows = waiting.pop()
        try:
            made = work(rows)
        except Exception as error:
            if len(rows) > 1:
                waiting += [[row] for row in rows]
                continue
            made = [_refusal(error)]
        for row, result in zip(rows, made, strict=True):
            results[row] = result
    return results


def _refusal(error: Exception) -> RefusedError:
    """What a caller is told of an error; of one that is ours nothing, and the log not its text."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, LorasynthError):
        return RefusedError(422, str(error).replace("--", ""))
    if is_out_of_memory(error):
        return RefusedError(503, "the model has no memory left for this: ask for less at once", 5)
    note(error)
    return RefusedError(500, "the service failed at this")


def note(error: BaseException) -> None:
    """Log where an error of ours came from, and not its text, which may quote what was sent."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    place = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)
    log.error("%s in %s", type(error).__name__, place)


def _named(photos: Sequence[bytes]) -> list[io.BytesIO]:
    """Photos with names for messages; callers' own names are never kept."""
    opened = [io.BytesIO(photo) for photo in photos]
    for number, file in enumerate(opened, 1):
        file.name = f"photo {number}" if len(photos) > 1 else "the photo"
    return opened


def _seen_at_once(encoder: ConditionEncoder, asked: Sequence[AskedLora]) -> list[Any]:
    """Conditions of subjects of whom there are only photos, which are looked at in one batch."""

    def decoded(rows: Sequence[int]) -> list[list[Tensor]]:
        return [[as_photo(photo)[0] for photo in _named(asked[row].photos)] for row in rows]

    def condition(photos: list[Tensor], start: int) -> Tensor:
        rows = slice(start, start + len(photos))
        if (least := float(seen.presence[rows].min())) < SHOWN:
            raise ImageError(encoder.missing("the photo", least))
        return encoder.condition(seen.embeddings[rows], {})

    photos = _grouped(asked, lambda row: row, decoded)
    starts, whole = [], list[Tensor]()
    for several in photos:
        starts.append(len(whole))
        whole += [] if isinstance(several, RefusedError) else several
    if not whole:
        return photos
    seen = encoder.see(whole)
    return _grouped(
        photos, lambda row: row, lambda rows: [condition(photos[r], starts[r]) for r in rows]
    )


def _options(asked: AskedLora) -> SamplingOptions:
    return {
        "seed": asked.seed,
        "steps": asked.steps,
        "guidance": asked.guidance,
        "temperature": asked.temperature,
    }


def _file(adapter: Adapter, asked: AskedLora) -> LoraFile:
    vectors = adapter.to_vector()[None]
    [file] = _files(vectors, adapter.layout, adapter.metadata, asked)
    return file


def _files(
    vectors: Tensor, layout: Layout, metadata: AdapterMetadata, asked: AskedLora
) -> list[LoraFile]:
    """The files of adapters that were drawn alike, as vectors of a layout."""
    form, extra = FORMATS.get(asked.format), metadata.extra
    if form.name == "auto":
        form = universal(Adapter.from_vector(vectors[0], layout, metadata))
    own = ("edited", "interpolated", "optimised", "similarity_before", "similarity_after")
    facts = {
        "model": asked.model,
        "format": form.name,
        "trigger-phrase": metadata.trigger_phrase,
        "base-fingerprint": metadata.base_fingerprint,
        **{name: extra.get(name, "") for name in ("seed", "strength")},
        **{name.replace("_", "-"): extra[name] for name in own if name in extra},
    }
    files = many_files(form, vectors, layout, metadata)
    return [LoraFile(data=data, facts=facts) for data in files]
