"""Curves of a panel can be told apart, and their names cover none of them."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from experiments.common.harness import plots

CURVES = {
    f"curve {number}, with a rather long name": {
        "step": np.arange(3),
        "loss": np.full(3, 1.0 + number),
        "loss_error": np.ones(3),
    }
    for number in range(19)
}


def test_no_two_curves_of_a_panel_look_alike():
    _, (left, right) = plots.panels(2)
    plots.draw_curves(left, CURVES, "loss")
    for name, curve in CURVES.items():
        plots.draw_band(right, curve, "loss", name)
    for panel in (left, right):
        looks = {(line.get_color(), line.get_linestyle()) for line in panel.lines}
        assert len(looks) == len(CURVES)


def test_the_legend_of_many_curves_is_whole_and_beside_all_panels():
    with plots.look():
        figure, axes = plots.panels(2)
        plots.draw_curves(axes[1], CURVES, "loss")
        plots.legend_outside(figure, axes[1])
        figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(CURVES)
    box, page = legend.get_window_extent(), figure.bbox
    assert all(box.x0 >= panel.get_window_extent().x1 for panel in axes)
    assert page.y0 <= box.y0 < box.y1 <= page.y1
    assert box.x1 <= page.x1
