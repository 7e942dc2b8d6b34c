"""Collection and embedding spread over the workers of a Ray cluster.

A worker is an ordinary collection of one fleet in a folder of its own, whose adapters it sends
back.  The process that hands out fleets is the library's one writer, and appends them in the
source's order: so the library is that of a single process, whichever workers did what and died.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors
from lorasynth.base import BaseModel
from lorasynth.collect.cluster import Cluster
from lorasynth.collect.collector import (
    CollectionReport,
    checked_ids,
    collect,
    open_library,
    require_size,
    rounds,
    safe_to_stop,
)
from lorasynth.collect.contract import Anchor, Gate
from lorasynth.collect.failures import Failures
from lorasynth.collect.part import ChosenSubjects
from lorasynth.condition import ConditionEncoder, subject_conditions
from lorasynth.core.progress import Advance, progress
from lorasynth.engine.prior import class_latents, kept_class_latents
from lorasynth.engine.recipe import Recipe
from lorasynth.images import SubjectSource
from lorasynth.library import Library

#: Subjects that are embedded in one task, or trained where nobody says how many.
_SUBJECTS = 32


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What a worker loads once.

    Attributes:
        base: the base model.
        anchor: see `collect`.
        gate: see `collect`.
        encoder: of conditions, where subjects are embedded.
    """

    base: BaseModel
    anchor: Anchor | None = None
    gate: Gate | None = None
    encoder: ConditionEncoder | None = None


#: Loads the equipment where it is called.  It travels to the workers, and is hashable by value.
Equip = Callable[[], Equipment]


class _Order(NamedTuple):
    """What all tasks of a collection share."""

    source: SubjectSource
    equip: Equip
    recipe: Recipe
    options: Mapping[str, Any]


class _Task(NamedTuple):
    """A fleet to train."""

    ids: Sequence[str]
    fleet_size: int | None
    #: Earlier attempts at each.
    earlier: Mapping[str, int]


class _Trained(NamedTuple):
    """What a task gives back."""

    asked: Sequence[str]
    factors: Factors
    rows: Sequence[dict[str, Any]]
    failed: Mapping[str, Any]
    conditions: Mapping[str, Tensor]
    fleet_size: int


def collect_spread(
    cluster: Cluster,
    here: Equipment,
    equip: Equip,
    source: SubjectSource,
    library_path: Path | str,
    recipe: Recipe,
    *,
    fleet_size: int | None = None,
    gauge: str | None = None,
    attempts: int = 2,
    retry_failed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> CollectionReport:
    """Train an adapter for every subject of `source` that the library does not hold yet.

    Args:
        cluster: who trains.
        here: as `equip` loads it, to look at; nothing is trained with it.
        equip: loads the base model, anchor and gate in a worker; their files and those of the
            source must be there.
        source: where subjects come from.
        library_path: see `collect`, as for all that follows.
        recipe: how each adapter is trained.
        fleet_size: adapters per task; None: each worker trains as many at once as fit there.
        gauge: of a new library.
        attempts: how often an adapter is trained before its subject is left out.
        retry_failed: try subjects once more that an earlier run listed as failed.
        dtype: of the factors while training.

    Raises:
        CollectionError: as `collect` raises it, or the cluster is lost.
        LibraryError: the library is damaged, or another process is writing it.
        KeyboardInterrupt: on Ctrl-C; its message says what is safe.
    """
    path, begun = Path(library_path), time.monotonic()
    ids = checked_ids(source)
    require_size(fleet_size)
    library, failures = open_library(path, here.base, recipe, here.anchor, gauge)
    smallest = fleet_size or _SUBJECTS
    collected: list[str] = []
    failed: dict[str, str] = {}
    conditions: dict[str, Tensor] = {}
    with safe_to_stop(library), library.locked():

        def fleets(left: list[str]) -> Iterator[_Task]:
            while left:
                count = _SUBJECTS if fleet_size is None else smallest
                some, left = left[:count], left[count:]
                earlier = {name: failures.attempt(name) for name in some}
                yield _Task(some, None if fleet_size is None else smallest, earlier)

        for pending in rounds(ids, library, failures, attempts, retry_failed=retry_failed):
            classes = _classes(cluster, here.base, equip, recipe, path)
            order = _Order(source, equip, recipe, {"dtype": dtype, "classes": classes})
            with progress("collect", len(ids), done=len(ids) - len(pending)) as advance:
                for done in cluster.map(_train, fleets(pending), order):
                    if done.rows:
                        library.append(done.factors, done.rows)
                    names = [row["id"] for row in done.rows]
                    failures.update(done.failed, names)
                    collected += names
                    failed |= {name: str(facts["reason"]) for name, facts in done.failed.items()}
                    conditions |= done.conditions
                    smallest = min(smallest, done.fleet_size)
                    note = f"{len(collected)} adapters, fleets of {done.fleet_size}"
                    advance(len(done.asked), note)
    return CollectionReport(
        collected=collected,
        failed={name: reason for name, reason in failed.items() if name not in collected},
        conditions=conditions,
        fleet_size=smallest,
        seconds=time.monotonic() - begun,
    )


def embed_spread(
    cluster: Cluster, equip: Equip, source: SubjectSource
) -> Callable[[Sequence[str]], Iterator[Tensor]]:
    """How the workers of a cluster embed subjects, for `embed_library`."""

    def embed(ids: Sequence[str]) -> Iterator[Tensor]:
        chunks = (ids[start : start + _SUBJECTS] for start in range(0, len(ids), _SUBJECTS))
        for rows in cluster.map(_embed, chunks, source, equip):
            yield from rows

    return embed


def _classes(
    cluster: Cluster, base: BaseModel, equip: Equip, recipe: Recipe, library: Path
) -> Float[Tensor, "p c h w"] | None:
    """What the recipe's prior asks for, made by one worker unless it is kept beside the library."""
    if recipe.prior is None:
        return None

    def made(_: Advance) -> Tensor:
        [latents] = cluster.map(_class_latents, [recipe], equip)
        return latents

    return kept_class_latents(base, recipe.prior, recipe.seed, library, made)


@cache
def _equipped(equip: Equip) -> Equipment:
    """A worker's equipment, which outlives its tasks."""
    return equip()


def _class_latents(recipe: Recipe, equip: Equip) -> Tensor:
    """Make the images of the class, in a worker."""
    assert recipe.prior is not None, "the caller has one"
    return class_latents(_equipped(equip).base, recipe.prior, recipe.seed).cpu()


def _train(task: _Task, order: _Order) -> _Trained:
    """Collect one fleet, in a worker."""
    here = _equipped(order.equip)
    with tempfile.TemporaryDirectory(prefix="lorasynth-") as folder:
        path = Path(folder) / "library"
        report = collect(
            here.base,
            ChosenSubjects(order.source, task.ids),
            path,
            order.recipe,
            fleet_size=task.fleet_size,
            gauge="none",
            anchor=here.anchor,
            gate=here.gate,
            encoder=here.encoder,
            attempts=1,
            earlier=task.earlier,
            **order.options,
        )
        library, failed = Library.open(path), Failures(path).found
        rows = library.table.to_pylist()
        factors = library.factors(range(len(rows))) if rows else {}
    return _Trained(task.ids, factors, rows, failed, report.conditions, report.fleet_size)


def _embed(ids: Sequence[str], source: SubjectSource, equip: Equip) -> list[Tensor]:
    """Embed some subjects, in a worker."""
    encoder = _equipped(equip).encoder
    assert encoder is not None, "the caller has one"
    return [subject_conditions(encoder, source.load(name)) for name in ids]
