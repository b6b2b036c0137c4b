"""What f hostile workers do to the noisy median and the noisy vote, at worst.

The M - f honest workers hold u_i + b xi_i; the hostile send what they like, without
knowing the noise. Median and vote never fall when one message rises, so infinite
messages do the greatest harm, and with r of them at -inf and f - r at +inf

    median of M = the honest value of rank (M + 1) / 2 - r among M - f,

an order statistic whose law is Poisson-binomial like that of the median. Its mean is
extreme at r = 0 and r = f. So is a vote: f certain votes against the mean.

For the mean squared error the extremes are not always at the ends, but they are at
infinite messages: as a function of one message x, all else fixed, the median of an odd
M is x clipped to [A, B], and E(clip(x, A, B) - c)^2 has the slope 2 (x - c) P(A < x <
B), which is negative under c and positive over it. Hence the largest of the f + 1
splits is the worst case. (The midpoint of an even M is an average of two values, for
which this argument fails: there the worst is over infinite messages.)

Under systematic noise the hostile hold f of the M slots. The means and the vote are the
worst whatever the hostile know; who knows the draws can raise the squared error by
choosing the side anew each time. All of this is ours.
"""

import numbers
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import Noise
from jaxmedian.noise.laws import LAWS, Law
from jaxmedian.theory import median_law
from jaxmedian.theory.arguments import (
    Array,
    Result,
    check_not_relative,
    middle_ranks,
    scale_of,
    shaped,
    worker_values,
)
from jaxmedian.theory.numerics import order_statistics, systematic, systematic_median
from jaxmedian.theory.vote_law import VoteProbability, outcome_laws


class HostileShift(NamedTuple):
    """How far hostile workers can carry the expected median from the honest mean.

    Attributes:
      down: E[median] - mean when all of them send -inf.
      up: E[median] - mean when all of them send +inf.
    """

    down: Result
    up: Result


def hostile_median_shift(
    values: npt.ArrayLike,
    noise: Noise,
    f: int,
    even: str = "midpoint",
    *,
    permutation: npt.ArrayLike | None = None,
) -> HostileShift:
    """Computes how far f hostile workers can carry E[median] from the honest mean.

    Exact, and the worst over everything the hostile can send, knowing the noise or not.
    With f = 0 both numbers are the bias.

    Args:
      values: u of the honest workers, [M - f] or [M - f, ...], worker axis first.
      noise: law, scale (a number) and coupling.
      f: number of hostile workers, less than half of all M.
      even: as in `median_moments`, for an even M.
      permutation: systematic noise only: [M], the slots of the honest workers and then
        those of the hostile; None averages over all permutations, as in training.

    Returns:
      A `HostileShift` (down, up).

    Raises:
      ValueError: for f out of range, a relative scale (which the hostile would set);
        with systematic noise for more than 8 workers in all and no permutation; and as
        in `median_moments`.
      TypeError: for an f that is no integer; as in `median_moments`.

    Reference: ours; the paper (Remarks) names the trade-off.

    >>> from jaxmedian import noise
    >>> for b in (0.0, 1.0, 10.0):  # the mean of the honest is 2
    ...     down, up = hostile_median_shift([0, 1, 2, 5], noise.gaussian(b), 1)
    ...     print(f"b = {b:4}: {down:7.3f} {up:7.3f}")
    b =  0.0:  -1.000   0.000
    b =  1.0:  -1.000   0.216
    b = 10.0:  -3.049   3.028
    """
    u, shape, _ = _checked(values, noise, f, even, permutation)
    if f == 0 and permutation is None:
        bias = median_law.median_bias(values, noise, even)
        return HostileShift(bias, bias)
    means = [
        split_moments(u, noise, f, low, even, permutation)[0] - u.mean(axis=0)
        for low in (f, 0)
    ]
    return HostileShift(*(shaped(mean, shape) for mean in means))


def hostile_median_error(
    values: npt.ArrayLike,
    noise: Noise,
    f: int,
    even: str = "midpoint",
    *,
    permutation: npt.ArrayLike | None = None,
) -> Result:
    """Computes the greatest E(median - honest mean)^2 that f hostile workers can cause.

    The worst over what they can send without knowing the noise, coordinate by
    coordinate. With f = 0 it is bias^2 + variance.

    Args:
      values: u of the honest workers, [M - f] or [M - f, ...], worker axis first.
      noise: as in `hostile_median_shift`.
      f: number of hostile workers, less than half of all M.
      even: as in `median_moments`; for the midpoint the hostile send infinities.
      permutation: as in `hostile_median_shift`.

    Returns:
      A float for values [M - f], else a float64 array without the worker axis.

    Raises:
      ValueError, TypeError: as in `hostile_median_shift`.

    Reference: ours.

    >>> from jaxmedian import noise
    >>> calm, noisy = noise.gaussian(0.1), noise.gaussian(5.0)
    >>> for f in (0, 2):
    ...     small, large = (
    ...         hostile_median_error([0, 0, 0, 5, 5], n, f) for n in (calm, noisy)
    ...     )
    ...     print(f"{small:.2f} {large:.2f}")
    3.67 7.85
    8.67 16.94
    """
    u, shape, _ = _checked(values, noise, f, even, permutation)
    worst = np.zeros(u.shape[1])
    for low in range(f + 1):
        mean, variance = split_moments(u, noise, f, low, even, permutation)
        worst = np.maximum(worst, (mean - u.mean(axis=0)) ** 2 + variance)
    return shaped(worst, shape)


def hostile_vote(
    values: npt.ArrayLike,
    noise: Noise,
    f: int,
    *,
    permutation: npt.ArrayLike | None = None,
) -> VoteProbability:
    """Computes the law of the vote when f hostile workers vote against the mean.

    Exact, and the worst for the sign of the honest mean over everything they can send,
    knowing the noise or not; where the mean is 0 they vote -1.

    Args:
      values: u of the honest workers, [M - f] or [M - f, ...], worker axis first.
      noise: law, scale (a number) and coupling.
      f: number of hostile workers, less than half of all M.
      permutation: systematic noise only: [M], the slots of the honest workers and then
        those of the hostile; None averages over all permutations, exactly for every M.

    Returns:
      A `VoteProbability` (plus, minus, tie).

    Raises:
      ValueError, TypeError: for f out of range, a relative scale, and as in
        `vote_probability`.

    Reference: ours.

    >>> from jaxmedian import noise
    >>> for f in (0, 1, 2):
    ...     vote = hostile_vote([1, 2, 10], noise.gaussian(5.0), f)
    ...     print(f"{vote.plus:.4f} {vote.tie:.4f}")
    0.8442 0.0000
    0.3710 0.4732
    0.3710 0.0000
    """
    u, shape, scale = _checked(values, noise, f, "midpoint", permutation)
    against = np.where(u.mean(axis=0) < 0, np.inf, -np.inf)
    votes = np.concatenate([u, np.broadcast_to(against, (f, u.shape[1]))])
    laws = outcome_laws(votes, noise, scale, permutation)
    return VoteProbability(*(shaped(part, shape) for part in laws))


# --- order statistics of the honest ---------------------------------------------------


def split_moments(
    u: Array,
    noise: Noise,
    f: int,
    low: int,
    even: str,
    permutation: npt.ArrayLike | None,
) -> tuple[Array, Array]:
    """Computes mean and variance [C] with ``low`` hostile at -inf, the others at +inf.

    Args:
      u: [M - f, C] values of the honest.
      noise: with a number as scale.
      f: number of hostile workers.
      low: how many of them send -inf.
      even: which median.
      permutation: as in `hostile_median_shift`.
    """
    law, scale = LAWS[noise.law], scale_of(noise, u)
    middle = middle_ranks(len(u) + f, even)
    ranks = tuple(rank - low for rank in middle)
    if scale == 0:
        mean = np.mean([np.sort(u, axis=0)[rank - 1] for rank in ranks], axis=0)
        return mean, np.zeros_like(mean)
    if noise.coupling == "independent":
        return median_law.independent_moments(law, u, scale, ranks)
    _check_enumerable(len(u), f, permutation)
    everybody = _with_distant(law, u, scale, f, low)
    columns = [
        systematic_median.moments(law, column, scale, middle, permutation)
        for column in everybody.T
    ]
    mean, variance = np.array(columns).T
    return mean, variance


def _with_distant(law: Law, u: Array, scale: float, f: int, low: int) -> Array:
    """Adds f rows that no noise brings back among the honest: [M, C]."""
    away = 4 * scale * order_statistics.reach(law, len(u) + f)
    below = np.broadcast_to(u.min(axis=0) - away, (low, u.shape[1]))
    above = np.broadcast_to(u.max(axis=0) + away, (f - low, u.shape[1]))
    return np.concatenate([u, below, above])


# --- arguments ------------------------------------------------------------------------


def check_hostile(f: object, num_honest: int) -> int:
    """Returns f as an int, or raises unless 0 <= f < M / 2."""
    if isinstance(f, bool) or not isinstance(f, numbers.Integral | np.integer):
        raise TypeError(f"`f` must be an integer >= 0; got {f!r}.")
    if not 0 <= int(f) < num_honest:
        raise ValueError(
            f"`f` must be >= 0 and less than half of all workers; got {f} beside "
            f"{num_honest} honest ones: a hostile half decides everything."
        )
    return int(f)


def _check_enumerable(
    num_honest: int, f: int, permutation: npt.ArrayLike | None
) -> None:
    most = systematic_median.MOST_ENUMERATED
    if f and permutation is None and num_honest + f > most:
        raise ValueError(
            f"`values` and `f` make {num_honest} + {f} workers; with systematic noise "
            f"all permutations are enumerated for at most {most}. Give a "
            "`permutation`, or ask for `hostile_vote`, which is exact for every number."
        )


def _checked(
    values: npt.ArrayLike,
    noise: Noise,
    f: object,
    even: str,
    permutation: npt.ArrayLike | None,
) -> tuple[Array, tuple[int, ...], float]:
    """Returns the honest values [M - f, C], their trailing shape, and b."""
    u, shape = worker_values(values)
    num_workers = len(u) + check_hostile(f, len(u))
    middle_ranks(num_workers, even)
    check_not_relative(noise, "hostile workers would move a relative one")
    systematic.check_permutation(permutation, noise, num_workers)
    return u, shape, scale_of(noise, u)
