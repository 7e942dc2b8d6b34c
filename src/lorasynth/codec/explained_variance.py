"""How much of the variance the first components hold: the paper's Figure 3."""

from pathlib import Path

from matplotlib.figure import Figure

from lorasynth.codec import PCA
from lorasynth.core.figures import save_figure

#: Shares that are marked.
_MARKS = (0.5, 0.9, 0.95)


def draw_explained_variance(codec: PCA, path: Path) -> None:
    """Draw the cumulative share of variance by number of components, as a PNG."""
    shares = codec.report["explained_variance"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(shares) + 1), shares)
    for mark in _MARKS:
        if mark <= shares[-1]:
            needed = next(number for number, share in enumerate(shares, 1) if share >= mark)
            axes.plot(needed, shares[needed - 1], "o", color="C1")
            axes.annotate(
                f"{mark:.0%}: {needed:,}",
                (needed, shares[needed - 1]),
                xytext=(6, -12),
                textcoords="offset points",
            )
    axes.set(
        xlabel="components",
        ylabel="share of the variance",
        title=f"{codec.width:,} parameters",
        xlim=(0, len(shares)),
        ylim=(0, 1.02),
    )
    axes.grid(alpha=0.3)
    save_figure(figure, path)
