"""The median under systematic noise: every arrangement, integrated between crossings.

With V = (j + s) / M worker i holds u_i + b H^{-1}((k_i + s) / M), where its slot k_i =
pi_i + j mod M. As s goes from 0 to 1 two workers change order only where their curves
cross; between crossings the median is one smooth curve. For s <= 1/2 the integral is
written over the noise z of the lowest slot, s = M H(z), in which no curve is singular;
s > 1/2 is the same problem turned upside down. Permutations are enumerated (M <= 8), or
given, or irrelevant (`exact_regime`). Lengths are in noise scales.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxmedian.noise.laws import Law
from jaxmedian.theory.arguments import Array, standardised
from jaxmedian.theory.numerics.exact_regime import law_known_from, mean_exact_from
from jaxmedian.theory.numerics.quadrature import gauss_legendre

MOST_ENUMERATED = 8
_NEGLIGIBLE = 1e-22
_BISECTIONS = 64
_BLOCK = 4096  # arrangements at once
# Panels towards s = 0 end at these fractions of s = 1/2: geometric, for the tails.
_LEVELS = (1e-16, 1e-11, 1e-7, 1e-4, 1e-2, 0.2, 1.0)


class Middle(NamedTuple):
    """The middle workers on the quadrature nodes of some panels.

    Attributes:
      weight: [P, nodes] probability; all blocks together sum to 1.
      height: [P, nodes, ranks] X of the middle worker minus the noise-free value there.
      worker: [P, ranks] which worker it is, the same on a whole panel.
    """

    weight: Array
    height: Array
    worker: np.ndarray


def moments(
    law: Law,
    u: Array,
    scale: float,
    ranks: tuple[int, ...],
    permutation: npt.ArrayLike | None,
) -> tuple[float, float]:
    """Computes mean and variance of the median of u [M] under systematic noise."""
    width = float(np.ptp(u))
    known = is_exact(scale, law_known_from(law, len(u), width), ranks, len(u))
    if known and permutation is None:
        return exact_moments(law, u, scale, ranks)
    first = second = 0.0
    for middle in middle_workers(law, u, scale, ranks, permutation):
        value = middle.height.mean(axis=2)
        first += float((middle.weight * value).sum())
        second += float((middle.weight * value**2).sum())
    noise_free = np.sort(u)[[rank - 1 for rank in ranks]].mean()
    mean = float(noise_free + scale * first)
    if is_exact(scale, mean_exact_from(law, len(u), width), ranks, len(u)):
        mean = float(u.mean())
    return mean, scale * scale * (second - first**2)


def bias(law: Law, u: Array, scale: float, ranks: tuple[int, ...]) -> float:
    """Computes E[median] - mean of u [M], averaged over permutations."""
    exact_from = mean_exact_from(law, len(u), float(np.ptp(u)))
    if is_exact(scale, exact_from, ranks, len(u)):
        return 0.0
    return moments(law, u, scale, ranks, None)[0] - float(u.mean())


def is_exact(
    scale: float, threshold: float, ranks: tuple[int, ...], num_workers: int
) -> bool:
    """Says whether b is large enough, and the middle neither "lower" nor "upper"."""
    return scale >= threshold and 2 * sum(ranks) == len(ranks) * (num_workers + 1)


def exact_moments(
    law: Law, u: Array, scale: float, ranks: tuple[int, ...]
) -> tuple[float, float]:
    """Computes mean and variance of the median where they are known.

    The middle slots belong to random workers: one of M, or for the midpoint the average
    of two drawn without replacement.
    """
    num_workers = len(u)
    noise = equal_variance(law, num_workers, ranks)
    drawn = share_of_variance(num_workers)
    return float(u.mean()), float(drawn * u.var() + scale * scale * noise)


def share_of_variance(num_workers: int) -> float:
    """Returns the variance of who is in the middle, in variances of the values."""
    return 1.0 if num_workers % 2 else 0.5 * (num_workers - 2) / (num_workers - 1)


def equal_variance(law: Law, num_workers: int, ranks: tuple[int, ...]) -> float:
    """Computes the variance of the median of the noise alone, in noise scales."""
    slots = np.arange(num_workers)[None, :]  # all arrangements are alike
    lower = _lower_half(law, np.zeros((num_workers, len(ranks))), slots, ranks)
    mirrored = tuple(num_workers + 1 - rank for rank in ranks)
    upper = _lower_half(law, np.zeros((num_workers, len(ranks))), slots, mirrored)
    first = second = 0.0
    for half, sign in ((lower, 1.0), (upper, -1.0)):
        value = sign * half.height.mean(axis=2)
        first += float((half.weight * value).sum())
        second += float((half.weight * value**2).sum())
    return second - first**2


def middle_workers(
    law: Law,
    u: Array,
    scale: float,
    ranks: tuple[int, ...],
    permutation: npt.ArrayLike | None,
) -> Iterator[Middle]:
    """Follows the workers of the given ranks over all V and all arrangements."""
    num_workers = len(u)
    arrangements = _arrangements(law, u, scale, ranks, permutation)
    noise_free = np.sort(u)[[rank - 1 for rank in ranks]]
    offsets = standardised(u[:, None] - noise_free, scale)
    mirrored = tuple(num_workers + 1 - rank for rank in ranks)
    for start in range(0, len(arrangements), _BLOCK):
        slots = arrangements[start : start + _BLOCK]
        share = len(slots) / len(arrangements)
        for middle, sign in (
            (_lower_half(law, offsets, slots, ranks), 1.0),
            (_lower_half(law, -offsets, num_workers - 1 - slots, mirrored), -1.0),
        ):
            yield Middle(share * middle.weight, sign * middle.height, middle.worker)


def _arrangements(
    law: Law,
    u: Array,
    scale: float,
    ranks: tuple[int, ...],
    permutation: npt.ArrayLike | None,
) -> np.ndarray:
    """Returns the equally likely slots of the workers for s in (0, 1), [A, M].

    Where the noise alone orders the workers, a single rank is held by each of them for
    as long, in one permutation as in all. The two of a midpoint are neighbours in it.
    """
    num_workers = len(u)
    if permutation is None:
        if num_workers <= MOST_ENUMERATED:
            return np.array(list(itertools.permutations(range(num_workers))))
        threshold = law_known_from(law, num_workers, float(np.ptp(u)))
        if len(ranks) > 1 or scale < threshold:
            raise ValueError(
                f"`values` has {num_workers} workers; with systematic noise all "
                f"permutations are enumerated for at most {MOST_ENUMERATED}. Use "
                "`jaxmedian.theory.simulate_median`, or `median_moments` with a "
                f"`permutation`, or take a scale >= {threshold:.6g}, where the law is "
                "known (`unbiased_scale`)."
            )
        permutation = np.arange(num_workers)
    rotations = np.arange(num_workers)[:, None]
    return (np.asarray(permutation) + rotations) % num_workers


def _lower_half(
    law: Law, offsets: Array, slots: np.ndarray, ranks: tuple[int, ...]
) -> Middle:
    """Handles s in (0, 1/2): panels, the order of the workers on each, their values."""
    num_workers = len(offsets)
    arrangement, left, right = _panels(law, offsets[:, 0], slots)
    nodes, weights = gauss_legendre(left, right)
    weights *= num_workers / len(slots) * law.pdf(nodes)
    slot = slots[arrangement]  # [P, M]
    inside = 0.5 * (left + right)
    heights = offsets[:, 0] + _noise(law, inside[:, None], slot, num_workers)
    columns = [rank - 1 for rank in ranks]
    worker = np.argsort(heights, axis=1, kind="stable")[:, columns]
    held = np.take_along_axis(slot, worker, axis=1)[:, None, :]
    noise = _noise(law, nodes[:, :, None], held, num_workers)
    own = offsets[worker, np.arange(len(ranks))][:, None, :]
    return Middle(weights, noise + own, worker)


def _noise(law: Law, z: Array, slot: np.ndarray, num_workers: int) -> Array:
    """Returns H^{-1}(slot / M + H(z)), and z itself for slot 0."""
    shifted = law.quantile(slot / num_workers + law.cdf(z))
    return np.where(slot == 0, z, shifted)


def _panels(
    law: Law, offsets: Array, slots: np.ndarray
) -> tuple[np.ndarray, Array, Array]:
    """Cuts (0, 1/2), in terms of z, at the crossings of each arrangement."""
    num_workers, num_arrangements = len(offsets), len(slots)
    where, z = _crossings(law, offsets, slots)
    if np.isfinite(law.bound):
        levels = law.quantile(np.array([0.0, 0.5]) / num_workers)
    else:
        levels = law.quantile(np.array([_NEGLIGIBLE, *_LEVELS]) * 0.5 / num_workers)
    everywhere = np.repeat(np.arange(num_arrangements), len(levels))
    where = np.concatenate([where, everywhere])
    z = np.concatenate([z, np.tile(levels, num_arrangements)])
    order = np.lexsort((z, where))
    where, z = where[order], z[order]
    keep = (where[1:] == where[:-1]) & (z[1:] > z[:-1])
    return where[1:][keep], z[:-1][keep], z[1:][keep]


def _crossings(law: Law, offsets: Array, slots: np.ndarray) -> tuple[np.ndarray, Array]:
    """Finds where curves cross for s in (0, 1/2): arrangements [N] and z [N].

    Worker i under worker j by D crosses it at a height x with H(x - w_i) - H(x - w_j) =
    (k_i - k_j) / M; that difference is symmetric about the middle of w_i and w_j and
    falls away from it, so there are two solutions or none.
    """
    num_workers = len(offsets)
    none = np.zeros(0, int), np.zeros(0)
    if law.is_flat:
        return none  # the quantile function is linear: curves of two slots are parallel
    order = np.argsort(offsets, kind="stable")
    low, high = (order[side] for side in np.triu_indices(num_workers, 1))
    distance = offsets[high] - offsets[low]
    reach = -float(law.quantile(_NEGLIGIBLE))
    near = (distance > 0) & (distance < 2 * reach)
    low, high, distance = low[near], high[near], distance[near]
    if not len(low):
        return none
    steps = slots[:, low] - slots[:, high]  # [A, pairs]
    where, pair = np.nonzero(steps > 0)
    kinds, kind = np.unique(
        pair * num_workers + steps[where, pair], return_inverse=True
    )
    gap = distance[kinds // num_workers]
    height = _height(law, gap, (kinds % num_workers) / num_workers, reach)
    found_where, found_z = [], []
    for side in (-1.0, 1.0):
        position = num_workers * law.cdf(side * height - 0.5 * gap)  # of worker `high`
        slot = np.floor(position)
        s = position - slot
        fits = (
            (slot[kind] == slots[where, high[pair]]) & (s[kind] > 0) & (s[kind] < 0.5)
        )
        found_where.append(where[fits])
        found_z.append(law.quantile(s / num_workers)[kind[fits]])
    return np.concatenate(found_where), np.concatenate(found_z)


def _height(law: Law, gap: Array, target: Array, reach: float) -> Array:
    """Solves H(r + gap / 2) - H(r - gap / 2) = target for r >= 0, NaN for no r."""

    def rise(r: Array) -> Array:
        return law.cdf(0.5 * gap - r) - law.cdf(-0.5 * gap - r)

    low, high = np.zeros_like(gap), reach + 0.5 * gap
    possible = rise(low) > target
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        above = rise(middle) > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(possible, low, np.nan)
