"""How the median of skewed values nears their mean as noise grows, in powers of b."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

import jaxmedian as jm
from experiments.common.harness.results import Claim

LAWS = tuple(jm.noise.LAWS)


def check_skewed(name: str, values: Sequence[float], number: int) -> None:
    """Checks the values of an experiment about the bias of the median.

    Raises:
      ValueError: if they are not so many, or symmetric about their mean.

    >>> check_skewed("values", (1.0, 2.0, 10.0), 3)
    """
    deviations = np.asarray(values) - np.mean(values)
    if len(values) != number or np.mean(deviations**3) == 0:
        raise ValueError(
            f"`{name}` must hold {number} values that are not symmetric about their "
            f"mean, where noise has nothing to cure; got {tuple(values)}."
        )


def draw_medians(
    values: Sequence[float], noise: jm.noise.Noise, number: int, key: jax.Array
) -> np.ndarray:
    """Draws ``number`` noisy medians of the same values, in float64."""
    rows = jnp.tile(jnp.asarray(values, jnp.float32)[:, None], (1, number))
    return np.asarray(_draw(noise.law, rows, noise.scale, key), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _draw(law: str, rows: jax.Array, scale: jax.Array, key: jax.Array) -> jax.Array:
    return jm.perturbed_median(rows, jm.noise.Noise(law, scale), key)


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
        ", ".join(f"{value:.4f} {law}" for law, value in measured.items()),
        all(abs(measured[law] - orders[law]) <= tolerance for law in orders),
        paper=paper,
        reason=f"for b from {greatest_scale / 10:g} to {greatest_scale:g} spreads",
    )
