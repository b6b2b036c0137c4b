"""Systematic noise: how many workers lie under a threshold, exactly.

Worker i draws xi_i = H^{-1}(frac(V + pi_i / M)) with one uniform V and a permutation
pi, so it lies under its threshold, xi_i <= H^{-1}(p_i), when V is on an arc of length
p_i of the circle that starts at -pi_i / M. For a given pi the count of covered arcs is
read off the sorted end points. Averaged over all permutations it needs none of them:
with V = (j + s) / M the slots pi_i + j mod M are a random permutation, worker i is
under when its slot is one of the first tau_i, tau_i = floor(M p_i) + [s < frac(M p_i)],
and the number of hits on such a staircase (Ferrers) board has the exact tail, in whole
numbers,

    M! P(hits >= k) = sum_{x=0}^{y} (-1)^(y-x) C(M, y-x) prod_i (x + tau_(i) - i + 1),

with y = M - k and tau sorted upwards (from Goldman, Joichi and White 1975). The moments
of the median, which need every V and not one threshold, are in `systematic_median`.
"""

import math

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import Noise
from jaxmedian.theory.arguments import Array


def check_permutation(
    permutation: npt.ArrayLike | None, noise: Noise, num_workers: int
) -> None:
    """Raises unless permutation is None or fits systematic noise."""
    if permutation is None:
        return
    if noise.coupling != "systematic":
        raise ValueError(
            "`permutation` belongs to systematic noise; this noise is independent. "
            "Leave it out."
        )
    slots = np.asarray(permutation)
    if slots.shape != (num_workers,) or not np.array_equal(
        np.sort(slots), np.arange(num_workers)
    ):
        raise ValueError(
            f"`permutation` must hold each of 0..{num_workers - 1} once, one slot per "
            f"worker; got {permutation!r}."
        )


# --- one permutation: arcs ------------------------------------------------------------


def arc_counts(p: Array, permutation: npt.ArrayLike | None) -> Array:
    """Computes P(exactly k workers are under), k = 0..M, for one permutation.

    Args:
      p: [M] probability of each worker to be under its threshold.
      permutation: [M] slots.

    Returns:
      [M + 1] probabilities.
    """
    num_workers = len(p)
    start = (-np.asarray(permutation) % num_workers) / num_workers
    end = start + p
    position = np.concatenate([start, end - (end >= 1)])
    change = np.repeat([1, -1], num_workers)
    order = np.argsort(position, kind="stable")
    counts = np.count_nonzero(end >= 1) + np.cumsum(change[order])
    lengths = np.diff(np.append(position[order], 1.0))
    result = np.zeros(num_workers + 1)
    result[np.count_nonzero(end >= 1)] += position[order[0]]
    # Where arcs end and begin at one point the order of the two is arbitrary: a count
    # may be out of range there, on a stretch of length 0 or one rounding.
    np.add.at(result, np.clip(counts, 0, num_workers), lengths)
    return result


# --- all permutations: hits on a staircase board --------------------------------------


def at_least(p: Array, count: int) -> float:
    """Computes P(at least count workers are under), averaged over permutations.

    Args:
      p: [M] probability of each worker to be under its threshold.
      count: any whole number.

    Returns:
      The probability.
    """
    levels, tails, _ = _hit_tails(p, count)
    return float(np.dot(levels[:-1] - levels[1:], tails))


def density(p: Array, slopes: Array, count: int) -> float:
    """Computes the derivative of `at_least` when each p_i grows at its own rate."""
    _, tails, order = _hit_tails(p, count)
    return float(len(p) * np.dot(slopes[order], np.diff(tails)))


def _hit_tails(p: Array, count: int) -> tuple[Array, Array, np.ndarray]:
    """Computes P(hits >= count | s) on each stretch of s between two frac(M p_i).

    Returns:
      The stretches' upper ends 1 = l_0 >= l_1 >= ... and 0, [M + 2]; the probability on
      each of the M + 1 stretches; and the worker whose tau grows at l_1, l_2, ... [M].
    """
    num_workers = len(p)
    scaled = num_workers * np.asarray(p)
    tau = np.minimum(np.floor(scaled), num_workers)
    fraction = scaled - tau
    order = np.argsort(-fraction, kind="stable")
    board = _Board(tau.astype(int).tolist(), num_workers - count)
    tails = [board.tail()]
    for worker in order:
        board.grow(int(tau[worker]))
        tails.append(board.tail())
    levels = np.concatenate([[1.0], fraction[order], [0.0]])
    return levels, np.array(tails), order


class _Board:
    """A staircase board that grows one cell at a time, and its tail of hits.

    Keeps prod_i (x + tau_(i) - i + 1) for x = 0..last, as the product of the factors
    that are not zero and the number of those that are, so that a factor can be
    replaced.
    """

    def __init__(self, heights: list[int], last: int) -> None:
        self._heights = sorted(heights)
        self._last = last
        size = len(heights)
        factors = [height - i for i, height in enumerate(self._heights)]
        self._products = []
        self._zeros = []
        for x in range(last + 1):
            shifted = [x + factor for factor in factors]
            self._products.append(math.prod(f for f in shifted if f))
            self._zeros.append(shifted.count(0))
        self._signs = [
            (-1) ** (last - x) * math.comb(size, last - x) for x in range(last + 1)
        ]
        self._total = math.factorial(size)

    def grow(self, height: int) -> None:
        """Adds a cell to the last column of that height; a full column stays."""
        size = len(self._heights)
        if height >= size:
            return
        i = size - 1 - self._heights[::-1].index(height)
        self._heights[i] += 1
        for x in range(self._last + 1):
            old = x + height - i
            if old:
                self._products[x] //= old
            else:
                self._zeros[x] -= 1
            if old + 1:
                self._products[x] *= old + 1
            else:
                self._zeros[x] += 1

    def tail(self) -> float:
        """Returns P(hits >= M - last): one division of whole numbers, rounded once."""
        if self._last < 0:
            return 0.0
        if self._last >= len(self._heights):
            return 1.0
        weighted = sum(
            sign * product
            for sign, product, zeros in zip(
                self._signs, self._products, self._zeros, strict=True
            )
            if not zeros
        )
        return weighted / self._total
