"""Figures as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lorasynth.core.atomic import atomic_file


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def bars(rows: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Lengths below and above the means of intervals, as matplotlib's error bars take them."""
    below = [row["mean"] - row["lo"] for row in rows]
    return [below, [row["hi"] - row["mean"] for row in rows]]
