"""The bias of the median when the noise is much larger than the spread of the values.

The bias E[median] - mean is then b times O(e^3), e = (u - mean) / b, and subtracting
two numbers of size b would leave nothing of it. With T(p) = P(Binomial(M, p) >= n + 1)
and p_i = p + delta_i, p = H(z), delta_i = H(z - e_i) - H(z), the CDF of the median is
exactly

    F(z) = sum_k c_k(p) E_k(delta),    c_k(p) = T^(k)(p) (M - k)! / M!,

with E_k the elementary symmetric polynomials. Only the part that is odd in e survives
in bias = -b * int (F(z) + F(-z) - 1) dz over z > 0, and E_1 loses its leading term
because the e_i sum to zero. Here the three regions are summed without any cancellation:
where all densities are smooth (a series in e to order 7), around a kink at
0, and at the edges of the uniform law. The lower and the upper median of an
even number of workers have a bias of order b and do not need this file.
"""

import numpy as np
import scipy.special

from jaxmedian.noise.laws import Law
from jaxmedian.theory.arguments import Array
from jaxmedian.theory.numerics.derivatives import derivatives
from jaxmedian.theory.numerics.order_statistics import reach
from jaxmedian.theory.numerics.poisson_binomial import count_tails
from jaxmedian.theory.numerics.quadrature import gauss_legendre

_TOP = 7  # highest order of e kept: the relative error is about max|e|^6
_SERIES_LIMIT = 0.02  # up to which max|e| the series is used
_EDGE_LIMIT = 0.5  # the same for the uniform law, whose formula is exact
_EDGE_WORKERS = 200
_SERIES_ORDER = 16
_KINK_ORDER = 8
_CHUNK = 2**18
_BLOCK = 64  # coordinates at once


def applies(law: Law, num_workers: int, largest: Array) -> np.ndarray:
    """Says where max|e| is small enough, [C], for this file to be the better way.

    With uniform noise and very many workers it never is: the bias is below one rounding
    of b there, and the sums are long.
    """
    if law.is_flat:
        return largest <= (_EDGE_LIMIT if num_workers <= _EDGE_WORKERS else 0.0)
    at_zero = law.kinks == (0.0,) and law.curvature is not None
    if law.kinks and not at_zero:
        return np.zeros(largest.shape, bool)
    return largest <= _SERIES_LIMIT


def bias(law: Law, deviations: Array, scale: float, ranks: tuple[int, ...]) -> Array:
    """Computes E[median] - mean for noise much larger than the spread.

    Args:
      law: of the noise.
      deviations: [M, C], each column summing to zero.
      scale: b > 0.
      ranks: the middle ranks, averaged; symmetric about (M + 1) / 2.

    Returns:
      [C] biases, in units of the values.
    """
    blocks = [
        _bias(law, deviations[:, start : start + _BLOCK] / scale, ranks)
        for start in range(0, deviations.shape[1], _BLOCK)
    ]
    return scale * np.concatenate(blocks)


def _bias(law: Law, e: Array, ranks: tuple[int, ...]) -> Array:
    """Computes the bias over b for a few columns."""
    if law.is_flat:
        return np.array([_uniform_edges(law, column, ranks) for column in e.T])
    if not law.kinks:
        return _series(law, e, np.zeros(e.shape[1]), ranks)
    around = np.array([_around_kink(law, column, ranks) for column in e.T])
    return around + _series(law, e, np.abs(e).max(axis=0), ranks)


def coefficient(law: Law, num_workers: int, ranks: tuple[int, ...]) -> float:
    """Computes kappa_M = -M^3 / (12 (M-1) (M-2)) int A''(H) h^3 dz, for M >= 3.

    The form with h' of the same integral has no meaning where h jumps; integrating it
    by parts gives this one. A(H(z)) is the probability that the other M - 1 workers
    leave the decision to the last one, averaged over the ranks.
    """
    if law.is_flat and num_workers >= 5:
        return 0.0  # int A'' dz = [A'], and A' is 0 at both edges
    nodes, weights = _half_line(law, num_workers, np.zeros(1))
    p, s = law.cdf(nodes), law.cdf(-nodes)
    # c_3 = A''(p) (M - 3)! / (M - 1)!
    third = _taylor(p, s, num_workers, 3, ranks)
    integral = 2 * float((weights * third * law.pdf(nodes) ** 3).sum())
    return -(num_workers**3) / 12 * integral


def _taylor(
    p: Array, s: Array, num_workers: int, k: int, ranks: tuple[int, ...]
) -> Array:
    """Computes c_k(p) = sum_j (-1)^(k-1-j) C(k-1, j) P(Binomial(M-k, p) = rank-1-j).

    These are the terms of the (k-1)-th difference of binomial probabilities, averaged
    over the ranks; each is a product of powers, evaluated through its logarithm.
    """
    trials, total = num_workers - k, np.zeros(np.shape(p))
    for rank in ranks:
        j = np.arange(max(0, rank - 1 - trials), min(k - 1, rank - 1) + 1)
        j = j.reshape(-1, *[1] * np.ndim(p))
        successes = rank - 1 - j
        log_term = (
            _log_choose(k - 1, j)
            + _log_choose(trials, successes)
            + scipy.special.xlogy(successes, p)
            + scipy.special.xlogy(trials - successes, s)
        )
        total += ((-1.0) ** (k - 1 - j) * np.exp(log_term)).sum(axis=0)
    return total / len(ranks)


def _log_choose(n: int, k: np.ndarray) -> Array:
    return -np.log1p(n) - scipy.special.betaln(n - k + 1, k + 1)


# --- where all densities are smooth: a power series in e ------------------------------


def _half_line(law: Law, num_workers: int, start: Array) -> tuple[Array, Array]:
    """Returns nodes and weights [C, N] on (start, Q), dense where the median is."""
    end = reach(law, num_workers)
    dense = np.linspace(0, min(end, 16.0 / np.sqrt(num_workers)), 17)
    kinks = [kink for kink in law.kinks if 0 < kink < end]
    edges = np.union1d(dense, [*np.linspace(dense[-1], end, 17), *kinks])
    edges = start[:, None] + edges * (1 - start[:, None] / end)
    nodes, weights = gauss_legendre(edges[:, :-1], edges[:, 1:], _SERIES_ORDER)
    return nodes.reshape(len(start), -1), weights.reshape(len(start), -1)


def _series(law: Law, e: Array, start: Array, ranks: tuple[int, ...]) -> Array:
    """Computes -2 int_start^inf of the orders 3, 5, 7 of F in e, for columns [C]."""
    num_workers = len(e)
    power_sums = [(e**m).sum(axis=0) for m in range(_TOP + 1)]
    power_sums[1] = np.zeros(e.shape[1])
    shared = not start.any()
    nodes, weights = _half_line(law, num_workers, start[:1] if shared else start)
    p, s = law.cdf(nodes), law.cdf(-nodes)
    # delta_i = sum_m e_i^m shift[m], shift[m] = (-1)^m h^(m-1) / m!
    shift = np.stack([np.zeros_like(nodes), *_shift_series(law, nodes)])
    powers = [shift]
    for _ in range(2, _TOP + 1):
        powers.append(_multiply(powers[-1], shift))
    sums = [
        np.stack([power_sums[m][:, None] * power[m] for m in range(_TOP + 1)])
        for power in powers
    ]  # sums[k - 1][m]: the order e^m of sum_i delta_i^k
    symmetric = [np.zeros_like(sums[0])]
    symmetric[0][0] = 1.0
    total = np.zeros(e.shape[1])
    for k in range(1, min(_TOP, num_workers) + 1):
        terms = [  # Newton's identity
            (-1) ** (i - 1) * _multiply(symmetric[k - i], sums[i - 1])
            for i in range(1, k + 1)
        ]
        symmetric.append(sum(terms) / k)
        odd = symmetric[k][3::2].sum(axis=0)
        total += (_taylor(p, s, num_workers, k, ranks) * odd * weights).sum(axis=1)
    return -2 * total


def _multiply(a: Array, b: Array) -> Array:
    """Multiplies two power series truncated after order _TOP, orders along axis 0."""
    product = np.zeros(np.broadcast_shapes(a.shape, b.shape))
    for m in range(_TOP + 1):
        for j in range(m + 1):
            product[m] += a[j] * b[m - j]
    return product


def _shift_series(law: Law, z: Array) -> list[Array]:
    """Returns (-1)^m h^(m-1)(z) / m! for m = 1.._TOP and z > 0."""
    factorials = scipy.special.factorial(np.arange(_TOP + 1))
    found = derivatives(law, z, _TOP - 1)
    return [(-1) ** m * found[m - 1] / factorials[m] for m in range(1, _TOP + 1)]


# --- around a kink at 0 ---------------------------------------------------------------


def _around_kink(law: Law, e: Array, ranks: tuple[int, ...]) -> float:
    """Computes -int_0^E (F(z; e) - F(z; -e)) dz, E = max|e|, where h has its kink."""
    edges = np.unique(np.concatenate([[0.0], np.abs(e)]))
    nodes, weights = gauss_legendre(edges[:-1], edges[1:], _KINK_ORDER)
    z, weights = nodes.ravel(), weights.ravel()
    chunk = max(1, _CHUNK // len(e))
    total = 0.0
    for start in range(0, len(z), chunk):
        part = slice(start, start + chunk)
        total -= float(weights[part] @ _near_kink(law, e, z[part], ranks))
    return total


def _near_kink(law: Law, e: Array, z: Array, ranks: tuple[int, ...]) -> Array:
    """Computes F(z; e) - F(z; -e) for |z| <= max|e|.

    With R(x) = H(x) - 1/2 - h(0) x = O(x^2), delta_i = R(z - e_i) - R(z) - h(0) e_i,
    and the last term drops out of E_1. The orders k = 1, 2 are written as differences
    of the two signs; for k >= 3 the difference is as large as its terms.
    """
    num_workers = len(e)
    if law.curvature is None:
        raise ValueError(f"The row of {law.name} needs its `curvature` at the kink.")
    here = law.curvature(z)
    behind, ahead = law.curvature(z - e[:, None]), law.curvature(z + e[:, None])
    slope = law.pdf(0.0) * e[:, None]
    plus, minus = behind - here - slope, ahead - here + slope
    odd, even = behind - ahead - 2 * slope, behind + ahead - 2 * here
    odd_sum, even_sum = (behind - ahead).sum(axis=0), even.sum(axis=0)
    differences = _elementary(plus, _TOP) - _elementary(minus, _TOP)
    differences[1] = odd_sum
    differences[2] = 0.5 * (odd_sum * even_sum - (odd * even).sum(axis=0))
    p, s = law.cdf(z), law.cdf(-z)
    total = np.zeros(len(z))
    for k in range(1, min(_TOP, num_workers) + 1):
        total += _taylor(p, s, num_workers, k, ranks) * differences[k]
    return total


def _elementary(x: Array, top: int) -> Array:
    """Computes the elementary symmetric E_0 .. E_top of the rows of x [M, N]."""
    result = np.zeros((top + 1, x.shape[1]))
    result[0] = 1.0
    for row in x:
        result[1:] += row * result[:-1]
    return result


# --- the edges of the uniform law -----------------------------------------------------


def _uniform_edges(law: Law, e: Array, ranks: tuple[int, ...]) -> float:
    """Computes the bias over b for uniform noise, supports overlapping.

    Between the edges delta_i = -h e_i exactly, and int c_k is a value of T^(k-1) at
    q = E / (2 sqrt 3), so that every term has the true order q^(n+2).
    """
    num_workers = len(e)
    widest = np.abs(e).max()
    if widest == 0:
        return 0.0
    step = 0.5 / law.bound
    q = np.array(widest * step)
    elementary = _elementary(-step * e[:, None], num_workers)[:, 0]
    inside = 0.0
    for k in range(3, num_workers + 1, 2):
        value = _taylor(q, 1 - q, num_workers, k - 1, ranks) / (num_workers - k + 1)
        inside += 4 * law.bound * elementary[k] * float(value)
    return _edge(e, step, ranks) - _edge(-e, step, ranks) + inside


def _edge(e: Array, step: float, ranks: tuple[int, ...]) -> float:
    """Computes the integral of P(median > z) over z > bound - max|e|."""
    num_workers, widest = len(e), np.abs(e).max()
    edges = np.unique(np.concatenate([[-widest], e, [widest]]))
    order = num_workers // 2 + 1  # exact for degree M
    nodes, weights = gauss_legendre(edges[:-1], edges[1:], order)
    missing = np.maximum(e[:, None] - nodes.ravel(), 0) * step  # P(X_i > z)
    above = np.zeros(nodes.size)
    for rank in ranks:  # fewer than `rank` values under z
        at_least, _ = count_tails(missing, 1 - missing, num_workers - rank + 1)
        above += at_least / len(ranks)
    return float((above * weights.ravel()).sum())
