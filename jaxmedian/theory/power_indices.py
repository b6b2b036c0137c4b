"""What weighted votes and medians follow under large noise: power indices, not weights.

A worker of weight w counts as w workers of one row, with one noise. Noise that is large
beside the values orders the workers at random, and then

    weighted median:             E -> sum_i phi_i u_i,    phi = `shapley_shubik_index`
    weighted vote, independent:  E -> 2 h(0) / b sum_i beta_i u_i,  `banzhaf_index`
    weighted vote, systematic:   the same with `balanced_split_index`

to leading order in 1 / b: not the weighted mean. In u = (1, -.8, -.8, -.8, -.8) with
weights (5, 2, 2, 2, 2) the weighted mean is -.108 and the noisy median tends to +.280.

Why: the median is the worker at which the weights, added up in the order of the noise,
pass half of their sum; a vote changes with u_i where the others leave the decision to
worker i, and their signs are fair coins (independent) or as many + as - (systematic,
where the noise of the others is spread evenly around that of worker i, at 0).

**Workers that stand for different numbers of samples**: scale the gradients instead,
w_i M / sum(w) times g_i, and leave the weights away. Every statement about the mean of
the workers, the finite scales of `unbiased_scale` included, is then one about the
weighted mean.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxmedian.theory.arguments import Array, worker_values

_MOST_STATES = 2**20  # pairs of a number of workers and a sum of their weights
_MOST_DENSE = 2**24
_GRID = 2**40  # weights that are not whole are rounded to that part of their sum


def shapley_shubik_index(weights: npt.ArrayLike) -> Array:
    """Computes the weight of each value in a weighted median under large noise.

    phi_i is the chance that worker i, in a random order of all workers, is the one at
    which the added weights pass half of their sum (half of it where they meet it, which
    is the midpoint). The phi sum to 1; equal weights give 1 / M each.

    Args:
      weights: w, [M], >= 0 and not all 0. Up to 21 workers of arbitrary weights;
        whole numbers, such as numbers of samples, up to a product of M and their sum of
        some millions. Others are rounded to 2^-40 of their sum.

    Returns:
      [M] shares, float64.

    Raises:
      ValueError: for a negative or infinite weight, only zeros, too many sums, or
        weights so far apart that rounding loses the least.
      TypeError: for weights that are no numbers.

    Reference: Shapley and Shubik, "A method for evaluating the distribution of power in
    a committee system" (1954); the limit is ours. With systematic noise and b beyond
    `unbiased_scale` it is exact.

    >>> phi = shapley_shubik_index([5, 2, 2, 2, 2])
    >>> print(phi.round(3), round(float(phi @ [1, -0.8, -0.8, -0.8, -0.8]), 3))
    [0.6 0.1 0.1 0.1 0.1] 0.28
    """
    return _index(weights, lambda others: np.full(others + 1, 1 / (others + 1)))


def banzhaf_index(weights: npt.ArrayLike) -> Array:
    """Computes how often each worker decides a weighted vote of independent fair coins.

    beta_i is the chance that the others' votes differ by less than w_i, and half of the
    chance that they differ by exactly w_i. Under large independent noise E[vote] tends
    to 2 h(0) / b sum_i beta_i u_i.

    Args:
      weights: as in `shapley_shubik_index`.

    Returns:
      [M] probabilities, float64; they need not sum to 1.

    Raises:
      ValueError, TypeError: as in `shapley_shubik_index`.

    Reference: Penrose (1946) and Banzhaf (1965), not normalised; the limit is ours.

    >>> print(banzhaf_index([5, 2, 2, 2, 2]))
    [0.875 0.125 0.125 0.125 0.125]
    """
    return _index(weights, _binomial)


def balanced_split_index(weights: npt.ArrayLike) -> Array:
    """Computes how often each worker decides a vote that the others split evenly.

    The chance, over all divisions of the other workers into two camps of as many
    workers (for an even M of M / 2 and M / 2 - 1), that the camps' weights differ by
    less than w_i, and half of the chance that they differ by exactly w_i. Under large
    systematic noise E[vote] tends to 2 h(0) / b times the sum of these times u_i; for
    the uniform law it is that number from `unbiased_scale` on, averaged over the
    permutations. Equal weights give 1 each for odd M and 1 / 2 for even M.

    Args:
      weights: as in `shapley_shubik_index`; a weight of 0 is a worker present.

    Returns:
      [M] probabilities, float64; they need not sum to 1.

    Raises:
      ValueError, TypeError: as in `shapley_shubik_index`.

    Reference: ours.

    >>> print(balanced_split_index([5, 2, 2, 2, 2]))
    [1. 0. 0. 0. 0.]
    """
    return _index(weights, _balanced)


def _binomial(others: int) -> Array:
    """Returns the chances of 0, ..., others heads among that many fair coins."""
    chances = np.ones(1)
    for _ in range(others):
        chances = 0.5 * (np.append(chances, 0.0) + np.append(0.0, chances))
    return chances


def _balanced(others: int) -> Array:
    """Returns certainty of an even split; of an odd number, by one, either way."""
    chances = np.zeros(others + 1)
    chances[[others // 2, (others + 1) // 2]] = 0.5 if others % 2 else 1.0
    return chances


def _index(weights: npt.ArrayLike, of_sizes: Callable[[int], Array]) -> Array:
    """Averages the chance to decide over the size of one camp of the others."""
    whole, rounding = _whole_weights(weights)
    different, which, copies = np.unique(whole, return_inverse=True, return_counts=True)
    camps = _Camps.of_nobody(len(whole))
    for weight, count in zip(different, copies, strict=True):
        for _ in range(count - 1):
            camps = camps.joined_by(int(weight))
    sizes = of_sizes(len(whole) - 1)
    result = [
        sizes @ others.decide(int(weight), rounding)
        for weight, others in zip(
            different, _all_but_one(camps, different), strict=True
        )
    ]
    return np.array(result)[which]


def _whole_weights(weights: npt.ArrayLike) -> tuple[np.ndarray, int]:
    """Returns weights as int64, and by how much sums of them may be off."""
    flat, shape = worker_values(weights, "weights")
    if shape:
        raise ValueError(
            f"`weights` must have the shape [M]; got {(len(flat), *shape)}."
        )
    w = flat[:, 0]
    if (w < 0).any() or not w.any():
        raise ValueError(f"`weights` must be >= 0 and not all 0; got {weights!r}.")
    if (w == np.round(w)).all() and w.max() < _GRID / len(w):
        return w.astype(np.int64), 0
    shares = w / w.max()
    whole = np.round(shares / shares.sum() * _GRID).astype(np.int64)
    lost = (w > 0) & (whole <= len(w))
    if lost.any():
        raise ValueError(
            f"`weights` must not differ by more than a factor of {_GRID // len(w):.0e};"
            f" got {w[lost][0]} beside {w.max()}. Round the least to 0."
        )
    return whole, len(w)


class _Camps(NamedTuple):
    """The law of a camp's sum of weights, for every size of the camp.

    Attributes:
      num_workers: M.
      among: how many workers may be in the camp; all camps of a size are equally
        likely.
      size: [S] how many of them are.
      total: [S] their weight.
      chance: [S] of this weight, given the size.
    """

    num_workers: int
    among: int
    size: np.ndarray
    total: np.ndarray
    chance: Array

    @staticmethod
    def of_nobody(num_workers: int) -> "_Camps":
        nothing = np.zeros(1, np.int64)
        return _Camps(num_workers, 0, nothing, nothing, np.ones(1))

    def joined_by(self, weight: int) -> "_Camps":
        """Adds a worker, who is in a camp of s among k with probability s / k."""
        k = self.among + 1
        out, inside = (k - self.size) / k, (self.size + 1) / k
        chance = np.concatenate([self.chance * out, self.chance * inside])
        key = np.concatenate([self.total, self.total + weight]) * self.num_workers
        key += np.concatenate([self.size, self.size + 1])
        if key.max() < _MOST_DENSE:
            dense = np.bincount(key, chance).astype(np.float64)
            states = np.flatnonzero(dense)
            chance = dense[states]
        else:
            states, where = np.unique(key, return_inverse=True)
            chance = np.bincount(where, chance).astype(np.float64)
        if len(states) > _MOST_STATES:
            raise ValueError(
                f"`weights` of {self.num_workers} workers have too many different "
                "sums. Round them to a few whole numbers."
            )
        total, size = np.divmod(states, self.num_workers)
        return _Camps(self.num_workers, k, size, total, chance)

    def decide(self, weight: int, rounding: int) -> Array:
        """Computes the chance [M] that one more worker decides, by the camp's size."""
        if weight == 0:
            return np.zeros(self.num_workers)
        lead = np.abs(2 * self.total - self.total.max())  # the largest camp is all
        decided = np.where(np.abs(lead - weight) <= rounding, 0.5, lead < weight)
        chance = np.bincount(self.size, decided * self.chance, self.num_workers)
        return chance.astype(np.float64)


def _all_but_one(camps: _Camps, weights: np.ndarray) -> Iterator[_Camps]:
    """Yields the camps with all of the weights added but one, for each in turn."""
    if len(weights) == 1:
        yield camps
        return
    half = len(weights) // 2
    for left_out, added in (
        (weights[:half], weights[half:]),
        (weights[half:], weights[:half]),
    ):
        joined = camps
        for weight in added:
            joined = joined.joined_by(int(weight))
        yield from _all_but_one(joined, left_out)
