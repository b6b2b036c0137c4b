"""The noise scale that serves given gradients best, and the coupling that does.

Too little noise leaves the bias of the median, too much drowns the mean: for a sample
of per-worker gradients the exact mean squared error, or the exact chance that the vote
has the sign of the mean, is computed as a function of b and optimised. Systematic noise
lowers the variance and not the bias, so it wins where b can be chosen, and makes a
wrong vote surer where it cannot. Nothing is measured here: `jaxmedian.diagnostics`
collects the sample.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from jaxmedian.laws import LAWS
from jaxmedian.noise import COUPLINGS, Noise
from jaxmedian.theory.arguments import Array, choice, middle_ranks, worker_values
from jaxmedian.theory.median_law import median_moments
from jaxmedian.theory.simulation import simulate_median
from jaxmedian.theory.votes import vote_probability

RULES = ("median", "vote")
_GRID = 33
_TOLERANCE = 1e-3  # of log b
_MOST_ENUMERATED = 5  # workers whose permutations are enumerated anew for every b
_DRAWS = 2**15  # of systematic medians without a formula, shared by the coordinates
_FEWEST_DRAWS = 512  # of each coordinate; the same draws for every b


class ScaleChoice(NamedTuple):
    """The best b of one coupling, and what it achieves (see `BestScale.value`)."""

    scale: float
    value: float


class BestScale(NamedTuple):
    """The result of `best_scale`.

    Attributes:
      scale: the best b of the better coupling, in units of the values.
      coupling: the better coupling.
      value: what it achieves: the mean squared error over the coordinates (median), or
        the mean probability that the vote has the sign of the mean (vote).
      independent: the best choice with independent noise.
      systematic: the best choice with systematic noise.
    """

    scale: float
    coupling: str
    value: float
    independent: ScaleChoice
    systematic: ScaleChoice


def best_scale(
    values: Any, law: str = "gaussian", rule: str = "median", even: str = "midpoint"
) -> BestScale:
    """Finds one noise scale b for all given coordinates, and the better coupling.

    Median: minimises the average of bias(b)^2 + variance(b). Vote: maximises the
      average
    of P(vote = sign(mean)); coordinates whose mean is 0 do not count. b = 0 is a
    candidate, and ties go to the smaller b and to independent noise.

    Everything is exact but the systematic median of more than 5 workers, which is
    simulated with 32,768 fixed draws in all (an error of about a percent).

    Args:
      values: per-worker gradients u, [M] or [M, coordinates]: a sample of coordinates
        that is to share one b. Some hundred coordinates take seconds to a minute.
      law: name of the noise law.
      rule: "median" or "vote".
      even: which median an even M has.

    Returns:
      A `BestScale`.

    Raises:
      ValueError, TypeError: for unfit values, an unknown law, rule or even, or (vote)
        when the mean is 0 in every coordinate.

    Reference: ours.

    >>> best = best_scale([1, 2, 10], "uniform", "vote")
    >>> print(best.coupling, best.scale, best.value)
    independent 0.0 1.0
    >>> best = best_scale([-0.1] * 9 + [1, 1], "gaussian", "vote")
    >>> print(f"{best.independent.value:.3f} {best.systematic.value:.3f}")
    0.585 0.690
    """
    u = worker_values(values)[0]
    choice("law", law, tuple(LAWS))
    choice("rule", rule, RULES)
    middle_ranks(len(u), even)
    mean = u.mean(axis=0)
    if rule == "vote":
        counted = np.asarray(mean != 0)
        u, mean = u[:, counted], mean[counted]
        if not mean.size:
            raise ValueError(
                "`values` has mean 0 in every coordinate: no vote has the right sign."
            )
    found = {
        coupling: _best(_objective(u, mean, law, rule, even, coupling), u, rule)
        for coupling in COUPLINGS
    }
    sign = 1.0 if rule == "median" else -1.0
    better = min(COUPLINGS, key=lambda name: sign * found[name].value)
    return BestScale(
        found[better].scale,
        better,
        found[better].value,
        found["independent"],
        found["systematic"],
    )


def _objective(
    u: Array, mean: Array, law: str, rule: str, even: str, coupling: str
) -> Callable[[float], float]:
    """Returns b -> mean squared error, or b -> mean chance of the right sign."""

    def right_sign(scale: float) -> float:
        vote = vote_probability(u, Noise(law, scale, coupling))
        return float(np.mean(np.where(mean > 0, vote.plus, vote.minus)))

    def squared_error(scale: float) -> float:
        noise = Noise(law, scale, coupling)
        if coupling == "systematic" and len(u) > _MOST_ENUMERATED:
            draws = max(_FEWEST_DRAWS, _DRAWS // u.shape[1])
            centre, variance, _ = simulate_median(u, noise, 0, draws, even)
        else:
            centre, variance = median_moments(u, noise, even)
        return float(((centre - mean) ** 2 + variance).mean())

    return squared_error if rule == "median" else right_sign


def _best(objective: Callable[[float], float], u: Array, rule: str) -> ScaleChoice:
    """Searches a logarithmic grid of scales, then around its best point."""
    width = float(np.ptp(u, axis=0).max())
    largest = float(np.abs(u).max())
    if width == 0:
        return ScaleChoice(0.0, objective(0.0))
    sign = 1.0 if rule == "median" else -1.0
    high = 3 * len(u) * max(width, largest if rule == "vote" else 0.0)
    grid = np.geomspace(1e-3 * width, high, _GRID)
    results = [objective(float(scale)) for scale in grid]
    k = int(np.argmin(sign * np.array(results)))
    refined = scipy.optimize.minimize_scalar(
        lambda log_scale: sign * objective(float(np.exp(log_scale))),
        bounds=tuple(np.log([grid[max(k - 1, 0)], grid[min(k + 1, _GRID - 1)]])),
        method="bounded",
        options={"xatol": _TOLERANCE},
    )
    candidates = [
        ScaleChoice(0.0, objective(0.0)),
        ScaleChoice(float(grid[k]), results[k]),
        ScaleChoice(float(np.exp(refined.x)), sign * float(refined.fun)),
    ]
    return min(candidates, key=lambda candidate: sign * candidate.value)
