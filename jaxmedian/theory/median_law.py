"""Mean, bias and variance of the noisy median, exactly.

median_i(u_i + b xi_i) for given worker values u and noise b * xi, by the
Poisson-binomial law of how many workers lie under a threshold. This file chooses the
way of computing: `order_statistics` and `middle_pair` for independent noise,
`large_noise` for the bias when b exceeds the spread, `systematic_median` for systematic
noise, sorting for scale 0. The whole law is in `median_distribution`.
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
from jaxmedian.theory.numerics import (
    large_noise,
    middle_pair,
    order_statistics,
    systematic,
    systematic_median,
)

_MOST_EVEN_WORKERS = 200
_NODES_A_COORDINATE = 500  # evaluated at once, to size the blocks of coordinates
_BLOCK = 2**22


def median_moments(
    values: npt.ArrayLike,
    noise: Noise,
    even: str = "midpoint",
    *,
    permutation: npt.ArrayLike | None = None,
) -> tuple[Result, Result]:
    """Computes the exact mean and variance of the noisy median, coordinate-wise.

    E = c + int_c^inf P(median > x) dx - int_-inf^c P(median <= x) dx, and likewise for
    the variance, with P(median <= x) = P(PoissonBinomial(p_1..p_M) >= n + 1) and p_i =
    H((x - u_i) / b). The midpoint of an even number of workers adds the covariance of
    the two middle values.

    Args:
      values: u, [M] or [M, ...], worker axis first.
      noise: law, scale (a number, or `relative`, resolved on the values) and coupling.
      even: which median an even M has: "midpoint", "lower" or "upper".
      permutation: systematic noise only: [M], the slot of each worker; None averages
        over all permutations, as in training.

    Returns:
      (mean, variance): floats for values [M], else float64 arrays without the worker
      axis. Scale 0 gives the noise-free median and variance 0.

    Raises:
      ValueError: for empty, NaN or infinite values, a negative scale, an unknown rule;
        for the midpoint of more than 200 workers; for systematic noise, more than 8
        workers and no permutation, unless b is in the exact regime (`unbiased_scale`).
      TypeError: for values that are no numbers, or a scale that is a schedule.

    Reference: the law is the paper's setting of Theorem 4; this evaluation is ours.

    >>> from jaxmedian import noise
    >>> mean, variance = median_moments([1, 2, 10], noise.gaussian(5.0))
    >>> print(f"{mean:.10f} {variance:.10f}")
    3.7520870393 13.7520318805
    """
    u, shape = worker_values(values)
    ranks = middle_ranks(len(u), even)
    scale = scale_of(noise, u)
    systematic.check_permutation(permutation, noise, len(u))
    if scale == 0:
        mean = np.mean([np.sort(u, axis=0)[rank - 1] for rank in ranks], axis=0)
        variance = np.zeros_like(mean)
    elif noise.coupling == "systematic":
        columns = [
            systematic_median.moments(
                LAWS[noise.law], column, scale, ranks, permutation
            )
            for column in u.T
        ]
        mean, variance = np.array(columns).T
    else:
        mean, variance = independent_moments(LAWS[noise.law], u, scale, ranks)
    return shaped(mean, shape), shaped(variance, shape)


def median_bias(values: npt.ArrayLike, noise: Noise, even: str = "midpoint") -> Result:
    """Computes E[median] - mean of the values, to a small *relative* error.

    Subtracting the mean from `median_moments` loses all digits once b is some thousand
    times the spread, where the bias is kappa_M mu3 / b^2 or less. Here nothing cancels:
    the orders that vanish are dropped by hand (see `large_noise`).

    Args:
      values: u, [M] or [M, ...], worker axis first.
      noise: as in `median_moments`.
      even: as in `median_moments`; "lower" and "upper" have a bias of order b.

    Returns:
      A float for values [M], else a float64 array without the worker axis. Exactly 0
      for one and two workers.

    Raises:
      ValueError, TypeError: as in `median_moments`; any even M is accepted.

    Reference: ours; the paper's Theorem 4 bounds it by O(1/b).

    >>> from jaxmedian import noise
    >>> print(f"{median_bias([1, 2, 10], noise.gaussian(1e6)):.12e}")
    -1.822448293189e-11
    """
    u, shape = worker_values(values)
    ranks = middle_ranks(len(u), even)
    scale = scale_of(noise, u)
    if scale == 0:
        middle = np.mean([np.sort(u, axis=0)[rank - 1] for rank in ranks], axis=0)
        return shaped(middle - _mean(u), shape)
    if noise.coupling == "systematic":
        columns = _deviations(u).T
        law = LAWS[noise.law]
        biases = [
            systematic_median.bias(law, column, scale, ranks) for column in columns
        ]
        return shaped(biases, shape)
    bias = [
        _bias_block(LAWS[noise.law], block, scale, ranks)
        for block in _blocks(_deviations(u))
    ]
    return shaped(np.concatenate(bias), shape)


# --- independent noise ----------------------------------------------------------------


def independent_moments(
    law: Law, u: Array, scale: float, ranks: tuple[int, ...]
) -> tuple[Array, Array]:
    """Computes mean and variance [C] of one rank, or of the midpoint of two."""
    if len(ranks) > 1 and len(u) > _MOST_EVEN_WORKERS:
        raise ValueError(
            f"`values` has {len(u)} workers; the variance of the midpoint is computed "
            f"for an even number up to {_MOST_EVEN_WORKERS}. Use even='lower' or "
            "'upper', `median_bias` for the mean alone, or "
            "`jaxmedian.theory.simulate_median`."
        )
    blocks = [
        _independent_block(law, block, scale, ranks)
        for block in _blocks(_deviations(u))
    ]
    bias, variance = np.concatenate(blocks, axis=1)
    return _mean(u) + bias, variance


def _blocks(deviations: Array) -> list[Array]:
    """Splits the coordinates so that the quadrature nodes of a block fit in memory."""
    num_workers, num_coordinates = deviations.shape
    size = max(1, _BLOCK // (num_workers * _NODES_A_COORDINATE))
    return [
        deviations[:, start : start + size] for start in range(0, num_coordinates, size)
    ]


def _bias_block(
    law: Law, deviations: Array, scale: float, ranks: tuple[int, ...]
) -> Array:
    bias = np.zeros(deviations.shape[1])
    direct = ~_by_expansion(law, deviations, scale, ranks)
    if direct.any():
        near = deviations[:, direct]
        means = [_rank_moments(law, near, scale, rank)[0] for rank in ranks]
        bias[direct] = np.mean(means, axis=0)
    _overwrite_by_expansion(bias, law, deviations, scale, ranks)
    return bias


def _independent_block(
    law: Law, deviations: Array, scale: float, ranks: tuple[int, ...]
) -> Array:
    found = [_rank_moments(law, deviations, scale, rank) for rank in ranks]
    means = np.stack([mean for mean, _ in found])
    variances = np.stack([variance for _, variance in found])
    bias, variance = means.mean(axis=0), variances.mean(axis=0)
    if len(ranks) > 1:
        gaps = standardised(means[1] - means[0], scale)
        lower = np.sort(deviations, axis=0)[ranks[0] - 1]
        centred = standardised(deviations - lower, scale)
        covariances = [
            middle_pair.covariance(law, column, gap, ranks[0])
            for column, gap in zip(centred.T, gaps, strict=True)
        ]
        variance = 0.5 * (variance + scale * scale * np.array(covariances))
    _overwrite_by_expansion(bias, law, deviations, scale, ranks)
    return np.stack([bias, variance])


def _rank_moments(
    law: Law, deviations: Array, scale: float, rank: int
) -> tuple[Array, Array]:
    """Computes mean and variance [C] of the rank-th smallest noisy deviation."""
    origin = np.sort(deviations, axis=0)[rank - 1]
    mean, variance = order_statistics.moments(
        law, standardised(deviations - origin, scale), rank
    )
    return origin + scale * mean, scale * scale * variance


def _by_expansion(
    law: Law, deviations: Array, scale: float, ranks: tuple[int, ...]
) -> np.ndarray:
    """Says which coordinates [C] `large_noise` handles: not "lower" and "upper"."""
    num_workers = len(deviations)
    if 2 * sum(ranks) != (num_workers + 1) * len(ranks):
        return np.zeros(deviations.shape[1], bool)
    largest = standardised(np.abs(deviations).max(axis=0), scale)
    few = num_workers <= 2  # the bias is exactly 0
    return large_noise.applies(law, num_workers, largest) | few


def _overwrite_by_expansion(
    bias: Array, law: Law, deviations: Array, scale: float, ranks: tuple[int, ...]
) -> None:
    """Replaces, in place, the biases that direct quadrature gives without accuracy."""
    chosen = _by_expansion(law, deviations, scale, ranks)
    if len(deviations) <= 2:
        bias[chosen] = 0.0
    elif chosen.any():
        bias[chosen] = large_noise.bias(law, deviations[:, chosen], scale, ranks)


def _mean(u: Array) -> Array:
    return u.astype(np.longdouble).mean(axis=0).astype(np.float64)


def _deviations(u: Array) -> Array:
    """Returns u - mean, rounded once where long double is longer than double."""
    precise = u.astype(np.longdouble)
    return (precise - precise.mean(axis=0)).astype(np.float64)
