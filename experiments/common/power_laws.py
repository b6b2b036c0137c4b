"""The exponent of a power law: y ~ x^slope is a straight line in logarithms."""

import numpy as np
from numpy.typing import ArrayLike


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
