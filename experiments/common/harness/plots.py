"""One look for all figures."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_LOOK: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}
# Curves of a panel: ten colours, then the same ones dashed, dash-dotted and dotted.
STYLES = cycler(linestyle=["-", "--", "-.", ":"]) * cycler(
    color=matplotlib.color_sequences["tab10"]
)


def look() -> AbstractContextManager[None]:
    """Returns the context in which figures of one look are drawn."""
    return matplotlib.rc_context(_LOOK)


def use_look() -> None:
    """Draws all later figures of this process in one look: for notebooks."""
    matplotlib.rcParams.update(_LOOK)


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """Makes a figure of panels side by side, without any display."""
    figure = Figure(figsize=(4.2 * number, 3.2), layout="constrained")
    axes = list(figure.subplots(1, number, squeeze=False)[0])
    for panel in axes:
        panel.set_prop_cycle(STYLES)
    return figure, axes


def legend_outside(figure: Figure, axes: Axes) -> None:
    """Names the curves of a panel beside all panels, where none is covered."""
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside right upper",
        fontsize=7,
        labelspacing=0.3,
        handlelength=3,
    )


def draw_curves(
    axes: Axes,
    curves: Mapping[str, Mapping[str, np.ndarray]],
    metric: str,
    against: str = "step",
    **style: Any,
) -> None:
    """Draws one metric of every curve that has it, against the step or another."""
    for name, curve in curves.items():
        if metric in curve:
            axes.plot(curve[against], curve[metric], label=name, **style)
    axes.set_xlabel(against)


def draw_band(
    axes: Axes,
    curve: Mapping[str, np.ndarray],
    metric: str,
    label: str,
    against: str = "step",
) -> None:
    """Draws a metric with a band of one standard error, "<metric>_error", around it."""
    middle, error = curve[metric], curve[f"{metric}_error"]
    (line,) = axes.plot(curve[against], middle, label=label)
    axes.fill_between(
        curve[against],
        middle - error,
        middle + error,
        color=line.get_color(),
        alpha=0.2,
        linewidth=0,
    )
    axes.set_xlabel(against)


def heatmaps(
    down: int, across: int, num_rows: int, num_columns: int
) -> tuple[Figure, list[Axes]]:
    """Makes a figure of panels that have room for tables of numbers."""
    size = ((2.2 + 0.36 * num_columns) * across, (1.9 + 0.18 * num_rows) * down)
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(down, across, squeeze=False).ravel())


def draw_heatmap(
    axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Draws numbers from 0 to 1, ``[rows, columns]``, as colours; NaN stays empty."""
    axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{value:.2f}".removeprefix("0")
            colour = "white" if value < 0.6 else "black"
            axes.text(
                column, row, text, ha="center", va="center", color=colour, fontsize=6
            )
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
