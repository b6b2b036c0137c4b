"""The noise scale that serves given gradients best, and the coupling that does.

Too little noise leaves the bias of the median, too much drowns the mean: for a sample
of per-worker gradients the exact mean squared error, the exact chance that the vote has
the sign of the mean, or the exact descent of the vote is computed as a function of b
and optimised. Systematic noise
lowers the variance and not the bias, so it wins where b can be chosen, and makes a
wrong vote surer where it cannot. With f hostile workers, all of these are worst cases
(`jaxmedian.theory.hostile`). Nothing is measured here: `jaxmedian.diagnostics`
collects the sample.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.optimize

from jaxmedian.noise import COUPLINGS, Noise
from jaxmedian.noise.laws import LAWS
from jaxmedian.theory.arguments import Array, choice, middle_ranks, worker_values
from jaxmedian.theory.hostile import (
    check_hostile,
    hostile_median_error,
    hostile_vote,
    split_moments,
)
from jaxmedian.theory.simulation import unit_noise

Objective = Callable[[float], float]

RULES = ("median", "vote", "descent")
_GRID = 33
_TOLERANCE = 1e-3  # of log b
_MOST_ENUMERATED = 5  # workers whose permutations are enumerated anew for every b
_DRAWS = 2**16  # of systematic medians without a formula, shared by the coordinates
_FEWEST_DRAWS = 64  # of each coordinate


class ScaleChoice(NamedTuple):
    """The best b of one coupling, and what it achieves (see `BestScale.value`)."""

    scale: float
    value: float


class BestScale(NamedTuple):
    """The result of `best_scale`.

    Attributes:
      scale: the best b of the better coupling, in units of the values.
      coupling: the better coupling.
      value: what it achieves: the mean squared error over the coordinates (median),
        the mean probability that the vote has the sign of the mean (vote), or the
        share of the steepest descent (descent).
      independent: the best choice with independent noise.
      systematic: the best choice with systematic noise.
    """

    scale: float
    coupling: str
    value: float
    independent: ScaleChoice
    systematic: ScaleChoice


def best_scale(
    values: Any,
    law: str = "gaussian",
    rule: str = "median",
    even: str = "midpoint",
    *,
    f: int = 0,
) -> BestScale:
    """Finds one noise scale b for all given coordinates, and the better coupling.

    Median: minimises the average of bias(b)^2 + variance(b). Vote: maximises the
    average of P(vote = sign(mean)); coordinates whose mean is 0 do not count. Descent:
    maximises sum_j mean_j E[vote_j] / sum_j |mean_j|, which is by how much a small
    signSGD step is expected to lower the mean loss, as a share of what the right signs
    would: 1 at best, and below 0 the step goes uphill. It is the rule to train by: the
    vote's rule counts small coordinates like large ones, and ties of an even M as
    wrong. b = 0 is a candidate, and ties go to the smaller b and to independent noise.
    With f hostile workers the values are those of the honest, the mean is theirs, and
    all three are what the worst attack leaves (`hostile_median_error`, `hostile_vote`).

    Everything is exact but the systematic median of more than 5 workers, which is
    simulated with 65,536 draws in all, the same for every b (an error of half a
    percent).

    Args:
      values: per-worker gradients u, [M] or [M, coordinates]: a sample of coordinates
        that is to share one b, as `jaxmedian.diagnostics.sample_coordinates` returns
        it. 50 coordinates of 10 workers take 3 to 7 seconds for the median, a
        fraction of one for the vote.
      law: name of the noise law.
      rule: "median", "vote" or "descent".
      even: which median an even M has.
      f: number of hostile workers beside those of the values, less than half of all M.

    Returns:
      A `BestScale`.

    Raises:
      ValueError, TypeError: for unfit values, an unknown law, rule or even, or (vote
        and descent) when the mean is 0 in every coordinate.

    Reference: ours.

    >>> best = best_scale([1, 2, 10], "uniform", "vote")
    >>> print(best.coupling, best.scale, best.value)
    independent 0.0 1.0
    >>> best = best_scale([-0.1] * 9 + [1, 1], "gaussian", "vote")
    >>> print(f"{best.independent.value:.3f} {best.systematic.value:.3f}")
    0.585 0.690
    >>> best = best_scale([[-1, 0.1], [-1, 0.1], [9, 0.1]], "uniform", "descent")
    >>> print(f"{best.independent.value:.3f} {best.systematic.value:.3f}")
    0.368 0.534
    >>> for f in (0, 1, 2):
    ...     best = best_scale([1, 2, 10], "uniform", f=f).independent
    ...     print(f"{best.scale:.2f} {best.value:.3f}")
    1.47 5.109
    0.00 8.028
    0.00 32.111
    """
    u = worker_values(values)[0]
    check_hostile(f, len(u))
    choice("law", law, tuple(LAWS))
    choice("rule", rule, RULES)
    middle_ranks(len(u) + f, even)
    mean = u.mean(axis=0)
    if rule != "median":
        counted = np.asarray(mean != 0)
        u, mean = u[:, counted], mean[counted]
        if not mean.size:
            raise ValueError(
                "`values` has mean 0 in every coordinate: no vote has the right sign."
            )
    sign = 1.0 if rule == "median" else -1.0
    largest = 0.0 if rule == "median" else float(np.abs(u).max())
    found = {}
    for coupling in COUPLINGS:
        if rule == "median":
            least = _least(u, largest, *_errors(u, mean, law, even, coupling, f))
        else:
            least = _least(u, largest, _wrongness(u, mean, law, coupling, rule, f))
        found[coupling] = ScaleChoice(least.scale, sign * least.value)
    better = min(COUPLINGS, key=lambda name: sign * found[name].value)
    return BestScale(
        found[better].scale,
        better,
        found[better].value,
        found["independent"],
        found["systematic"],
    )


def _wrongness(
    u: Array, mean: Array, law: str, coupling: str, rule: str, f: int
) -> Objective:
    """Returns b -> minus the mean chance of the right sign, or minus the descent."""

    def wrongness(scale: float) -> float:
        plus, minus, _ = hostile_vote(u, Noise(law, scale, coupling), f)
        if rule == "descent":
            return -float(mean @ (plus - minus) / np.abs(mean).sum())
        return -float(np.mean(np.where(mean > 0, plus, minus)))

    return wrongness


def _errors(
    u: Array, mean: Array, law: str, even: str, coupling: str, f: int
) -> tuple[Objective, Objective | None]:
    """Returns b -> mean squared error, and a cheaper lower bound where that is dear.

    The midpoint of the two middle values A <= B costs a double integral for their
    covariance, which is not negative: they are increasing functions of independent
    numbers. So its variance is at least (Var A + Var B) / 4.
    """
    if coupling == "systematic" and len(u) + f > _MOST_ENUMERATED:
        return _simulated_error(u, mean, law, even, f), None

    def squared_error(scale: float) -> float:
        noise = Noise(law, scale, coupling)
        return float(np.mean(hostile_median_error(u, noise, f, even)))

    def at_least(scale: float) -> float:
        worst = np.zeros_like(mean)
        for low in range(f + 1):
            (a, variance_a), (b, variance_b) = (
                split_moments(u, Noise(law, scale), f, low, side, None)
                for side in ("lower", "upper")
            )
            bias = 0.5 * (a + b) - mean
            worst = np.maximum(worst, bias**2 + 0.25 * (variance_a + variance_b))
        return float(worst.mean())

    dear = coupling == "independent" and len(middle_ranks(len(u) + f, even)) > 1
    return squared_error, at_least if dear else None


def _simulated_error(u: Array, mean: Array, law: str, even: str, f: int) -> Objective:
    """Returns b -> mean squared error under systematic noise, from one set of draws."""
    draws = max(_FEWEST_DRAWS, _DRAWS // u.shape[1])
    everybody = np.zeros((len(u) + f, u.shape[1]))
    unit = Noise(law, 1.0, "systematic")
    noise = unit_noise(unit, jax.random.key(0), draws, everybody)[:, : len(u)]
    middle = np.array(middle_ranks(len(u) + f, even)) - 1
    rows = [*range(middle[0] - f, middle[-1] + 1)]

    def squared_error(scale: float) -> float:
        sorted_rows = np.partition(u + scale * noise, rows, axis=1)
        worst = np.zeros_like(mean)
        for low in range(f + 1):
            medians = sorted_rows[:, middle - low].mean(axis=1)
            worst = np.maximum(worst, ((medians - mean) ** 2).mean(axis=0))
        return float(worst.mean())

    return squared_error


def _least(
    u: Array, largest: float, objective: Objective, bound: Objective | None = None
) -> ScaleChoice:
    """Searches a logarithmic grid of scales, then around its best point.

    With a lower bound, the grid is visited from the most promising scale on until no
    bound is below the least value found: the others cannot win.
    """
    width = float(np.ptp(u, axis=0).max())
    best = ScaleChoice(0.0, objective(0.0))
    if width == 0:
        return best
    high = 3 * len(u) * max(width, largest)
    grid = np.geomspace(1e-3 * width, high, _GRID)
    bounds = np.array([bound(float(b)) if bound else -np.inf for b in grid])
    results = np.full(_GRID, np.inf)
    for k in np.argsort(bounds, kind="stable"):
        if bounds[k] > results.min():
            break
        results[k] = objective(float(grid[k]))
    k = int(np.argmin(results))
    refined = scipy.optimize.minimize_scalar(
        lambda log_scale: objective(float(np.exp(log_scale))),
        bounds=tuple(np.log([grid[max(k - 1, 0)], grid[min(k + 1, _GRID - 1)]])),
        method="bounded",
        options={"xatol": _TOLERANCE},
    )
    candidates = [
        best,
        ScaleChoice(float(grid[k]), float(results[k])),
        ScaleChoice(float(np.exp(refined.x)), float(refined.fun)),
    ]
    return min(candidates, key=lambda candidate: candidate.value)
