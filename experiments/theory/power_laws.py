"""The exponent of a power law: y ~ x^slope is a straight line in logarithms."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from experiments.common.harness.claims import Claim


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Fits log|y| = slope log x + constant by least squares.

    Args:
      x: [N] positive points, at least two different ones.
      y: [N] values of one sign, none of them 0.

    Returns:
      The slope.

    Raises:
      ValueError: if the logarithms do not exist, or fewer than two points differ.

    >>> round(slope([1.0, 2.0, 4.0], [-8.0, -2.0, -0.5]), 12)
    -2.0
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not (x > 0).all() or not ((y > 0).all() or (y < 0).all()):
        raise ValueError("`x` must be positive, and `y` of one sign and never 0.")
    if np.unique(x).size < 2:
        raise ValueError("`x` needs at least two different points for a slope.")
    return float(np.polyfit(np.log(x), np.log(np.abs(y)), 1)[0])


def slopes_claim(
    statement: str,
    paper: str,
    curves: Mapping[str, Mapping[str, np.ndarray]],
    metric: str,
    orders: Mapping[str, int],
    *,
    greatest_scale: float,
    tolerance: float,
) -> Claim:
    """Judges the slopes of a metric against "b / spread" over the last decade of b.

    Args:
      statement: what falls with b.
      paper: the paper's order.
      curves: law -> a curve with "b / spread" and the metric.
      metric: its name.
      orders: law -> the slope expected.
      greatest_scale: the largest b, in spreads.
      tolerance: of each slope.
    """
    measured = {}
    for law, curve in curves.items():
        last = curve["b / spread"] >= 0.0999 * greatest_scale
        measured[law] = slope(curve["b / spread"][last], curve[metric][last])
    expected = ", ".join(f"{order} {law}" for law, order in orders.items())
    return Claim(
        f"{statement}: {expected}",
        paper,
        ", ".join(f"{value:.4f} {law}" for law, value in measured.items()),
        all(abs(measured[law] - orders[law]) <= tolerance for law in orders),
        f"for b from {greatest_scale / 10:g} to {greatest_scale:g} spreads",
    )
