"""With how many hostile workers systematic noise turns from better to worse.

Systematic noise makes median and vote follow their expectation more closely: good while
that is near the mean, bad when hostile workers have carried it away. Both couplings are
compared at the same b, by the worst cases of `jaxmedian.theory.hostile`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import COUPLINGS, Coupling, Noise
from jaxmedian.theory.arguments import (
    Array,
    check_noise,
    choice,
    has_mean,
    worker_values,
)
from jaxmedian.theory.hostile import hostile_median_error, hostile_vote
from jaxmedian.theory.vote_law import VoteProbability

_ROUNDING = 1e-12  # relative: what two couplings that do equally well may differ by


class HostileCrossover(NamedTuple):
    """The result of `hostile_crossover`.

    Attributes:
      f: fewest hostile workers with which systematic noise is worse than independent
        noise; None if it never is.
      independent: [F] what independent noise achieves with f = 0, 1, ..., F - 1, F the
        least number that is half of the workers or more.
      systematic: [F] what systematic noise achieves.
    """

    f: int | None
    independent: Array
    systematic: Array


def hostile_crossover(
    values: npt.ArrayLike, noise: Noise, rule: str = "median", even: str = "midpoint"
) -> HostileCrossover:
    """Finds with how many hostile workers systematic noise becomes the worse coupling.

    Systematic noise makes the estimate follow its expectation more closely: good while
    that is near the mean, bad when hostile workers have carried it away.

    Args:
      values: u, [M] or [M, ...], of all workers; the last f are replaced by hostile
        ones, for every f < M / 2. For M exchangeable workers give many coordinates.
      noise: law and scale (a number); both couplings are tried.
      rule: "median" compares worst mean squared errors about the honest mean, averaged
        over the coordinates; "vote" the chance of its sign, over the coordinates where
        it is not 0 (any M).
      even: as in `median_moments`.

    Returns:
      A `HostileCrossover` (f, independent, systematic).

    Raises:
      ValueError, TypeError: for an unknown rule; when the mean is 0 in every coordinate
        (vote); as in `hostile_median_shift`, so M is at most 8 for the median.

    Reference: ours.

    >>> import numpy as np
    >>> from jaxmedian import noise
    >>> found = hostile_crossover(np.ones(11), noise.uniform(1.0), "vote")
    >>> print(found.f, found.independent.round(2), found.systematic.round(2))
    4 [0.98 0.96 0.9  0.77 0.55 0.24] [1.   1.   1.   0.89 0.51 0.14]
    """
    u = worker_values(values)[0]
    check_noise(noise)
    choice("rule", rule, ("median", "vote"))
    numbers_of_hostile = range((len(u) + 1) // 2)
    table = {
        coupling: np.array(
            [
                _achieved(u[: len(u) - f], _coupled(noise, coupling), f, rule, even)
                for f in numbers_of_hostile
            ]
        )
        for coupling in COUPLINGS
    }
    independent, systematic = table["independent"], table["systematic"]
    harm = systematic - independent if rule == "median" else independent - systematic
    worse = harm > _ROUNDING * np.abs(independent)
    return HostileCrossover(
        int(worse.argmax()) if worse.any() else None, independent, systematic
    )


def right_votes(u: Array, vote: VoteProbability) -> float:
    """Averages P(vote = sign(mean)) over the coordinates whose mean is not 0."""
    mean, counted = u.mean(axis=0), has_mean(u)
    if not counted.any():
        raise ValueError(
            "`values` has mean 0 in every coordinate: no vote has the right sign."
        )
    return float(np.where(mean > 0, vote.plus, vote.minus)[counted].mean())


def _achieved(u: Array, noise: Noise, f: int, rule: str, even: str) -> float:
    """Computes the mean squared error, or the chance of the right sign."""
    if rule == "median":
        return float(np.mean(hostile_median_error(u, noise, f, even)))
    return right_votes(u, hostile_vote(u, noise, f))


def _coupled(noise: Noise, coupling: Coupling) -> Noise:
    return Noise(noise.law, noise.scale, coupling)
