"""4.1 and 4.2: attributes change along directions in latents, and the subject stays."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lorasynth.adapter import Factors
from lorasynth.avatars.pool import IDENTITY_LABELS, LABELS
from lorasynth.avatars.vocabulary import NONE
from lorasynth.core.figures import Line, curves
from lorasynth.edit import direction, moved
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.evaluation.contenders import stacked
from lorasynth.studies.finding import SIMILARITY, Finding, claim, interval, judged, listed
from lorasynth.studies.study import Study, as_json, synthesised

#: Attributes that a subject has or has not.
EDITED = ("glasses", "facial_hair")
#: In units of having it; 0 is the adapter as it was.
STEPS = (0.0, 0.5, 1.0, 1.5, 2.0)
SPACES = ("pca", "vae")


@claim(
    "edits",
    says="PCA disentangles attributes: each changes along a direction, and the subject stays",
    section="4.1, 4.2",
    rule="Holds: a step in PCA, of some size, changes each attribute, and neither others nor "
    "identity; partly: some attributes. Changes: in 0.8 of the images. Does not: the share of "
    "other attributes that are right falls by less than 0.05, and identity similarity keeps 0.8 "
    "of what it was (which is to the subject as it was, so some of the loss is the change itself).",
)
def edits(study: Study) -> Finding:
    """Put glasses and facial hair on, or take them off, in steps of several sizes."""
    rows = [
        {"codec": space, "attribute": name, "step": step, **figures}
        for space in SPACES
        for name in EDITED
        if _varies(study, name)
        for step, figures in zip(STEPS, _figures(study, space, name), strict=True)
    ]
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["codec"], row["attribute"]), []).append(row)
    pca = {name: found for (space, name), found in lines.items() if space == "pca"}
    enough = {name: next(filter(_changes, found), found[-1]) for name, found in pca.items()}
    done = [_done(found[0], enough[name]) for name, found in pca.items()]
    panel = [
        Line(f"{name}, {space}", _means(found, "changed"), _means(found, SIMILARITY))
        for (space, name), found in lines.items()
    ]
    return Finding(
        verdict=judged(holds=bool(done) and all(done), partly=any(done)),
        why={
            name: {
                f"step {row['step']:g}": {f: row[f] for f in ("changed", "others", SIMILARITY)}
                for row in (found[0], enough[name])
            }
            for name, found in pca.items()
        },
        tables={"Glasses and facial hair put on, or taken off": rows},
        figures={
            "edits": curves(
                {"along the steps": panel}, "share of images that changed", "identity similarity"
            )
        },
    )


def _means(rows: list[dict[str, Any]], figure: str) -> list[float]:
    return [row[figure]["mean"] for row in rows]


def _varies(study: Study, name: str) -> bool:
    """Whether some of the subjects that are learned from have it, and some have not."""
    column = study.library.table[name].to_pylist()[: study.config.known]
    return len({value == NONE for value in column}) == 2


def _changes(row: dict[str, Any]) -> bool:
    return bool(row["changed"]["mean"] >= 0.8)


def _done(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether an attribute changed and nothing else."""
    kept = after[SIMILARITY]["mean"] >= 0.8 * before[SIMILARITY]["mean"]
    others = after["others"]["mean"] > before["others"]["mean"] - 0.05
    return _changes(after) and bool(others and kept)


def _figures(study: Study, space: str, name: str) -> list[dict[str, Any]]:
    """At each step, over the seeds of the codec, of which PCA has none."""
    found = []
    for seed in study.config.seeds if space == "vae" else study.config.seeds[:1]:
        codec = [space, study.codec_options(space, seed)]
        facts = {"codec": codec, "attribute": name, "steps": STEPS, **study.tested}
        found.append(study.cell("edits", facts, lambda: _edited(study, space, seed, name)))  # noqa: B023
    return [
        {figure: interval([cell[figure] for cell in cells]) for figure in cells[0]}
        for cells in zip(*found, strict=True)
    ]


def _edited(study: Study, space: str, seed: int, name: str) -> list[dict[str, list[float]]]:
    """What images show at each step: glasses are put on those without, and taken off others."""
    bundle, layout, test = study.bundle, study.layout, study.test
    codec = study.standard_codec(space, seed)
    library = study.library.whole.select(range(study.config.known))
    known = LatentLibrary.encode(library, codec, None)
    had = torch.tensor([case.reference.attributes[name] != NONE for case in test.cases])
    along = (1 - 2 * had.float())[:, None] * direction(known.latents, known.columns, name)
    adapters = synthesised(bundle.synthesizer, study.people(test, 1))
    vectors = bundle.library.vectors(adapters, layout)
    stepped = (layout.unflatten(moved(codec, vectors, step * along)) for step in STEPS)
    return [_shown(study, factors, name, had) for factors in stepped]


def _shown(
    study: Study, adapters: Factors, name: str, had: Bool[Tensor, " n"]
) -> dict[str, list[float]]:
    """How often an attribute is not as the subjects had it, and what else is right."""
    test, n = study.test, len(had)
    contender = stacked("edits", adapters, [case.id for case in test.cases])
    images = test.images(contender, range(n))
    shown = study.bundle.judge.labels(images).unflatten(0, (n, -1))
    asked = torch.stack([case.facts["asked"] for case in test.cases])
    column, none = list(LABELS).index(name), LABELS[name].index(NONE)
    others = [list(LABELS).index(other) for other in IDENTITY_LABELS if other != name]
    changed = (shown[..., column] != none) != had[:, None]
    right = (shown == asked)[..., others].float()
    return {
        "changed": listed(changed.float().mean(dim=1)),
        "others": listed(right.mean(dim=(1, 2))),
        SIMILARITY: as_json(test.score(images.unflatten(0, (n, -1))))[SIMILARITY],
    }
