"""What is found about one claim of the paper."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lorasynth.core.registry import Registry
from lorasynth.evaluation.bootstrap import bootstrap_seeds

if TYPE_CHECKING:
    from lorasynth.studies.reproduce.study import Study

Verdict = Literal["holds", "holds partly", "does not hold here"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A verdict and what it rests on.

    Attributes:
        claim: in our words.
        section: of the paper.
        verdict: by the rule that the claim's module states.
        why: one or two sentences with the figures that decided.
        values: all figures, as JSON values.
        seeds: of the trainings behind them; none where nothing that was trained was compared.
        tables: title -> rows of equal keys, for the report.
        figures: name -> image.
        rule: of the verdict, in words.
    """

    claim: str
    section: str
    verdict: Verdict
    why: str
    values: Mapping[str, Any]
    seeds: Sequence[int] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    rule: str = ""


#: Claims by name; each looks into one, and the report has them in the paper's order.
Claim = Callable[["Study"], Finding]
CLAIMS: Registry[Claim] = Registry("claim", "lorasynth.claims")


def look_into(claim: Claim, study: "Study") -> Finding:
    """What is found about a claim, with the rule of its verdict, which its docstring states."""
    return replace(claim(study), rule=inspect.getdoc(claim) or "")


def judged(*, holds: bool, partly: bool = False) -> Verdict:
    """The verdict of a rule that is met as a whole, or in part, or not."""
    if holds:
        return "holds"
    return "holds partly" if partly else "does not hold here"


def interval(seeds: Sequence[Sequence[float]]) -> dict[str, float]:
    """A figure over seeds and subjects.

    Args:
        seeds: for each seed the subjects' figures, the same subjects in the same order.

    Returns:
        Its mean with the 95 % interval over seeds and subjects, and how far the seeds' means spread
        (standard deviation; 0 for one seed).
    """
    values = torch.tensor(seeds, dtype=torch.float64)
    found = bootstrap_seeds(values)
    spread = float(values.mean(dim=1).std()) if len(values) > 1 else 0.0
    return {"mean": found.mean, "lo": found.lo, "hi": found.hi, "spread_over_seeds": spread}


def difference(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> dict[str, float]:
    """The paired difference of a figure between two cells of equal seeds and subjects."""
    pairs = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    return interval(pairs.tolist())


def materially(less: Mapping[str, float], of: Mapping[str, float]) -> bool:
    """Whether a difference is surely above 0, and at least a tenth of what it is a difference of.

    (With hundreds of adapters and several seeds, differences are sure that nobody would notice.)
    """
    return less["lo"] > 0 and less["mean"] >= 0.1 * of["mean"]


def text(row: Mapping[str, float], digits: int = 3) -> str:
    """An interval in words."""
    return f"{row['mean']:.{digits}f} ({row['lo']:.{digits}f} to {row['hi']:.{digits}f})"


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a table: intervals in words, lists left out."""
    shown = {name: value for name, value in row.items() if not isinstance(value, list)}
    return {n: text(v) if isinstance(v, dict) and "lo" in v else v for n, v in shown.items()}


def spreads(seeds: Sequence[Sequence[float]]) -> list[float]:
    """How far a figure of each subject spreads over the seeds (standard deviation)."""
    return listed(torch.tensor(seeds, dtype=torch.float64).std(dim=0))


def listed(values: Tensor) -> list[float]:
    """A vector as JSON numbers of six digits."""
    return [float(f"{value:.6g}") for value in values.tolist()]
