"""Curves of training, over seeds (the paper's Figures 5 and 6)."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure

Curve = Sequence[Mapping[str, float]]


def draw_curves(cells: Mapping[str, Sequence[Curve]], names: Sequence[str]) -> Figure:
    """One panel for each figure of the curve; a line for each cell, with the range of its seeds."""
    per_row = len(names)
    lines = -(-len(cells) // per_row)
    figure = Figure(figsize=(4 * len(names), 3.2 + 0.2 * lines), dpi=130, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for label, seeds in cells.items():
            steps = [row["step"] for row in seeds[0]]
            values = torch.tensor([[row[name] for row in curve] for curve in seeds])
            axes.plot(steps, values.mean(dim=0), label=label, linewidth=1)
            axes.fill_between(steps, values.amin(dim=0), values.amax(dim=0), alpha=0.2)
        axes.set(xlabel="step", title=name.replace("_", " "))
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=per_row, fontsize=7)
    return figure
