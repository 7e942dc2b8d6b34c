"""What trains and judges adapters: one function from subjects to an outcome.

It writes nothing and depends on nothing but its arguments, so any process may call it: this one
(`Local`), or the workers of a cluster (`lorasynth.collect.cluster`).  `collect` alone appends.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from typing_extensions import override

from lorasynth.adapter import Factors, concatenate, map_factors
from lorasynth.base import MEASURED, BaseModel, SamplingConfig
from lorasynth.collect.described import RUN_COLUMNS
from lorasynth.condition import ConditionEncoder, framed_subject, seen_in, subject_conditions
from lorasynth.condition.similarity import likeness
from lorasynth.core.device import is_out_of_memory
from lorasynth.core.errors import CollectionError, ImageError
from lorasynth.core.progress import Advance
from lorasynth.core.randomness import stream_seed
from lorasynth.engine.fleet import class_latents, train_fleet
from lorasynth.engine.fleet_size import empty_cache, fitting_size
from lorasynth.engine.loop import Fleet
from lorasynth.engine.recipe import Recipe
from lorasynth.images import Subject, SubjectSource

#: Parts of a training that `losses` has a mean of.
_LOGGED = 20

#: Subject id -> the reason why it has no adapter, and what was measured.
Broken = dict[str, dict[str, float | str]]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a quality gate found in n adapters.

    Attributes:
        passed: which adapters may join the library.
        metrics: name -> one number per adapter; each becomes a column of the library's table.
    """

    passed: Bool[Tensor, " n"]
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)


#: Judges freshly trained adapters, stacked in the order of their subjects.
Gate = Callable[[Factors, Sequence[Subject]], Verdict]


@runtime_checkable
class AdapterPredictor(Protocol):
    """Predicts adapters to start from and to be pulled toward, such as a synthesizer.

    Attributes:
        fingerprint: identifies what predicts; all adapters of a library start from one.
        encoder: looks at the photos of a subject before they are cut; None where nothing does.
    """

    @property
    def encoder(self) -> ConditionEncoder | None: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def predict(self, subjects: Sequence[Subject]) -> Factors:
        """Adapters for `subjects`, stacked in the same order; each depends on its own alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class SimilarityGate:
    """Lets adapters pass whose samples are similar to the images that they were trained on.

    The samples have the captions of those images.  Unlike the identity similarity that is reported,
    this one compares with training images: it is to find broken adapters, not to rank good ones.

    Attributes:
        base: makes the samples.
        encoder: compares them.
        least: the smallest mean cosine that passes.
        samples: made with each adapter.
        sampling: how.
        seed: of the noise; a subject's samples do not depend on its fleet.
    """

    base: BaseModel
    encoder: ConditionEncoder
    least: float
    samples: int = 4
    sampling: SamplingConfig = MEASURED
    seed: int = 0

    def __call__(self, factors: Factors, subjects: Sequence[Subject]) -> Verdict:
        """Judge the adapters of `subjects`; the metric is `similarity`."""
        prompts: list[str] = []
        seeds: list[int] = []
        for subject in subjects:
            prompts += islice(cycle(subject.captions), self.samples)
            seeds += [stream_seed(self.seed, "gate", subject.id, i) for i in range(self.samples)]
        images = self.base.sample(prompts, seeds, factors, self.sampling)
        made = self.encoder.see(images).embeddings.unflatten(0, (len(subjects), self.samples))
        found = torch.stack(
            [
                likeness(samples[None], seen_in(self.encoder, subject).embeddings[None]).squeeze()
                for samples, subject in zip(made, subjects, strict=True)
            ]
        )
        return Verdict(passed=found >= self.least, metrics={"similarity": found.tolist()})


@dataclass(kw_only=True)
class Worker:
    """What a process needs to train and judge; loaded once.

    Attributes:
        base: the base model.
        encoder: looks at each photo, which is then cut around the face; a subject in which it finds
            nothing is left out.
        init_from: predicts the adapters that training starts from, and that the recipe's decay
            pulls toward.  None: start as the recipe says.
        gate: adapters that it refuses stay out of the library.
        advance: told of each step, and of how it goes.
    """

    base: BaseModel
    encoder: ConditionEncoder | None = None
    init_from: AdapterPredictor | None = None
    gate: Gate | None = None
    advance: Advance | None = None

    @property
    def looking(self) -> list[ConditionEncoder]:
        """What looks at photos before they are cut."""
        both = (self.encoder, None if self.init_from is None else self.init_from.encoder)
        return [one for one in both if one is not None]


class Job(NamedTuple):
    """What all tasks of a collection share.

    Attributes:
        source: where subjects come from.
        recipe: how each adapter is trained.
        classes: latents of the class images that the recipe asks for.
    """

    source: SubjectSource
    recipe: Recipe
    classes: Float[Tensor, "p c h w"] | None = None


#: Subjects to train, each with the number of the attempt, from 1.
Task = Mapping[str, int]


class Outcome(NamedTuple):
    """What comes of a task.

    Attributes:
        task: the task.
        factors: of the adapters that may join, stacked; empty where there are none.
        rows: what is known of each of them.
        failed: subjects without an adapter, and why.
        conditions: of those with one, if an encoder looked at them.
        fleet_size: how many of a task could be trained at once.
    """

    task: Task
    factors: Factors
    rows: list[dict[str, Any]]
    failed: Broken
    conditions: dict[str, Tensor]
    fleet_size: int


class Executor(ABC):
    """Maps functions of a worker over items, here or elsewhere.

    Attributes:
        most: subjects in one task, where nobody says how many; None for as many as fit.
    """

    most: int | None = None

    @abstractmethod
    def map(
        self, work: Callable[..., ResultT], items: Iterable[ItemT], *shared: object
    ) -> Iterator[ResultT]:
        """`work(worker, item, *shared)` for each item, in their order."""

    @abstractmethod
    def watch(self, advance: Advance) -> bool:
        """Whether each step will be told to `advance`."""


class Local(Executor):
    """Works in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @override
    def map(
        self, work: Callable[..., ResultT], items: Iterable[ItemT], *shared: object
    ) -> Iterator[ResultT]:
        return (work(self.worker, item, *shared) for item in items)

    @override
    def watch(self, advance: Advance) -> bool:
        self.worker.advance = advance
        return True


def train_and_judge(worker: Worker, task: Task, job: Job) -> Outcome:
    """Train an adapter for each subject of a task, and judge them.

    Raises:
        CollectionError: memory does not suffice for one adapter.
    """
    subjects, failed = _load(worker, list(task), job.source)
    subjects, init, unread = _predicted(worker, subjects)
    failed |= unread
    if not subjects:
        return Outcome(task, {}, [], failed, {}, len(task))
    tried = [_named_for(subject, task[subject.id]) for subject in subjects]
    fleet, size = _train(worker, job, tried, init)
    factors = map_factors(lambda part: part.float().cpu(), fleet.factors)
    rows = _rows(job.recipe, task, subjects, fleet.losses)
    fit, refused = _judge(worker, factors, subjects, rows)
    for name, facts in refused.items():
        failed[name] = {**facts, "attempt": task[name]}
    chosen = fit.tolist()
    conditions = {
        subjects[i].id: subject_conditions(worker.encoder, subjects[i])
        for i in chosen
        if worker.encoder is not None
    }
    joining = _select(factors, fit) if chosen else {}
    fitting = size if size < len(subjects) else len(task)
    return Outcome(task, joining, [rows[i] for i in chosen], failed, conditions, fitting)


def fleet_size_for(worker: Worker, ids: Sequence[str], job: Job) -> int:
    """As many as fit into memory, tried with the first two subjects that can be read."""
    subjects: list[Subject] = []
    for name in ids:
        subjects += _load(worker, [name], job.source)[0]
        if len(subjects) == 2:
            short = replace(job.recipe, steps=2, warmup_steps=0)
            trial = partial(train_fleet, worker.base, short, subjects, classes=job.classes)
            return fitting_size(trial, worker.base)
    return 1


def make_classes(worker: Worker, recipe: Recipe) -> Float[Tensor, "p c h w"]:
    """Make the class images that a recipe asks for, and encode them."""
    return class_latents(worker.base, recipe).cpu()


def embed_some(
    worker: Worker, ids: Sequence[str], source: SubjectSource
) -> list[Float[Tensor, "_ m"]]:
    """The conditions of some subjects."""
    assert worker.encoder is not None, "the caller has one"
    return [subject_conditions(worker.encoder, source.load(name)) for name in ids]


def embed_over(
    executor: Executor, source: SubjectSource
) -> Callable[[Sequence[str]], Iterator[Float[Tensor, "_ m"]]]:
    """How an executor embeds subjects, for `embed_library`."""

    def embed(ids: Sequence[str]) -> Iterator[Tensor]:
        step = executor.most or 1
        chunks = (ids[start : start + step] for start in range(0, len(ids), step))
        for rows in executor.map(embed_some, chunks, source):
            yield from rows

    return embed


def _load(
    worker: Worker, ids: Sequence[str], source: SubjectSource
) -> tuple[list[Subject], Broken]:
    """The subjects whose images can be used, and why the others cannot."""
    frames, subjects = worker.base.frames, list[Subject]()
    broken: Broken = {}
    for name in ids:
        try:
            subjects.append(framed_subject(source.load(name), frames, worker.looking))
        except ImageError as error:
            broken[name] = {"reason": str(error)}
    return subjects, broken


def _predicted(
    worker: Worker, subjects: list[Subject]
) -> tuple[list[Subject], Factors | None, Broken]:
    """The adapters that subjects start from; those of whom nothing can be said are left out."""
    if worker.init_from is None or not subjects:
        return subjects, None, {}
    try:
        return subjects, worker.init_from.predict(subjects), {}
    except ImageError as error:  # no face in an image, for example
        if len(subjects) == 1:
            return [], None, {subjects[0].id: {"reason": str(error)}}
    alone = [_predicted(worker, [subject]) for subject in subjects]
    good, init, _ = _predicted(worker, [subject for some, _, _ in alone for subject in some])
    return good, init, {name: why for _, _, bad in alone for name, why in bad.items()}


def _train(
    worker: Worker, job: Job, subjects: Sequence[Subject], init: Factors | None
) -> tuple[Fleet, int]:
    """Train a fleet, in halves where memory does not suffice; and the size of the largest."""

    def train(rows: Int64[Tensor, " k"]) -> Fleet:
        size, done = len(rows), 0

        def on_step(step: int, losses: Float[Tensor, " n"]) -> None:
            nonlocal done
            if worker.advance is not None:
                done += size
                # reading the loss waits for the device
                told = f"fleet of {size}, loss {losses.mean():.4f}" if step % 10 == 0 else ""
                worker.advance(size, told)

        start = None if init is None else _select(init, rows)
        options: Any = {"init": start, "classes": job.classes, "on_step": on_step}
        some = [subjects[row] for row in rows.tolist()]
        try:
            return train_fleet(worker.base, job.recipe, some, **options)
        except (RuntimeError, MemoryError):
            if worker.advance is not None:
                worker.advance(-done)
            raise

    fleets = _in_halves(
        worker,
        torch.arange(len(subjects)),
        train,
        "for a fleet of one adapter, but it does not: use fewer images per step, a smaller dtype "
        "or another device; `lorasynth plan` says what each takes",
    )
    factors = concatenate([fleet.factors for fleet in fleets])
    losses = torch.cat([fleet.losses for fleet in fleets])
    return Fleet(factors, losses), min(len(fleet.losses) for fleet in fleets[:2])


def _in_halves(
    worker: Worker,
    rows: Int64[Tensor, " k"],
    work: Callable[[Int64[Tensor, " _"]], ResultT],
    enough: str,
) -> list[ResultT]:
    """What work gives of some rows: of halves of them, and so on, if memory does not suffice.

    Raises:
        CollectionError: memory does not suffice for one; `enough` says for what, and what to do.
    """
    try:
        return [work(rows)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise CollectionError(f"memory must suffice {enough}") from error
    empty_cache(worker.base.device)
    halves = rows.split(len(rows) // 2)
    return [found for half in halves for found in _in_halves(worker, half, work, enough)]


def _rows(
    recipe: Recipe, task: Task, subjects: Sequence[Subject], losses: Float[Tensor, "n steps"]
) -> list[dict[str, Any]]:
    """What the library's table says of each training."""
    last = losses[:, -recipe.averaged_steps :].mean(dim=1).tolist()
    parts = losses.tensor_split(min(_LOGGED, losses.shape[1]), dim=1)
    curves = torch.stack([part.mean(dim=1) for part in parts], dim=1).tolist()
    rows = []
    for subject, loss, curve in zip(subjects, last, curves, strict=True):
        run = (recipe.seed, recipe.fingerprint, task[subject.id], len(subject.photos), loss, curve)
        stated = dict(zip(RUN_COLUMNS, run, strict=True))
        rows.append({**subject.attributes, "id": subject.id, **stated})
    return rows


def _judge(
    worker: Worker, factors: Factors, subjects: Sequence[Subject], rows: list[dict[str, Any]]
) -> tuple[Int64[Tensor, " k"], Broken]:
    """Numbers of the adapters that may join, and why others may not; adds metrics to `rows`."""
    finite = torch.stack(
        [part.isfinite().flatten(1).all(dim=1) for factor in factors.values() for part in factor]
    ).all(dim=0)
    broken: Broken = {
        subjects[index].id: {"reason": "training diverged: lower the learning rate"}
        for index in (~finite).nonzero().flatten().tolist()
    }
    fit = finite.nonzero().flatten()
    if worker.gate is None or not len(fit):
        return fit, broken
    verdict = _verdict(worker, factors, subjects, fit)
    passed = verdict.passed.cpu()
    for place, index in enumerate(fit.tolist()):
        metrics = {name: float(values[place]) for name, values in verdict.metrics.items()}
        rows[index] |= metrics
        if not passed[place]:
            broken[subjects[index].id] = {"reason": "the quality gate refused it", **metrics}
    return fit[passed], broken


def _verdict(
    worker: Worker, factors: Factors, subjects: Sequence[Subject], rows: Int64[Tensor, " k"]
) -> Verdict:
    """What the gate says of some adapters: in halves where all at once do not fit in memory."""
    gate = worker.gate
    assert gate is not None, "the caller has one"
    parts = _in_halves(
        worker,
        rows,
        lambda some: gate(_select(factors, some), [subjects[index] for index in some.tolist()]),
        "to judge one adapter, but it does not: let the gate make fewer or smaller samples, or use "
        "a smaller dtype",
    )
    metrics = {
        name: [value for part in parts for value in part.metrics[name]] for name in parts[0].metrics
    }
    return Verdict(passed=torch.cat([part.passed for part in parts]), metrics=metrics)


def _named_for(subject: Subject, attempt: int) -> Subject:
    """The subject by a name of this attempt: random numbers are drawn by names."""
    return subject if attempt == 1 else replace(subject, id=f"{subject.id}, attempt {attempt}")


def _select(factors: Factors, rows: Int64[Tensor, " k"]) -> Factors:
    return map_factors(lambda part: part[rows], factors)
