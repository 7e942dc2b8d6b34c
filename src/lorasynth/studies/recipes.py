"""Many recipes on the same subjects: likeness against repeatability, as figures and an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from lorasynth.collect import AdapterPredictor as Anchor
from lorasynth.core.config import to_dict
from lorasynth.core.figures import save_figure
from lorasynth.engine.recipe import Recipe
from lorasynth.evaluation.trial import Instruments, TrialConfig
from lorasynth.studies.repeatability import repeatability_report
from lorasynth.studies.reports import kept_report


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe to try.

    Attributes:
        recipe: how each adapter is trained.
        anchor: what training starts from; None: as the recipe says.
    """

    recipe: Recipe
    anchor: Anchor | None = None


def compare_recipes(
    instruments: Instruments,
    candidates: Mapping[str, Candidate],
    config: TrialConfig,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """Measure every candidate as `repeatability_report` does; name -> report.

    Each report is a file of `folder`; a candidate whose report is there is not measured again.

    Args:
        instruments: what makes images, and what judges them.
        candidates: name -> what to try.
        config: the subjects, the same for all.
        folder: for the reports.
    """
    reports = {}
    for name, candidate in candidates.items():
        asked = {
            "recipe": to_dict(candidate.recipe),
            "anchor": None if candidate.anchor is None else candidate.anchor.fingerprint,
            "parts": instruments.fingerprints,
            "config": to_dict(config),
        }
        measure = partial(
            repeatability_report, instruments, candidate.recipe, config, candidate.anchor
        )
        reports[name] = kept_report(folder / f"{name}.json", asked, f"recipe {name}", measure)
    return reports


def draw_recipes(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write likeness (with its interval) against repeatability as a PNG; anchored ones filled."""
    figure = Figure(figsize=(8.5, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab20"]
    for i, (name, report) in enumerate(reports.items()):
        x, y = report["same"], report["likeness"]
        axes.errorbar(
            x,
            y,
            yerr=[[y - report["lo"]], [report["hi"] - y]],
            fmt="o",
            color=colours(i % colours.N),
            markerfacecolor=None if report["anchor"] is not None else "white",
            capsize=2,
            linewidth=0.8,
            label=name,
        )
    [*_, last] = reports.values()
    axes.axhline(last["real"], color="grey", linewidth=0.8, linestyle="dashed")
    axes.annotate(
        "two real images",
        (0.01, last["real"]),
        xytext=(0, 3),
        fontsize=7,
        textcoords="offset points",
    )
    axes.set(
        xlabel="repeatability: cosine of ΔW, one subject trained twice",
        ylabel="likeness",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
    )
    axes.set_title("filled: trained from what a pretrained synthesizer predicts", fontsize=8)
    figure.legend(loc="outside right upper", fontsize=7)
    save_figure(figure, path)
