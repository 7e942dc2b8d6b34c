"""A claim of the paper: what it says, the rule of its verdict, and what was found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.core.registry import Registry
from lorasynth.evaluation.bootstrap import bootstrap_seeds

if TYPE_CHECKING:
    from lorasynth.studies.study import Study

Verdict = Literal["holds", "holds partly", "does not hold here"]
#: A figure by subject, for each seed.
BySeed: TypeAlias = Sequence[Sequence[float]]

#: The figure that most claims are about, and the same by the second encoder.
SIMILARITY, SECOND = "identity_similarity", "identity_similarity_second"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A verdict and what it rests on.

    Attributes:
        verdict: by the claim's rule.
        why: the figures that decided, by their names.
        tables: title -> rows of equal keys, as JSON values.
        figures: name -> image.
    """

    verdict: Verdict
    why: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    Attributes:
        name: on the command line.
        says: in our words.
        section: of the paper.
        rule: of the verdict.
        find: looks into it.
        seeded: whether trainings from several seeds are behind it.
    """

    name: str
    says: str
    section: str
    rule: str
    find: Callable[["Study"], Finding]
    seeded: bool = True


_ROOM = "lorasynth.studies.claims"
CLAIMS: Registry[Claim] = Registry(
    "claim",
    "lorasynth.claims",
    *(f"{_ROOM}.{name}" for name in ("adapters", "codecs", "edits", "diffusion", "cost", "beyond")),
)

#: The paper's order, in which the report has them.
_ORDER = (
    *("norms", "beta", "spectrum", "edits", "linearity", "vae or pca", "spaces", "gradient flow"),
    *("v-prediction", "adalora", "cost", "adapter methods", "beyond"),
)


def in_order() -> list[str]:
    """The names of all claims: those that come with this package first, installed ones after."""
    return [*_ORDER, *(name for name in CLAIMS.names() if name not in _ORDER)]


def claim(
    name: str, *, says: str, section: str, rule: str, seeded: bool = True
) -> Callable[[Callable[["Study"], Finding]], Claim]:
    """Decorate what looks into a claim, to make the claim known."""

    def add(find: Callable[["Study"], Finding]) -> Claim:
        made = Claim(name=name, says=says, section=section, rule=rule, find=find, seeded=seeded)
        return CLAIMS.register(name)(made)

    return add


def judged(*, holds: bool, partly: bool = False) -> Verdict:
    """The verdict of a rule that is met as a whole, or in part, or not."""
    if holds:
        return "holds"
    return "holds partly" if partly else "does not hold here"


def interval(seeds: BySeed) -> dict[str, float]:
    """The mean of a figure with its 95 % interval over seeds and subjects.

    Args:
        seeds: for each seed the subjects' figures, the same subjects in the same order.

    Returns:
        `mean`, `lo`, `hi`, and the standard deviation of the seeds' means as `std_over_seeds` (0
        for one seed).
    """
    values = torch.tensor(seeds, dtype=torch.float64)
    found = bootstrap_seeds(values)
    spread = float(values.mean(dim=1).std()) if len(values) > 1 else 0.0
    return {"mean": found.mean, "lo": found.lo, "hi": found.hi, "std_over_seeds": spread}


def difference(first: BySeed, second: BySeed) -> dict[str, float]:
    """The paired difference of a figure between two cells of equal seeds and subjects."""
    pairs = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    return interval(pairs.tolist())


def by_seed(cells: Sequence[Mapping[str, Any]], figure: str = SIMILARITY) -> list[list[float]]:
    """A figure of each subject, for the cell of each seed."""
    return [list(cell[figure]) for cell in cells]


def materially(less: Mapping[str, float], of: Mapping[str, float]) -> bool:
    """Whether a difference is surely above 0, and at least a tenth of what it is a difference of.

    (With hundreds of adapters and several seeds, differences are sure that nobody would notice.)
    """
    return less["lo"] > 0 and less["mean"] >= 0.1 * of["mean"]


def text(row: Mapping[str, float]) -> str:
    """An interval in words."""
    return f"{row['mean']:.3f} ({row['lo']:.3f} to {row['hi']:.3f})"


def in_words(value: object) -> str:
    """A figure, an interval, or several by their names."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if not isinstance(value, Mapping):
        return str(value)
    if "lo" in value:
        return text(value)
    return "; ".join(f"{name} {in_words(part)}" for name, part in value.items())


def listed(values: Tensor) -> list[float]:
    """A vector as JSON numbers of six digits."""
    return [float(f"{value:.6g}") for value in values.tolist()]
