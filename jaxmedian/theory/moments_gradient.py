"""How mean and variance of the noisy median change with the values and with b.

Moving u_i by du moves the median by du exactly while worker i is the median, so

    dE/du_i = P(i is the median),    dV/du_i = 2 E[(median - E) 1{i is the median}],

both integrals of f_i(x) = h((x - u_i) / b) / b P(exactly rank - 1 of the others <= x).
With the midpoint rule worker i counts half for each of the two middle values. Moments
are homogeneous in (u, b), which gives the derivatives with respect to b for nothing.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import Noise
from jaxmedian.noise.laws import LAWS, Law
from jaxmedian.theory import median_law
from jaxmedian.theory.arguments import (
    Array,
    Result,
    middle_ranks,
    scale_of,
    shaped,
    standardised,
    worker_values,
)
from jaxmedian.theory.numerics import middle_pair, order_statistics
from jaxmedian.theory.numerics.exact_regime import law_known_from
from jaxmedian.theory.numerics.poisson_binomial import all_but_one
from jaxmedian.theory.numerics.quadrature import gauss_legendre, integrate
from jaxmedian.theory.numerics.systematic_median import (
    is_exact,
    middle_workers,
    share_of_variance,
)

_TOLERANCE = 1e-13


class MomentsGradient(NamedTuple):
    """Derivatives of the mean and the variance of the noisy median.

    Attributes:
      mean_by_values: dE/du, the shape of the values; sums to 1 over the workers.
      variance_by_values: dV/du, the shape of the values; sums to 0 over the workers.
      mean_by_scale: dE/db, the shape of the values without the worker axis.
      variance_by_scale: dV/db, likewise.
    """

    mean_by_values: Array
    variance_by_values: Array
    mean_by_scale: Result
    variance_by_scale: Result


def median_moments_gradient(
    values: npt.ArrayLike, noise: Noise, even: str = "midpoint"
) -> MomentsGradient:
    """Computes the derivatives of `median_moments`, by formula and not by differences.

    b dE/db = E - sum_i u_i dE/du_i and b dV/db = 2 V - sum_i u_i dV/du_i, since E and V
    are homogeneous of degree 1 and 2 in (u, b) together. Where b is below the spread, E
    and u_i are taken from the noise-free median, or all digits would cancel.

    Args:
      values: u, [M] or [M, ...], worker axis first.
      noise: as in `median_moments`, with a scale > 0; a `relative` scale is resolved on
        the values and then held fixed.
      even: as in `median_moments`.

    Returns:
      A `MomentsGradient`.

    Raises:
      ValueError, TypeError: as in `median_moments`, and for scale 0, where the median
        has a kink wherever two values meet.

    Reference: ours.

    >>> from jaxmedian import noise
    >>> gradient = median_moments_gradient([1, 2, 10], noise.gaussian(5.0))
    >>> print(gradient.mean_by_values.round(6))
    [0.383948 0.463771 0.152281]
    """
    u, shape = worker_values(values)
    ranks = middle_ranks(len(u), even)
    scale = scale_of(noise, u)
    if scale == 0:
        raise ValueError(
            "`noise.scale` must be > 0: the noise-free median is not differentiable "
            "where values meet."
        )
    law = LAWS[noise.law]
    fixed = Noise(noise.law, scale, noise.coupling)
    bias = np.asarray(median_law.median_bias(u, fixed, even))
    _, variance = median_law.median_moments(u, fixed, even)
    deviations = u - u.mean(axis=0)
    by_column = _systematic if noise.coupling == "systematic" else _independent
    columns = [by_column(law, column, scale, ranks) for column in deviations.T]
    shares, slopes, drifts = zip(*columns, strict=True)
    of_mean, of_variance = np.stack(shares, axis=1), np.stack(slopes, axis=1)
    by_scale = (bias - (deviations * of_mean).sum(axis=0)) / scale
    by_scale = np.where(scale < np.ptp(u, axis=0), drifts, by_scale)
    return MomentsGradient(
        of_mean.reshape(len(u), *shape),
        of_variance.reshape(len(u), *shape),
        shaped(by_scale, shape),
        shaped((2 * variance - (deviations * of_variance).sum(axis=0)) / scale, shape),
    )


def _systematic(
    law: Law, u: Array, scale: float, ranks: tuple[int, ...]
) -> tuple[Array, Array, float]:
    """Reads dE/du, dV/du and dE/db off who is in the middle, for u [M] of mean 0."""
    num_workers = len(u)
    known_from = law_known_from(law, num_workers, float(np.ptp(u)))
    if is_exact(scale, known_from, ranks, num_workers):
        share = np.full(num_workers, 1 / num_workers)
        return share, 2 / num_workers * share_of_variance(num_workers) * u, 0.0
    share, moment, mean, own = np.zeros(num_workers), np.zeros(num_workers), 0.0, 0.0
    noise_free = np.sort(u)[[rank - 1 for rank in ranks]]
    offsets = standardised(u[:, None] - noise_free, scale)
    for middle in middle_workers(law, u, scale, ranks, None):
        value = middle.height.mean(axis=2)
        mean += float((middle.weight * value).sum())
        for r in range(len(ranks)):
            worker = middle.worker[:, r]
            weight = middle.weight.sum(axis=1) / len(ranks)
            np.add.at(share, worker, weight)
            own += float((weight * offsets[worker, r]).sum())
            weighted = (middle.weight * value).sum(axis=1) / len(ranks)
            np.add.at(moment, worker, weighted)
    return share, 2 * scale * (moment - mean * share), mean - own


def _independent(
    law: Law, u: Array, scale: float, ranks: tuple[int, ...]
) -> tuple[Array, Array, float]:
    """Integrates f_i to dE/du, dV/du and dE/db, for one coordinate u [M]."""
    rows = [_one_rank(law, u, scale, rank) for rank in ranks]
    share = np.mean([row[0] for row in rows], axis=0)
    by_scale = float(np.mean([row[2] for row in rows]))
    if len(ranks) == 1:
        return share, 2 * scale * rows[0][1], by_scale
    crossed = _cross_terms(law, u, scale)
    return share, 0.5 * scale * (rows[0][1] + rows[1][1] + crossed), by_scale


def _one_rank(
    law: Law, u: Array, scale: float, rank: int
) -> tuple[Array, Array, float]:
    """Integrates f_i of one rank, with lengths in noise scales.

    Returns:
      P(X_i = X_(rank)); E[(X_i - E X_(rank)) 1{X_i = X_(rank)}]; and dE/db, the mean of
      the noise that X_(rank) holds: E X_(rank) - sum_i w_i P(X_i = X_(rank)).
    """
    w = _centred(u, scale, rank)[:, None]
    where = order_statistics.interval(law, w, rank)
    middle = float(where.middle[0])

    def integrand(z: Array, owner: np.ndarray) -> Array:
        del owner
        own = _own_density(law, w[:, 0], z, rank)
        return np.concatenate([own, (z - middle) * own])

    width = float(where.high[0] - where.low[0])
    tolerance = _TOLERANCE * np.repeat([1.0, width], len(u))[:, None]
    panels = order_statistics.moment_panels(law, w, where)
    share, moment = integrate(integrand, panels, tolerance)[:, 0].reshape(2, -1)
    held = w[:, 0][share > 0] @ share[share > 0]
    return share, moment - share * moment.sum(), float(middle + moment.sum() - held)


def _own_density(law: Law, w: Array, z: Array, rank: int) -> Array:
    """Computes f_i(z), [M, ...], for nodes z of any shape."""
    distance = z.ravel() - w[:, None]
    with np.errstate(over="ignore"):
        slope = law.pdf(distance)
    others = all_but_one(law.cdf(distance), law.cdf(-distance), rank - 1)
    return (slope * others).reshape(len(w), *z.shape)


def _centred(u: Array, scale: float, rank: int) -> Array:
    return standardised(u - np.sort(u)[rank - 1], scale)


def _cross_terms(law: Law, u: Array, scale: float) -> Array:
    """Computes E[(B - E B) 1{A = X_i}] + E[(A - E A) 1{B = X_i}], over b, for even M.

    E[(B - E B) 1{A = X_i}] = int P(B > y, A = X_i) dy - (E B - b_low) P(A = X_i) over
    the range of B, where P(B > y, A = X_i) is the integral of h(x - w_i) [z^(m-1)]
    prod_(j != i) (z H(x - w_j) + H(w_j - y)) over x < y, and of f_i over x > y. The
    second term is its mirror image.
    """
    rank = len(u) // 2
    of_a = _upper_given_lower(law, _centred(u, scale, rank))
    of_b = _upper_given_lower(law, _centred(-u, scale, rank))
    return of_a - of_b


def _upper_given_lower(law: Law, w: Array) -> Array:
    """Computes E[(B - E B) 1{A = X_i}] for centres w [M] with the lower middle at 0."""
    rank = len(w) // 2
    if middle_pair.are_apart(law, w, rank):
        return np.zeros(len(w))
    upper = np.sort(w)[rank]
    columns = w[:, None]
    mean_a, _ = order_statistics.moments(law, columns, rank)
    above_upper, _ = order_statistics.moments(law, columns - upper, rank + 1)
    mean_b = float(above_upper[0] + upper)
    grid = middle_pair.panel_grid(law, w, mean_b - float(mean_a[0]), rank)
    pairs = middle_pair.ordered_pairs(law, w, grid)
    distance = pairs.nodes - columns
    below, above = law.cdf(distance), law.cdf(-distance)
    with np.errstate(over="ignore"):
        slope = law.pdf(distance)
    total = np.zeros(len(w))
    for part in middle_pair.chunks(len(pairs.x), len(w)):
        x, y = pairs.x[part], pairs.y[part]
        others = all_but_one(below[:, x], above[:, y], rank - 1)
        total += (slope[:, x] * others) @ pairs.weight[part]
    low, high = grid.edges[:-1][grid.of_b][0], grid.edges[1:][grid.of_b][-1]
    left, right = grid.edges[:-1][grid.of_a], grid.edges[1:][grid.of_a]
    nodes, weights = gauss_legendre(left, right, grid.order)
    mass = _own_density(law, w, nodes, rank) * weights
    total += (mass * (np.clip(nodes, low, high) - low)).sum(axis=(1, 2))
    return total - (mean_b - low) * mass.sum(axis=(1, 2))
