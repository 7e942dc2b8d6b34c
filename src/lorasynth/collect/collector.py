"""Collect a library: fleet after fleet, each appended as one shard in one atomic step.

A run that is killed loses the fleet in training and nothing else: training keeps no checkpoint
within a fleet, since a fleet takes minutes.  The next run with the same arguments skips what the
library holds, and ends with the same adapters as an undisturbed run.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lorasynth.adapter import Factors, Layout, map_factors
from lorasynth.base import BaseModel
from lorasynth.collect.contract import Anchor, Gate, Verdict
from lorasynth.collect.failures import Failures
from lorasynth.condition import ConditionEncoder, framed_subject, subject_conditions
from lorasynth.core.atomic import make_parent
from lorasynth.core.device import is_out_of_memory
from lorasynth.core.errors import CollectionError, ImageError, LibraryError
from lorasynth.core.progress import Advance, console, progress
from lorasynth.engine.fleet import Fleet, train_fleet
from lorasynth.engine.fleet_size import empty_cache, fitting_size
from lorasynth.engine.prior import kept_class_latents
from lorasynth.engine.recipe import Recipe
from lorasynth.images import Subject, SubjectSource
from lorasynth.library import Library

#: What the library's table says of the training of each adapter, rather than of its subject.
RUN_COLUMNS = ("seed", "recipe", "attempt", "images", "loss", "losses")

#: Parts of a training that `losses` has a mean of.
_LOGGED = 20

#: Subject id -> the reason why it has no adapter, and what was measured.
Broken = dict[str, dict[str, float | str]]


@dataclass(frozen=True, kw_only=True)
class CollectionReport:
    """What one run did.

    Attributes:
        collected: subjects whose adapters joined the library in this run.
        failed: subject -> why it has no adapter.
        conditions: of the collected subjects, if an encoder looked at them.
        fleet_size: at the end; smaller than asked for if memory ran out.
        seconds: spent in this run.
    """

    collected: list[str]
    failed: dict[str, str]
    conditions: dict[str, Float[Tensor, "j m"]]
    fleet_size: int
    seconds: float


def collect(
    base: BaseModel,
    source: SubjectSource,
    library_path: Path | str,
    recipe: Recipe,
    *,
    fleet_size: int | None = 32,
    gauge: str | None = None,
    anchor: Anchor | None = None,
    gate: Gate | None = None,
    encoder: ConditionEncoder | None = None,
    classes: Float[Tensor, "p c h w"] | None = None,
    attempts: int = 2,
    earlier: Mapping[str, int] | None = None,
    retry_failed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> CollectionReport:
    """Train an adapter for every subject of `source` that the library does not hold yet.

    An adapter that diverges or is refused by the gate is trained again after all others, with other
    random numbers.

    Args:
        base: the base model.
        source: where subjects come from.
        library_path: the library, which is created if absent.
        recipe: how each adapter is trained; a library has one recipe.
        fleet_size: adapters per fleet; decides speed and memory, not the result.  None: as many
            as fit into the free memory (`lorasynth.engine.fleet_size`).
        gauge: of the canonical vectors of a new library; the raw factors are kept beside them.
            None: `shared` where only B is trained, else `procrustes`.
        anchor: predicts the adapters that training starts from, and that the recipe's decay pulls
            toward; a library has one anchor.  None: start as the recipe says.
        gate: judges each fleet; adapters that fail stay out of the library.
        encoder: looks at each photo, which is then cut around the face; a subject in which it finds
            nothing is left out.
        classes: latents of the images that the recipe's prior asks for; None: those that are
            kept beside the library.
        attempts: how often an adapter is trained before its subject is left out.
        earlier: attempts that were made elsewhere, by subject.
        retry_failed: try subjects once more that an earlier run listed as failed.
        dtype: of the factors while training.

    Raises:
        CollectionError: there is no subject, or an id occurs twice; the library has another
            recipe, anchor or base model; memory does not suffice for one adapter.
        LibraryError: the library is damaged, or another process is writing it.
        KeyboardInterrupt: on Ctrl-C; its message says what is safe.
    """
    path, start = Path(library_path), time.monotonic()
    ids = checked_ids(source)
    require_size(fleet_size)
    library, failures = open_library(path, base, recipe, anchor, gauge)
    run = _Run(
        base,
        source,
        library,
        failures,
        recipe,
        anchor,
        gate,
        encoder,
        fleet_size or 1,
        dtype,
        classes,
        earlier or {},
    )
    with safe_to_stop(library), library.locked():
        queue = rounds(ids, library, failures, attempts, retry_failed=retry_failed)
        for number, pending in enumerate(queue):
            if number == 0:
                run.prepare(pending, choose_size=fleet_size is None)
            total, left = (recipe.steps * len(names) for names in (ids, pending))
            with progress("collect", total, done=total - left) as advance:
                run.train(pending, advance)
    return CollectionReport(
        collected=run.collected,
        failed=run.failed,
        conditions=run.conditions,
        fleet_size=run.fleet_size,
        seconds=time.monotonic() - start,
    )


@contextmanager
def safe_to_stop(library: Library) -> Iterator[None]:
    """Let Ctrl-C say what is safe."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"the {len(library)} finished adapters are safe in {library.path}; the same command "
            "goes on from there"
        ) from error


def require_place(path: Path) -> None:
    """Refuse a path that no library can have; long work calls it before it begins.

    Raises:
        LibraryError: there is a file.
        LorasynthError: it has no name of its own, or its folder cannot be written.
    """
    make_parent(path)
    if path.exists() and not path.is_dir():
        raise LibraryError(
            f"a library is a folder, but {path} is a file: choose another path, or delete it"
        )


def open_library(
    path: Path, base: BaseModel, recipe: Recipe, anchor: Anchor | None, gauge: str | None
) -> tuple[Library, Failures]:
    """Open the library of this base model and recipe; create it in an absent or empty folder.

    Raises:
        CollectionError: the library has another recipe, anchor or base model.
        LibraryError: there is something else.
        LorasynthError: see `require_place`.
    """
    require_place(path)
    failures = Failures(path)
    gauge = gauge or ("shared" if recipe.trained == "B" else "procrustes")
    stated = recipe.stated
    if base.image_size != base.own_image_size():
        stated["image_size"] = base.image_size
    if anchor is not None:
        stated["anchor"] = anchor.fingerprint
    if not path.exists() or all(entry.name.startswith(".") for entry in path.iterdir()):
        layout = Layout.from_linears(base.target_linears(recipe.targets), recipe.rank)
        failures.forget()
        return Library.create(path, layout, base.fingerprint, stated, gauge=gauge), failures
    library = Library.open(path)
    if library.info.base_fingerprint != base.fingerprint:
        raise CollectionError(
            f"a library has one base model, but {path} has {library.info.base_fingerprint} and "
            f"{base.name} is {base.fingerprint}: use that one, or another path"
        )
    for name in sorted({*stated, *library.info.recipe}):
        value, found = stated.get(name), library.info.recipe.get(name)
        if found != value:
            raise CollectionError(
                f"a library has one recipe, but {path} has {name}={found!r} and this run "
                f"{name}={value!r}: use that value, or another path"
            )
    return library, failures


def rounds(
    ids: Sequence[str],
    library: Library,
    failures: Failures,
    attempts: int,
    *,
    retry_failed: bool,
) -> Iterator[list[str]]:
    """The subjects of each round: those not tried yet, then those that may be tried again.

    A round is asked for when the one before is done, and has somebody.  It depends on what is kept
    on disk alone, so a run that was killed goes on with it.
    """
    skipped = {*library.ids, *([] if retry_failed else failures.ids)}
    if first := [name for name in ids if name not in skipped]:
        yield first
    while again := [name for name in ids if 0 < failures.attempt(name) < attempts]:
        yield again


def require_size(fleet_size: int | None) -> None:
    """Refuse fleets of nobody; None stands for a size that is yet to be found.

    Raises:
        CollectionError: it is less than 1.
    """
    if fleet_size is not None and fleet_size < 1:
        raise CollectionError(f"a fleet must have at least 1 adapter, but fleet_size={fleet_size}")


def checked_ids(source: SubjectSource) -> list[str]:
    """The subjects of a source.

    Raises:
        CollectionError: there is none, or an id occurs twice.
    """
    ids = list(source.ids)
    if not ids:
        raise CollectionError(
            "a collection must have at least one subject, but its source has none: "
            "give a folder that holds one folder of images per subject"
        )
    if len(set(ids)) < len(ids):
        twice = next(name for index, name in enumerate(ids) if name in ids[:index])
        raise CollectionError(f"subjects must have ids of their own, but {twice!r} occurs twice")
    return ids


@dataclass
class _Run:
    """One run of `collect`: what it works with, and what it has done so far."""

    base: BaseModel
    source: SubjectSource
    library: Library
    failures: Failures
    recipe: Recipe
    anchor: Anchor | None
    gate: Gate | None
    encoder: ConditionEncoder | None
    fleet_size: int
    dtype: torch.dtype
    classes: Float[Tensor, "p c h w"] | None
    earlier: Mapping[str, int]
    collected: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Float[Tensor, "j m"]] = field(default_factory=dict)

    def prepare(self, pending: Sequence[str], *, choose_size: bool) -> None:
        """Make what all fleets share, and choose their size if it is not given."""
        recipe, base = self.recipe, self.base
        if recipe.prior is not None:
            classes = self.classes
            if classes is None:
                classes = kept_class_latents(base, recipe.prior, recipe.seed, self.library.path)
            self.classes = classes.to(base.device, base.dtype)
        if choose_size:
            self.fleet_size = self._fitting_size(pending)

    def _fitting_size(self, pending: Sequence[str]) -> int:
        """As many as fit, tried with the first two subjects that can be read."""
        subjects: list[Subject] = []
        for name in pending:
            subjects += self._load([name])
            if len(subjects) == 2:
                recipe = replace(self.recipe, steps=2, warmup_steps=0)
                return fitting_size(partial(self._trial, recipe, subjects), self.base.device)
        return 1

    def _trial(self, recipe: Recipe, subjects: Sequence[Subject]) -> None:
        train_fleet(self.base, recipe, subjects, classes=self.classes, dtype=self.dtype)

    def train(self, pending: Sequence[str], advance: Advance) -> None:
        """Train `pending` subjects, fleet after fleet."""
        while pending:
            ids, rest = pending[: self.fleet_size], pending[self.fleet_size :]
            subjects, anchors = self._predicted(self._load(ids))
            fleet = self._fleet(subjects, anchors, advance) if subjects else None
            if fleet is not None:
                self._keep(fleet, subjects)
            elif subjects:
                self._halve(len(subjects))
                continue
            pending = rest

    def _load(self, ids: Sequence[str]) -> list[Subject]:
        """The subjects whose images can be used; the others become failures."""
        subjects: list[Subject] = []
        broken: Broken = {}
        looking = (self.encoder, None if self.anchor is None else self.anchor.encoder)
        encoders = [one for one in looking if one is not None]
        for name in ids:
            try:
                subject = self.source.load(name)
                subjects.append(framed_subject(subject, self.base.image_size, encoders))
            except ImageError as error:
                broken[name] = {"reason": str(error)}
        self._fail(broken)
        return subjects

    def _predicted(self, subjects: list[Subject]) -> tuple[list[Subject], Factors | None]:
        """What the anchor says of subjects; those that it cannot read become failures."""
        if self.anchor is None or not subjects:
            return subjects, None
        try:
            return subjects, self.anchor.predict(subjects)
        except ImageError as error:  # no face in an image, for example
            if len(subjects) == 1:
                self._fail({subjects[0].id: {"reason": str(error)}})
                return [], None
        return self._predicted([one for each in subjects for one in self._predicted([each])[0]])

    def _fleet(
        self, subjects: Sequence[Subject], anchors: Factors | None, advance: Advance
    ) -> Fleet | None:
        """Train one fleet; None if it does not fit into memory."""
        size = len(subjects)
        done = 0

        def on_step(step: int, losses: Float[Tensor, " n"]) -> None:
            nonlocal done
            done = step * size
            said = ""
            if step % 10 == 0:  # reading the loss waits for the device
                said = f"{len(self.collected)} adapters, fleet of {size}, loss {losses.mean():.4f}"
            advance(size, said)

        try:
            return train_fleet(
                self.base,
                self.recipe,
                [_tried_as(subject, self._attempt(subject)) for subject in subjects],
                anchor=anchors,
                classes=self.classes,
                dtype=self.dtype,
                on_step=on_step,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            advance(-done)
            return None

    def _halve(self, size: int) -> None:
        if size == 1:
            raise CollectionError(
                "memory must suffice for a fleet of one adapter, but it does not: use fewer "
                "images per step, a smaller dtype or another device"
            )
        self.fleet_size = size // 2
        console.print(
            f"A fleet of {size} does not fit into memory; going on with {self.fleet_size}."
        )
        empty_cache(self.base.device)

    def _keep(self, fleet: Fleet, subjects: Sequence[Subject]) -> None:
        """Append the adapters that are fit for use; list the others as failures."""
        factors = map_factors(lambda part: part.float().cpu(), fleet.factors)
        last = fleet.losses[:, -self.recipe.averaged_steps :].mean(dim=1).tolist()
        parts = fleet.losses.tensor_split(min(_LOGGED, fleet.losses.shape[1]), dim=1)
        curves = torch.stack([part.mean(dim=1) for part in parts], dim=1).tolist()
        rows: list[dict[str, Any]] = []
        for subject, loss, losses in zip(subjects, last, curves, strict=True):
            run = (self.recipe.seed, self.recipe.fingerprint, self._attempt(subject))
            facts = (*run, len(subject.photos), loss, losses)
            stated = dict(zip(RUN_COLUMNS, facts, strict=True))
            rows.append({**subject.attributes, "id": subject.id, **stated})
        fit, broken = self._judge(factors, subjects, rows)
        kept = [rows[index] for index in fit.tolist()]
        if kept:
            self.library.append(_select(factors, fit), kept)
        names = [row["id"] for row in kept]
        self.collected += names
        if self.encoder is not None:
            chosen = (subjects[index] for index in fit.tolist())
            self.conditions |= {one.id: subject_conditions(self.encoder, one) for one in chosen}
        self._fail(broken, names)

    def _judge(
        self, factors: Factors, subjects: Sequence[Subject], rows: list[dict[str, Any]]
    ) -> tuple[Int64[Tensor, " k"], Broken]:
        """Numbers of the adapters that may join, and why others may not; adds metrics to `rows`."""
        finite = _finite(factors)
        broken: Broken = {}

        def refuse(index: int, reason: str, **metrics: float) -> None:
            subject = subjects[index]
            broken[subject.id] = {"reason": reason, "attempt": self._attempt(subject), **metrics}

        for index in (~finite).nonzero().flatten().tolist():
            refuse(index, "training diverged: lower the learning rate")
        fit = finite.nonzero().flatten()
        if self.gate is None or not len(fit):
            return fit, broken
        verdict = self._verdict(self.gate, factors, subjects, fit)
        passed = verdict.passed.cpu()
        for place, index in enumerate(fit.tolist()):
            metrics = {name: float(values[place]) for name, values in verdict.metrics.items()}
            rows[index] |= metrics
            if not passed[place]:
                refuse(index, "the quality gate refused it", **metrics)
        return fit[passed], broken

    def _verdict(
        self, gate: Gate, factors: Factors, subjects: Sequence[Subject], rows: Int64[Tensor, " k"]
    ) -> Verdict:
        """What the gate says of some adapters: in halves where all at once do not fit in memory."""
        try:
            return gate(_select(factors, rows), [subjects[index] for index in rows.tolist()])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise CollectionError(
                    "memory must suffice to judge one adapter, but it does not: let the gate make "
                    "fewer or smaller samples, or use a smaller dtype"
                ) from error
        empty_cache(self.base.device)
        halves = [self._verdict(gate, factors, subjects, half) for half in rows.tensor_split(2)]
        metrics = {
            name: [value for half in halves for value in half.metrics[name]]
            for name in halves[0].metrics
        }
        passed = torch.cat([half.passed for half in halves])
        return Verdict(passed=passed, metrics=metrics)

    def _attempt(self, subject: Subject) -> int:
        """Which attempt at an adapter of this subject the present one is, from 1."""
        return 1 + self.failures.attempt(subject.id) + self.earlier.get(subject.id, 0)

    def _fail(self, broken: Broken, mended: Sequence[str] = ()) -> None:
        self.failures.update(broken, mended)
        self.failed |= {name: str(facts["reason"]) for name, facts in broken.items()}
        for name in mended:
            self.failed.pop(name, None)


def _tried_as(subject: Subject, attempt: int) -> Subject:
    """The subject by a name of this attempt: random numbers are drawn by names."""
    return subject if attempt == 1 else replace(subject, id=f"{subject.id}, attempt {attempt}")


def _finite(factors: Factors) -> Bool[Tensor, " n"]:
    """Which of the stacked adapters have finite numbers only."""
    parts = [
        part.isfinite().flatten(1).all(dim=1) for factor in factors.values() for part in factor
    ]
    return torch.stack(parts).all(dim=0)


def _select(factors: Factors, rows: Int64[Tensor, " k"]) -> Factors:
    return map_factors(lambda part: part[rows], factors)
