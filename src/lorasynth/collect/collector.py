"""Collect a library: fleet after fleet, each appended as one shard in one atomic step.

A run that is killed loses the fleet in training and nothing else: training keeps no checkpoint
within a fleet, since a fleet takes minutes.  The next run with the same arguments skips what the
library holds, and ends with the same adapters as an undisturbed run.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Layout
from lorasynth.collect.config import CollectConfig
from lorasynth.collect.failures import Failures
from lorasynth.collect.worker import (
    Executor,
    Job,
    Local,
    Outcome,
    Task,
    Worker,
    fleet_size_for,
    make_classes,
    train_and_judge,
)
from lorasynth.core.atomic import make_parent
from lorasynth.core.cache import Cache
from lorasynth.core.errors import CollectionError, LibraryError
from lorasynth.core.progress import note, progress
from lorasynth.engine.recipe import Recipe
from lorasynth.images import SubjectSource
from lorasynth.library import Library


@dataclass(kw_only=True)
class CollectionReport:
    """What one run did.

    Attributes:
        collected: subjects whose adapters joined the library in this run.
        failed: subject -> why it has no adapter.
        conditions: of the collected subjects, if an encoder looked at them.
        fleet_size: at the end; smaller than asked for if memory ran out.
        seconds: spent in this run.
    """

    collected: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Float[Tensor, "j m"]] = field(default_factory=dict)
    fleet_size: int = 1
    seconds: float = 0.0


def collect(
    worker: Worker,
    source: SubjectSource,
    library_path: Path | str,
    recipe: Recipe,
    config: CollectConfig = CollectConfig(),  # noqa: B008
    executor: Executor | None = None,
) -> CollectionReport:
    """Train an adapter for every subject of `source` that the library does not hold yet.

    An adapter that diverges or is refused by the gate is trained again after all others, with other
    random numbers.

    Args:
        worker: what trains and judges; with an `executor` elsewhere, what that loads there, to
            look at.
        source: where subjects come from.
        library_path: the library, which is created if absent.
        recipe: how each adapter is trained; a library has one recipe.
        config: how the collection goes.
        executor: who works; None for this process.

    Raises:
        CollectionError: there is no subject, or an id occurs twice; the library has another
            recipe, `init_from` or base model; memory does not suffice for one adapter; a cluster
            is lost.
        LibraryError: the library is damaged, or another process is writing it.
        KeyboardInterrupt: on Ctrl-C; its message says what is safe.
    """
    path, start = Path(library_path), time.monotonic()
    ids, executor = checked_ids(source), executor or Local(worker)
    library, failures = open_library(path, worker, recipe, config.gauge)
    job, report = Job(source, recipe), CollectionReport()
    with safe_to_stop(library), library.locked():
        for number, pending in enumerate(rounds(ids, library, failures, config)):
            if number == 0:
                job, report.fleet_size = _prepared(executor, worker, job, path, pending, config)
            total, left = (recipe.steps * len(names) for names in (ids, pending))
            with progress("collect", total, done=total - left) as advance:
                watched = executor.watch(advance)
                tasks = _tasks(pending, failures, report)
                for outcome in executor.map(train_and_judge, tasks, job):
                    _keep(outcome, library, failures, report)
                    if not watched:
                        steps = recipe.steps * len(outcome.task)
                        advance(steps, f"{len(report.collected)} adapters")
    report.seconds = time.monotonic() - start
    return report


def _prepared(
    executor: Executor,
    worker: Worker,
    job: Job,
    library: Path,
    pending: Sequence[str],
    config: CollectConfig,
) -> tuple[Job, int]:
    """What all fleets share, and how large they are."""
    recipe = job.recipe
    if recipe.prior.prompt:

        def made() -> dict[str, Tensor]:
            [latents] = executor.map(make_classes, [recipe])
            return {"latents": latents}

        # Beside the library, so that all libraries and shards of a folder share them.
        base, kept = worker.base, Cache(library.parent)
        identity = [recipe.prior, recipe.seed, base.fingerprint, base.image_size]
        job = job._replace(classes=kept.tensors("class", identity, made)["latents"])
    if config.fleet is not None:
        return job, config.fleet
    [size] = executor.map(fleet_size_for, [pending], job)
    return job, min(size, executor.most or size)


def _tasks(pending: Sequence[str], failures: Failures, report: CollectionReport) -> Iterator[Task]:
    """Fleets, each as large as fits when it is asked for."""
    while pending:
        some, pending = pending[: report.fleet_size], pending[report.fleet_size :]
        yield {name: 1 + failures.attempt(name) for name in some}


def _keep(outcome: Outcome, library: Library, failures: Failures, report: CollectionReport) -> None:
    """Append what may join, and list what may not: the one place that writes."""
    if outcome.rows:
        library.append(outcome.factors, outcome.rows)
    names = [row["id"] for row in outcome.rows]
    failures.update(outcome.failed, names)
    report.collected += names
    report.conditions |= outcome.conditions
    report.failed |= {name: str(facts["reason"]) for name, facts in outcome.failed.items()}
    for name in names:
        report.failed.pop(name, None)
    if outcome.fleet_size < len(outcome.task):
        note(
            f"A fleet of {len(outcome.task)} does not fit into memory; going on with "
            f"{outcome.fleet_size}."
        )
        report.fleet_size = min(report.fleet_size, outcome.fleet_size)


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
    path: Path, worker: Worker, recipe: Recipe, gauge: str | None
) -> tuple[Library, Failures]:
    """Open the library of this base model and recipe; create it in an absent or empty folder.

    Raises:
        CollectionError: the library has another recipe, `init_from` or base model.
        LibraryError: there is something else.
        LorasynthError: see `require_place`.
    """
    require_place(path)
    base, failures, stated = worker.base, Failures(path), recipe.stated
    if base.image_size != base.own_image_size():
        stated["image_size"] = base.image_size
    if len(base.frames) > 1:
        stated["buckets"] = True
    if worker.init_from is not None:
        stated["init_from"] = worker.init_from.fingerprint
    if not path.exists() or all(entry.name.startswith(".") for entry in path.iterdir()):
        gauge = gauge or ("shared" if recipe.trained == "B" else "procrustes")
        layout = Layout.from_linears(base.target_linears(recipe.targets), recipe.rank)
        failures.forget()
        return Library.create(path, layout, base.fingerprint, stated, gauge=gauge), failures
    library = Library.open(path)
    if library.info.base_fingerprint != base.fingerprint:
        raise CollectionError(
            f"a library has one base model, but {path} has {library.info.base_fingerprint} and "
            f"{base.name} is {base.fingerprint}: use that one, or another path"
        )
    _require_same(path, library.info.recipe, stated)
    return library, failures


def _require_same(path: Path, kept: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    for name in sorted({*stated, *kept}):
        value, found = stated.get(name), kept.get(name)
        if found != value:
            raise CollectionError(
                f"a library has one recipe, but {path} has {name}={found!r} and this run "
                f"{name}={value!r}: use that value, or another path"
            )


def rounds(
    ids: Sequence[str], library: Library, failures: Failures, config: CollectConfig
) -> Iterator[list[str]]:
    """The subjects of each round: those not tried yet, then those that may be tried again.

    A round is asked for when the one before is done, and has somebody.  It depends on what is kept
    on disk alone, so a run that was killed goes on with it.
    """
    skipped = {*library.ids, *([] if config.retry_failed else failures.ids)}
    if first := [name for name in ids if name not in skipped]:
        yield first
    while again := [name for name in ids if 0 < failures.attempt(name) < config.attempts]:
        yield again


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
