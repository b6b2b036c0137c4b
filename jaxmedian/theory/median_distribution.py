"""Distribution function and density of the noisy median, for one middle value.

P(median <= t) is the chance that at least n + 1 workers lie under t: a Poisson-binomial
tail with p_i = H((t - u_i) / b) under independent noise, a count of arcs or hits under
systematic noise. For odd M, and for the lower or the upper median of an even M; the
midpoint has no such formula. Moments are in `median_law`.
"""

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import Noise
from jaxmedian.noise.laws import LAWS, Law
from jaxmedian.theory.arguments import (
    Array,
    Result,
    middle_ranks,
    scale_of,
    shaped,
    standardised,
    worker_values,
)
from jaxmedian.theory.numerics import order_statistics, systematic
from jaxmedian.theory.numerics.poisson_binomial import all_but_one


def median_cdf(
    values: npt.ArrayLike, noise: Noise, t: npt.ArrayLike, even: str = "midpoint"
) -> Result:
    """Computes P(median <= t) of the noisy median.

    Args:
      values: u, [M] or [M, ...], worker axis first.
      noise: as in `median_moments`; systematic noise is exact here for every M.
      t: where; a number or an array that broadcasts against the shape of the values
        without their worker axis.
      even: "lower" or "upper" if M is even; the midpoint has no such formula.

    Returns:
      Probabilities: a float for values [M] and a number t, else a float64 array.

    Raises:
      ValueError, TypeError: as in `median_moments`, and for the midpoint of an even M.

    Reference: Theorem 4 of the paper studies this law; the O(M^2) recursion is ours.

    >>> from jaxmedian import noise
    >>> print(f"{1 - median_cdf([1, 2, 10], noise.gaussian(5.0), 0.0):.10f}")
    0.8442074808
    """
    law, u, t, scale, rank, shape = _at_thresholds(values, noise, t, even)
    if scale == 0:
        return shaped(t >= np.sort(u, axis=0)[rank - 1], shape)
    z = standardised(t - u, scale)
    if noise.coupling == "systematic":
        probabilities = [systematic.at_least(p, rank) for p in law.cdf(z).T]
        return shaped(probabilities, shape)
    below, _ = order_statistics.tails(law, np.zeros_like(z), z, rank)
    return shaped(below, shape)


def median_density(
    values: npt.ArrayLike, noise: Noise, t: npt.ArrayLike, even: str = "midpoint"
) -> Result:
    """Computes the density of the noisy median at t.

    f(t) = sum_i h((t - u_i) / b) / b * P(exactly rank - 1 of the other workers <= t).

    Args:
      values: u, [M] or [M, ...], worker axis first.
      noise: as in `median_cdf`, with a scale > 0.
      t: as in `median_cdf`.
      even: as in `median_cdf`.

    Returns:
      Densities per unit of the values: a float for values [M] and a number t, else a
      float64 array.

    Raises:
      ValueError, TypeError: as in `median_cdf`, and for scale 0, which has no density.

    Reference: the density whose antisymmetric part Theorem 4 bounds.

    >>> from jaxmedian import noise
    >>> print(f"{median_density([1, 2, 10], noise.gaussian(5.0), 4.0):.6f}")
    0.107618
    """
    law, u, t, scale, rank, shape = _at_thresholds(values, noise, t, even)
    if scale == 0:
        raise ValueError(
            "`noise.scale` must be > 0: the median without noise has no density. Use "
            "`median_moments`."
        )
    z = standardised(t - u, scale)
    with np.errstate(over="ignore"):
        slopes = law.pdf(z)  # in noise scales: divided by b in the end, 0 stays 0
    if noise.coupling == "systematic":
        density = [
            systematic.density(p, slope, rank)
            for p, slope in zip(law.cdf(z).T, slopes.T, strict=True)
        ]
        return shaped(standardised(np.array(density), scale), shape)
    others = all_but_one(law.cdf(z), law.cdf(-z), rank - 1)
    return shaped(standardised((slopes * others).sum(axis=0), scale), shape)


def _at_thresholds(
    values: npt.ArrayLike, noise: Noise, t: npt.ArrayLike, even: str
) -> tuple[Law, Array, Array, float, int, tuple[int, ...]]:
    """Checks the arguments and spreads values and thresholds to [M, N] and [N]."""
    u, shape = worker_values(values)
    ranks = middle_ranks(len(u), even)
    scale = scale_of(noise, u)
    if len(ranks) > 1:
        raise ValueError(
            f"`even` must be 'lower' or 'upper' for {len(u)} workers: the law of the "
            "midpoint of the two middle values has no closed form here. Use "
            "`median_moments` for its mean and variance."
        )
    thresholds = np.asarray(t)
    if thresholds.dtype.kind not in "iuf":
        raise TypeError(f"`t` must hold real numbers; got {thresholds.dtype}.")
    if np.isnan(thresholds).any():
        raise ValueError("`t` must not be NaN.")
    try:
        result = np.broadcast_shapes(thresholds.shape, shape)
    except ValueError as error:
        raise ValueError(
            f"`t` must broadcast against the shape {shape} of the values without their "
            f"worker axis; got {thresholds.shape}. For a grid, use [points, 1]."
        ) from error
    thresholds = np.broadcast_to(thresholds.astype(np.float64), result).ravel()
    u = u.reshape(len(u), *[1] * (len(result) - len(shape)), *shape)
    u = np.broadcast_to(u, (len(u), *result)).reshape(len(u), -1)
    return LAWS[noise.law], u, thresholds, scale, ranks[0], result
