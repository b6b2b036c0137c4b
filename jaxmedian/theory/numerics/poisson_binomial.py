"""How many of M independent, unequal events happen: the Poisson-binomial law.

Worker i adds the factor (p_i z + s_i) to a generating polynomial whose coefficient of
z^k is P(exactly k events). The recursion that multiplies the factors one after the
other costs O(M^2), adds only terms >= 0, and therefore keeps a small *relative* error
in both tails, provided s_i is given accurately (as a survival function, not as 1 -
p_i). All functions work on [M, N] arrays: N independent problems (quadrature nodes) at
once. Nothing here knows where the p_i come from.
"""

import numpy as np

from jaxmedian.theory.arguments import Array

_CHUNK_BYTES = 2**23  # of prefix products held at once in `all_but_one`


def count_tails(p: Array, s: Array, count: int) -> tuple[Array, Array]:
    """Computes P(N >= count) and P(N < count) for p + s = 1.

    Counts that can no longer reach, or no longer miss, the threshold are added to the
    answer at once, so that only about M^2 / 4 entries are ever touched.

    Args:
      p: [M, N] probabilities of the events.
      s: [M, N] probabilities of their complements.
      count: the threshold, 1 <= count <= M.

    Returns:
      Two arrays [N], each with a relative error of about M units in the last place.
    """
    num_workers, num_nodes = p.shape
    state = np.zeros((count, num_nodes))
    state[0] = 1.0
    at_least, below = np.zeros(num_nodes), np.zeros(num_nodes)
    low = 0  # rows under it were added to `below`
    for i in range(num_workers):
        high = min(i, count - 1)
        if high == count - 1:
            at_least += state[high] * p[i]
        moved = state[low:high] * p[i]
        if high + 1 < count:
            state[high + 1] = state[high] * p[i]
        state[low : high + 1] *= s[i]
        state[low + 1 : high + 1] += moved
        while low < count and low + num_workers - i - 1 < count:
            below += state[low]
            low += 1
    return at_least, below


def count_coefficient(p: Array, s: Array, count: int) -> Array:
    """Computes the coefficient of z^count in prod_i (p_i z + s_i), for any p, s >= 0.

    Args:
      p: [M, ...] weights of an event.
      s: [M, ...] weights of its complement, broadcast against p; p + s need not be 1.
      count: 0 <= count <= M.

    Returns:
      [...] coefficients.
    """
    num_workers = len(p)
    state = np.zeros((count + 1, *np.broadcast_shapes(p.shape[1:], s.shape[1:])))
    state[0] = 1.0
    for i in range(num_workers):
        low, high = max(0, count - num_workers + i), min(i, count)
        moved = state[low:high] * p[i]
        if high < count:
            state[high + 1] = state[high] * p[i]
        state[low : high + 1] *= s[i]
        state[low + 1 : high + 1] += moved
    return state[count]


def all_but_one(p: Array, s: Array, count: int) -> Array:
    """Computes the coefficient of z^count in the product without worker i, for all i.

    Products of the workers before i and after i are combined, which again adds terms
    >= 0 only; dividing worker i out of the full product would cancel.

    Args:
      p: [M, N] weights of an event.
      s: [M, N] weights of its complement.
      count: 0 <= count <= M - 1.

    Returns:
      [M, N] coefficients, row i without worker i.
    """
    num_workers, num_nodes = p.shape
    result = np.empty((num_workers, num_nodes))
    chunk = max(1, _CHUNK_BYTES // (8 * num_workers * (count + 1)))
    for start in range(0, num_nodes, chunk):
        nodes = slice(start, start + chunk)
        result[:, nodes] = _all_but_one(p[:, nodes], s[:, nodes], count)
    return result


def _all_but_one(p: Array, s: Array, count: int) -> Array:
    num_workers, num_nodes = p.shape
    before = np.zeros((num_workers, count + 1, num_nodes))
    before[0, 0] = 1.0
    for i in range(1, num_workers):
        before[i] = before[i - 1] * s[i - 1]
        before[i, 1:] += before[i - 1, :-1] * p[i - 1]
    after = np.zeros((count + 1, num_nodes))
    after[0] = 1.0
    result = np.empty((num_workers, num_nodes))
    for i in reversed(range(num_workers)):
        result[i] = (before[i] * after[::-1]).sum(axis=0)
        moved = after[:-1] * p[i]
        after *= s[i]
        after[1:] += moved
    return result
