"""4.1 and 4.2: attributes change along directions in latents, and the subject stays."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.avatars.pool import IDENTITY_LABELS, LABELS
from lorasynth.avatars.vocabulary import NONE
from lorasynth.edit import direction, moved
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.studies.reproduce.finding import (
    CLAIMS,
    Finding,
    flat,
    interval,
    judged,
    listed,
)
from lorasynth.studies.reproduce.study import Study, synthesised

#: Attributes that a subject has or has not.
EDITED = ("glasses", "facial_hair")
#: In units of having it; 0 is the adapter as it was.
STEPS = (0.0, 0.5, 1.0, 1.5, 2.0)
SPACES = ("pca", "vae")


@CLAIMS.register("edits")
def edits(study: Study) -> Finding:
    """Holds: a step in PCA, of some size, changes an attribute, and neither others nor likeness.

    Changes: in 0.8 of the images.  Does not: the share of other attributes that are right falls
    by less than 0.05, and likeness keeps 0.8 of what it was.  Partly: so for some attributes.
    Likeness is to the subject as it was, so some of what is lost is the change itself.
    """
    rows = [
        {"codec": space, "attribute": name, "step": step, **figures}
        for space in SPACES
        for name in EDITED
        if _varies(study, name)
        for step, figures in zip(STEPS, _figures(study, space, name), strict=True)
    ]
    pca = {(r["attribute"], r["step"]): r for r in rows if r["codec"] == "pca"}
    names = list(dict.fromkeys(name for name, _ in pca))
    enough = {name: _first_that_changes([pca[name, step] for step in STEPS]) for name in names}
    done = {name: _done(pca[name, 0.0], enough[name]) for name in names}
    return Finding(
        claim="PCA disentangles attributes: each changes along a direction, and the subject stays",
        section="4.1, 4.2",
        verdict=judged(holds=bool(done) and all(done.values()), partly=any(done.values())),
        why=" ".join(_words(name, pca[name, 0.0], pca[name, 1.0], enough[name]) for name in names),
        values={"rows": rows},
        seeds=study.config.seeds,
        tables={"Glasses and facial hair put on, or taken off": [flat(row) for row in rows]},
        figures={"edits": _draw(rows)},
    )


def _varies(study: Study, name: str) -> bool:
    """Whether some of the subjects that are learned from have it, and some have not."""
    column = study.library.table[name].to_pylist()[: study.config.library]
    return len({value == NONE for value in column}) == 2


def _words(name: str, before: dict[str, Any], one: dict[str, Any], enough: dict[str, Any]) -> str:
    """What steps of 0, of 1 and of enough do."""

    def mean(row: dict[str, Any], figure: str) -> str:
        return f"{row[figure]['mean']:.2f}"

    return (
        f"A step of 1 changes {name.replace('_', ' ')} in {mean(one, 'changed')} of the images, "
        f"one of {enough['step']:g} in {mean(enough, 'changed')}; other attributes are then right "
        f"in {mean(enough, 'others')} (before {mean(before, 'others')}), likeness is "
        f"{mean(enough, 'likeness')} ({mean(before, 'likeness')})."
    )


def _first_that_changes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The smallest step that changes an attribute, or the largest that there is."""
    return next((row for row in rows if _changes(row)), rows[-1])


def _changes(row: dict[str, Any]) -> bool:
    return bool(row["changed"]["mean"] >= 0.8)


def _done(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether an attribute changed and nothing else."""
    kept = after["likeness"]["mean"] >= 0.8 * before["likeness"]["mean"]
    others = after["others"]["mean"] > before["others"]["mean"] - 0.05
    return _changes(after) and bool(others and kept)


def _figures(study: Study, space: str, name: str) -> list[dict[str, Any]]:
    """At each step, over the seeds of the codec, of which PCA has none."""
    seeds = study.config.seeds if space == "vae" else study.config.seeds[:1]
    by_step = zip(*(_cell(study, space, seed, name) for seed in seeds), strict=True)
    return [
        {figure: interval([found[figure] for found in cells]) for figure in cells[0]}
        for cells in by_step
    ]


def _cell(study: Study, space: str, seed: int, name: str) -> list[dict[str, list[float]]]:
    codec = [space, study.codec_options(space, seed)]
    facts = {"codec": codec, "attribute": name, "steps": STEPS, **study.tried}
    measure = partial(_edited, study, space, seed, name)
    found: list[dict[str, list[float]]] = study.cell("edits", facts, measure)
    return found


def _edited(study: Study, space: str, seed: int, name: str) -> list[dict[str, list[float]]]:
    """What images show at each step: glasses are put on those without, and taken off others."""
    run, bundle, layout = study.trial, study.bundle, study.layout
    codec = study.standard_codec(space, seed)
    library = study.library.whole.select(range(study.config.library))
    known = LatentLibrary.encode(library, codec, None)
    subjects = [run.subjects.identity(subject) for subject in run.subjects.ids]
    had = torch.tensor([getattr(subject, name) != NONE for subject in subjects])
    along = (1 - 2 * had.float())[:, None] * direction(known.latents, known.columns, name)
    vectors = bundle.library.vectors(synthesised(bundle.synthesizer, run.people(1)), layout)
    adapters = (layout.unflatten(moved(codec, vectors, step * along)) for step in STEPS)
    return [_shown(study, run.images(factors), name, had) for factors in adapters]


def _shown(
    study: Study, images: UInt8[Tensor, "nk h w 3"], name: str, had: Bool[Tensor, " n"]
) -> dict[str, list[float]]:
    """How often an attribute is not as the subjects had it, and what else is right."""
    run = study.trial
    shown = study.bundle.judge.labels(images).unflatten(0, (len(had), -1))
    asked = run.labels("evaluation", range(len(had)))
    column, none = list(LABELS).index(name), LABELS[name].index(NONE)
    others = [list(LABELS).index(other) for other in IDENTITY_LABELS if other != name]
    changed = (shown[..., column] != none) != had[:, None]
    right = (shown == asked)[..., others].float()
    return {
        "changed": listed(changed.float().mean(dim=1)),
        "others": listed(right.mean(dim=(1, 2))),
        "likeness": listed(run.measure(images).likeness),
    }


def _draw(rows: list[dict[str, Any]]) -> Figure:
    """Likeness against how often the attribute changed, along the steps."""
    figure = Figure(figsize=(6.4, 4.2), dpi=130)
    axes = figure.subplots()
    for space, name in dict.fromkeys((row["codec"], row["attribute"]) for row in rows):
        mine = [row for row in rows if (row["codec"], row["attribute"]) == (space, name)]
        changed = [row["changed"]["mean"] for row in mine]
        kept = [row["likeness"]["mean"] for row in mine]
        axes.plot(changed, kept, "o-", label=f"{name}, {space}")
    axes.set(xlabel="share of images where the attribute changed", ylabel="likeness")
    axes.legend(fontsize=7)
    figure.tight_layout()
    return figure
