"""Figures as files: one way to draw curves with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.figure import Figure

from lorasynth.core.atomic import atomic_file


class Line(NamedTuple):
    """One curve.

    Attributes:
        label: in the legend.
        x: where its points are.
        y: values, or intervals with `mean`, `lo` and `hi`, which are drawn as error bars.
        style: of matplotlib.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float] | Sequence[Mapping[str, float]]
    style: str = "o-"


def curves(
    panels: Mapping[str, Sequence[Line]],
    x: str,
    y: str = "",
    *,
    log: bool = False,
) -> Figure:
    """Curves in panels side by side, with one legend below.

    Args:
        panels: title -> lines, of the same labels in each panel.
        x: what the horizontal axis shows.
        y: what the vertical axis shows.
        log: the horizontal axis is logarithmic.
    """
    rows = -(-max(map(len, panels.values())) // (2 * len(panels)))
    size = (4.2 * len(panels) + 2, 3.4 + 0.22 * rows)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        if len(lines) > 10:  # more than the usual colours
            axes.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]
        for line in lines:
            intervals = [point for point in line.y if isinstance(point, Mapping)]
            points = [p["mean"] if isinstance(p, Mapping) else p for p in line.y]
            spans = bars(intervals) if intervals else None
            axes.errorbar(
                line.x, points, spans, fmt=line.style, label=line.label, capsize=2, linewidth=1,
                markersize=3,
            )  # fmt: skip
        axes.set(xlabel=x, ylabel=y, title=title.replace("_", " "))
        if log:
            axes.set_xscale("log")
        axes.grid(linewidth=0.3)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2 * len(panels), fontsize=7)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def bars(rows: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Lengths below and above the means of intervals, as matplotlib's error bars take them."""
    below = [max(row["mean"] - row["lo"], 0.0) for row in rows]
    return [below, [max(row["hi"] - row["mean"], 0.0) for row in rows]]
