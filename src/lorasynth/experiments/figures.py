"""Figures as files."""

from pathlib import Path

from matplotlib.figure import Figure

from lorasynth.atomic import atomic_file


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
