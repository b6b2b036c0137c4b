"""The k-th smallest of M independent X_i = w_i + xi_i: its law and its moments.

P(X_(k) <= z) = P(PoissonBinomial(H(z - w_1), ..., H(z - w_M)) >= k), and the moments
are one-dimensional integrals of that CDF and of its survival function (both, so that no
tail is the difference of two numbers near 1). All lengths are in units of the noise
scale, and the origin is the k-th smallest w, so nothing overflows or cancels when the
noise is tiny. Systematic noise, whose X_i are dependent, is in `systematic`.
"""

from typing import NamedTuple

import numpy as np

from jaxmedian.noise.laws import Law
from jaxmedian.theory.arguments import Array
from jaxmedian.theory.numerics.poisson_binomial import count_tails
from jaxmedian.theory.numerics.quadrature import (
    ORDER,
    Panels,
    integrate,
    panels_between,
)

NEGLIGIBLE = 1e-19  # mass beyond which a tail is cut: far under one rounding of 1
_GRID = 33
_GRID_ROUNDS = 3
_PANELS_A_SIDE = 6  # the range is 9 to 20 standard deviations on each side
_TOLERANCE = 1e-13  # between a panel and its halves, of the width of the range
_MANY_PANELS, _LOW_ORDER = 64, 3  # many kinks make panels narrow: fewer nodes suffice


class Interval(NamedTuple):
    """Where the law of X_(k) lives, [C] each; the middle is near its median."""

    low: Array
    middle: Array
    high: Array


def tails(law: Law, w: Array, z: Array, rank: int) -> tuple[Array, Array]:
    """Computes P(X_(rank) <= z) and P(X_(rank) > z).

    Args:
      law: of the noise.
      w: [M, ...] centres, broadcast against z.
      z: any shape.
      rank: 1 <= rank <= M.

    Returns:
      Two arrays of the shape of ``z - w[0]``.
    """
    distance = np.broadcast_to(z, np.broadcast_shapes(z.shape, w.shape[1:])) - w
    flat = distance.reshape(len(w), -1)
    at_least, below = count_tails(law.cdf(flat), law.cdf(-flat), rank)
    return at_least.reshape(distance.shape[1:]), below.reshape(distance.shape[1:])


def reach(law: Law, num_workers: int) -> float:
    """Returns Q such that X_(k) is within Q of w_(k) up to negligible mass.

    If X_(k) <= w_(k) - Q, one of the M - k + 1 workers with w_i >= w_(k) has a noise
    below -Q; and the same upwards.
    """
    if np.isfinite(law.bound):
        return law.bound
    return -float(law.quantile(1e-3 * NEGLIGIBLE / num_workers))


def interval(law: Law, w: Array, rank: int) -> Interval:
    """Brackets the law of X_(rank) for w [M, C] with w_(rank) = 0."""
    edge = reach(law, len(w)) * np.ones(w.shape[1])
    low, high = -edge, edge
    for _ in range(_GRID_ROUNDS):
        grid = np.linspace(low, high, _GRID)  # [G, C]
        below, above = tails(law, w[:, None], grid, rank)
        first = np.maximum((below < NEGLIGIBLE).sum(axis=0) - 1, 0)
        last = np.minimum(_GRID - (above < NEGLIGIBLE).sum(axis=0), _GRID - 1)
        middle = np.clip((below < above).sum(axis=0), first + 1, last - 1)
        columns = np.arange(w.shape[1])
        low, high = grid[first, columns], grid[last, columns]
    return Interval(low, grid[middle, columns], high)


def kinks_between(law: Law, w: Array, low: float, high: float) -> Array:
    """Returns the points in (low, high) where some H(z - w_i) is not smooth, w [M]."""
    points = (w[:, None] + np.asarray(law.kinks)).ravel()
    return points[(points > low) & (points < high)]


def moments(law: Law, w: Array, rank: int) -> tuple[Array, Array]:
    """Computes the mean and the variance of X_(rank).

    E X - c = int_c^inf S - int_-inf^c F and E (X - c)^2 = 2 int |z - c| (S or F), with
    c near the median of the law.

    Args:
      law: of the noise.
      w: [M, C] centres with w_(rank) = 0 in each column.
      rank: 1 <= rank <= M.

    Returns:
      Mean [C], measured from w_(rank), and variance [C], in units of the noise scale.
    """
    where = interval(law, w, rank)
    panels = moment_panels(law, w, where)

    def integrand(z: Array, owner: np.ndarray) -> Array:
        below, above = tails(law, w[:, owner, None], z, rank)
        from_middle = z - where.middle[owner, None]
        tail = np.where(from_middle < 0, below, above)
        return np.stack([np.copysign(tail, from_middle), np.abs(from_middle) * tail])

    width = where.high - where.low
    order = _LOW_ORDER if panels.left.size > _MANY_PANELS * w.shape[1] else ORDER
    first, second = integrate(
        integrand, panels, _TOLERANCE * np.stack([width, width**2]), order
    )
    return where.middle + first, 2 * second - first**2


def moment_panels(law: Law, w: Array, where: Interval) -> Panels:
    """Cuts each interval at its middle, at the kinks, and into a few equal parts."""
    left = np.linspace(where.low, where.middle, _PANELS_A_SIDE + 1)
    right = np.linspace(where.middle, where.high, _PANELS_A_SIDE + 1)
    edges = np.concatenate([left, right]).T  # [C, K]
    if not law.kinks:
        return panels_between(edges, np.arange(len(edges)))
    found = []
    for c, row in enumerate(edges):
        kinks = kinks_between(law, w[:, c], row[0], row[-1])
        found.append(panels_between(np.unique(np.append(row, kinks)), c))
    return Panels(*map(np.concatenate, zip(*found, strict=True)))
