"""Where the noisy algorithms rest on the quadratics f_i(x) = (x - a_i)^2 / 2.

The gradients at x are x - a_i, so the minimum of the mean is mean(a). Noisy medianSGD
moves by -delta (x - median(a + b xi)): an AR(1) process around E[median(a + b xi)].
Noisy signSGD moves by +-delta and rests where P(+) = P(-), the *median* of the law of
median(a + b xi). Noise-free, both rest at the median of the a_i: the paper's
counterexample (Fig. 1) and Theorem 3.
"""

import math

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import Noise
from jaxmedian.theory.arguments import (
    Array,
    Result,
    choice,
    middle_ranks,
    real_number,
    scale_of,
    shaped,
    worker_values,
)
from jaxmedian.theory.median_law import median_bias, median_moments
from jaxmedian.theory.vote_law import vote_probability

_BALANCED = 1e-14  # |P(+) - P(-)| below which a vote pulls nowhere
_BISECTIONS = 60
_NEAR = 1e-8  # range of the values over b below which a vote rests at their mean


def rest_point(
    values: npt.ArrayLike, noise: Noise, rule: str = "vote", even: str = "midpoint"
) -> Result:
    """Computes where a noisy algorithm rests on f_i(x) = (x - a_i)^2 / 2.

    Vote: the x with P(+) = P(-) for the gradients x - a_i, and the middle of all such x
    where the vote pulls nowhere (an even M with little noise). Median: E[median(a + b
    xi)], the mean around which noisy medianSGD hovers, exactly and for every step size.

    Args:
      values: the minimisers a, [M] or [M, ...], worker axis first.
      noise: as in `vote_probability`; a `relative` scale is resolved on the values a.
      rule: "vote" (noisy signSGD) or "median" (noisy medianSGD).
      even: which median an even M has; the vote ignores it.

    Returns:
      The rest point, a float for values [M]. The distance from the mean of the values
      is the gradient that is left.

    Raises:
      ValueError, TypeError: as in `vote_probability` or `median_moments`.

    Reference: the counterexample of Section 3 of the paper; the rest points are ours.

    >>> from jaxmedian import noise
    >>> print(f"{rest_point([1, 2, 10], noise.gaussian(5.0)):.4f}")
    3.7667
    """
    choice("rule", rule, ("vote", "median"))
    middle_ranks(1, even)
    if rule == "median":
        return _mean_of_median(values, noise, even)
    a, shape = worker_values(values)
    scale = scale_of(noise, a)
    if scale == 0:
        return shaped(np.median(a, axis=0), shape)
    fixed = Noise(noise.law, scale, noise.coupling)
    ends = [_last(a, fixed, below) for below in (-_BALANCED, _BALANCED)]
    # Beyond, what rounding leaves of the pull misplaces the point by more than 1 / b.
    is_near = np.ptp(a, axis=0) < _NEAR * scale
    return shaped(np.where(is_near, a.mean(axis=0), 0.5 * (ends[0] + ends[1])), shape)


def _mean_of_median(values: npt.ArrayLike, noise: Noise, even: str) -> Result:
    """Computes E[median] alone, which is known more often than the variance is."""
    a, shape = worker_values(values)
    bias = np.asarray(median_bias(values, noise, even)).ravel()
    return shaped(a.mean(axis=0) + bias, shape)


def _last(a: Array, noise: Noise, limit: float) -> Array:
    """Finds the largest x, [C], at which P(+) - P(-) is still at most limit."""
    low, high = a.min(axis=0), a.max(axis=0)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        vote = vote_probability(middle - a, noise)
        pulls = np.asarray(vote.plus) - np.asarray(vote.minus) > limit
        low, high = np.where(pulls, low, middle), np.where(pulls, middle, high)
    return 0.5 * (low + high)


def median_sgd_path(
    values: npt.ArrayLike,
    noise: Noise,
    learning_rate: float,
    start: npt.ArrayLike,
    num_steps: float = math.inf,
    even: str = "midpoint",
) -> tuple[Result, Result]:
    """Computes mean and standard deviation of noisy medianSGD after T steps.

    x_{t+1} = (1 - delta) x_t + delta m_t with independent m_t ~ median(a + b xi), so

        E x_T = x* + (1 - delta)^T (x_0 - x*),    x* = E m,
        Var x_T = delta V (1 - (1 - delta)^(2T)) / (2 - delta),    V = Var m,

    and the process hovers around x* with standard deviation sqrt(delta V / (2 -
    delta)).

    Args:
      values: the minimisers a, [M] or [M, ...], worker axis first.
      noise: as in `median_moments`; a `relative` scale is resolved on the values a.
      learning_rate: delta, 0 < delta < 2.
      start: x_0, a number or an array of the shape of the values without their worker
        axis.
      num_steps: T >= 0; infinity, the default, gives the stationary law.
      even: as in `median_moments`.

    Returns:
      (mean, standard deviation) of x_T, floats for values [M].

    Raises:
      ValueError, TypeError: as in `median_moments`; for a step size outside (0, 2), a
        number of steps that is not whole, a start that is not finite or of other shape.

    Reference: ours; the process behind Theorem 6 on quadratics.

    >>> from jaxmedian import noise
    >>> mean, deviation = median_sgd_path([1, 2, 10], noise.gaussian(5.0), 0.001, 0.0)
    >>> print(f"{mean:.6f} {deviation:.6f}")
    3.752087 0.082942
    """
    delta = real_number("learning_rate", learning_rate, positive=True)
    if delta >= 2:
        raise ValueError(
            f"`learning_rate` must be below 2, or x_t diverges; got {delta!r}."
        )
    steps = real_number("num_steps", 0 if num_steps == math.inf else num_steps)
    if not steps.is_integer():
        raise ValueError(
            f"`num_steps` must be a whole number or infinity; got {num_steps!r}."
        )
    rest, variance = median_moments(values, noise, even)
    start = _start_of(start, np.shape(rest))
    kept = (1 - delta) ** num_steps
    mean = rest + kept * (start - rest)
    deviation = np.sqrt(delta * variance * (1 - kept**2) / (2 - delta))
    shape = np.shape(rest)
    return shaped(mean, shape), shaped(deviation, shape)


def _start_of(start: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Returns x_0 as float64, a number or one for each coordinate."""
    array = np.asarray(start)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(f"`start` must hold finite numbers; got {start!r}.")
    if array.shape not in ((), shape):
        raise ValueError(
            f"`start` must be a number or have the shape {shape} of the values without "
            f"their worker axis; got {array.shape}."
        )
    return array.astype(np.float64)
