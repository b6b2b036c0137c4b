"""The noise scale that serves given gradients best, and the coupling that does.

Too little noise leaves the bias of the median, too much drowns the mean: for a sample
of per-worker gradients the exact mean squared error, the exact chance that the vote has
the sign of the mean, or the exact descent of the vote is computed as a function of b
and optimised. Systematic noise lowers the variance, on average over permutations, and
not the bias, so it wins where b can be chosen, and makes a wrong vote surer where it
cannot. With f hostile workers, all of these are worst cases
(`jaxmedian.theory.hostile`). Nothing is measured here: `jaxmedian.diagnostics` collects
the sample. How the search goes about it is in `numerics.drafts`.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import COUPLINGS, Coupling, Noise
from jaxmedian.noise.laws import LAWS
from jaxmedian.theory.arguments import (
    Array,
    choice,
    has_mean,
    middle_ranks,
    worker_values,
)
from jaxmedian.theory.hostile import (
    check_hostile,
    hostile_median_error,
    hostile_vote,
    split_moments,
)
from jaxmedian.theory.numerics.drafts import (
    Draws,
    Objective,
    ScaleChoice,
    drafted,
    least,
)

RULES = ("median", "vote", "descent")
_MOST_ENUMERATED = 5  # workers whose permutations are enumerated anew for every b
# What is searched without draws: sizes of up to about a second in all.
_CHEAP_VOTES = 10_000  # M^2 C of systematic votes
_CHEAP_MEDIANS = 2000  # M C of medians; of slow ones (midpoints, systematic) 20 M C
_SLOW_MEDIAN = 20
_NARROWEST = 1e-12  # spread of a coordinate, in the largest, that is looked at
_MOST_MIDPOINTS = 1000  # M C up to which covariances of the middle two are integrated


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
    coupling: Coupling
    value: float
    independent: ScaleChoice
    systematic: ScaleChoice


def best_scale(
    values: npt.ArrayLike,
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

    The value is exact at the b given, but for systematic medians (simulated with 65,536
    draws in all, an error of half a percent, unless there are at most 5 workers and few
    coordinates) and for independent midpoints of more than 1,000 values (the variance
    of the distance of the middle two is simulated, 1e-3 at most). With few coordinates
    and workers b is optimal to .1 %; with more it is found by simulation, which costs
    at most .3 % of the value: where an optimum is flat, b itself may be 10 % off. The
    search starts a thousandth below the smallest spread of a coordinate that is at
    least 1e-12 of the largest.

    Args:
      values: per-worker gradients u, [M] or [M, coordinates]: a sample of coordinates
        that is to share one b, as `jaxmedian.diagnostics.sample_coordinates` returns
        it.
      law: name of the noise law.
      rule: "median", "vote" or "descent".
      even: which median an even M has.
      f: number of hostile workers beside those of the values, less than half of all M.

    Returns:
      A `BestScale`.

    Raises:
      ValueError, TypeError: for unfit values, an unknown law, rule or even, or (vote
        and descent) when the mean is 0 in every coordinate.

    Warns:
      UserWarning: if the answer is b = 0 (and f is 0): the workers of these values
        agree, most often in the sign of every coordinate, as they do far from the
        minimum. Training with b = 0 then stops at the noise-free rule's rest point.
        `jaxmedian.noise.unbiased()` and `jaxmedian.noise.per_coordinate` need no such
        choice.

    Reference: ours.

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
    unit = float(np.ldexp(1.0, min(np.frexp(np.abs(u).max())[1], 1023)))
    u = u / unit  # exact, and no sum of squares overflows
    mean = u.mean(axis=0)
    if rule != "median":
        counted = has_mean(u)
        u, mean = u[:, counted], mean[counted]
        if not mean.size:
            raise ValueError(
                "`values` has mean 0 in every coordinate: no vote has the right sign."
            )
    low, high = _range(u, rule)
    found = {}
    for coupling in COUPLINGS:
        if rule == "median":
            problem = _errors(u, mean, law, even, coupling, f)
        else:
            problem = _wrongness(u, mean, law, coupling, rule, f)
        choices = least(problem.objective, low, high, **problem.help)
        sign, size = (1.0, unit * unit) if rule == "median" else (-1.0, 1.0)
        found[coupling] = ScaleChoice(unit * choices.scale, sign * size * choices.value)
    better = min(COUPLINGS, key=lambda name: sign * found[name].value)
    if found[better].scale == 0 and f == 0:
        _warn_of_no_noise(u)
    return BestScale(
        found[better].scale,
        better,
        found[better].value,
        found["independent"],
        found["systematic"],
    )


class _Problem(NamedTuple):
    """An objective, and a bound or a draft that helps to search it."""

    objective: Objective
    help: dict[str, Any]


def _range(u: Array, rule: str) -> tuple[float, float]:
    """Returns the ends of the grid; 0 for equal workers, who need no noise.

    It starts far below the spread of any coordinate: small ones may be the most.
    """
    widths = np.ptp(u, axis=0)
    width = float(widths.max())
    if width == 0:
        return 0.0, 0.0
    narrowest = float(widths[widths > 0].min())
    largest = 0.0 if rule == "median" else float(np.abs(u).max())
    low = 1e-3 * max(narrowest, _NARROWEST * width)
    return low, 3 * len(u) * max(width, largest)


def _warn_of_no_noise(u: Array) -> None:
    signs = np.sign(u)
    agreed = np.count_nonzero((signs == signs[0]).all(axis=0))
    warnings.warn(
        "`best_scale` answers b = 0, which no noise improves on for these `values`: in "
        f"{agreed} of {u.shape[1]} coordinates all workers agree in sign. "
        "Training with b = 0 goes on to where they do not, and stops at the median. "
        "Take `jaxmedian.noise.unbiased()` or `jaxmedian.noise.per_coordinate(...)`, "
        "which follow the gradients, or a sample of later steps.",
        UserWarning,
        stacklevel=3,
    )


def _wrongness(
    u: Array, mean: Array, law: str, coupling: Coupling, rule: str, f: int
) -> _Problem:
    """Returns b -> minus the mean chance of the right sign, or minus the descent."""
    against = np.where(mean < 0, 1, -1)

    def of_laws(plus: Array, minus: Array) -> float:
        if rule == "descent":
            return -float(mean @ (plus - minus) / np.abs(mean).sum())
        return -float(np.mean(np.where(mean > 0, plus, minus)))

    def wrongness(scale: float) -> float:
        plus, minus, _ = hostile_vote(u, Noise(law, scale, coupling), f)
        return of_laws(plus, minus)

    if coupling == "independent" or len(u) ** 2 * u.shape[1] <= _CHEAP_VOTES:
        return _Problem(wrongness, {})
    draws = Draws(u, law, coupling, f)

    def draft(scale: float, every: int) -> float:
        return of_laws(*draws.votes(scale, against, every))

    return _Problem(wrongness, {"draft": drafted(draft)})


def _errors(
    u: Array, mean: Array, law: str, even: str, coupling: Coupling, f: int
) -> _Problem:
    """Returns b -> mean squared error of the median under the worst attack."""
    num_workers, coordinates = len(u) + f, u.shape[1]
    ranks = middle_ranks(num_workers, even)
    midpoint = coupling == "independent" and len(ranks) > 1

    def exact(scale: float) -> float:
        noise = Noise(law, scale, coupling)
        return float(np.mean(hostile_median_error(u, noise, f, even)))

    def at_least(scale: float) -> float:
        return _midpoint_error(u, mean, law, scale, f, None)

    slow = midpoint or coupling == "systematic"
    dear = num_workers * (_SLOW_MEDIAN if slow else 1) * coordinates
    unknown = coupling == "systematic" and num_workers > _MOST_ENUMERATED
    if dear <= _CHEAP_MEDIANS and not unknown:
        return _Problem(exact, {"bound": at_least if midpoint else None})
    draws = Draws(u, law, coupling, f)

    def draft(scale: float, every: int) -> float:
        return draws.errors(scale, mean, even, every)

    def simulated(scale: float) -> float:
        return draft(scale, 1)

    def nearly_exact(scale: float) -> float:
        return _midpoint_error(u, mean, law, scale, f, draws)

    if coupling == "systematic":
        return _Problem(simulated, {"draft": drafted(draft)})
    many = num_workers * coordinates > _MOST_MIDPOINTS
    objective = nearly_exact if midpoint and many else exact
    return _Problem(objective, {"draft": drafted(draft, fine=2)})


def _midpoint_error(
    u: Array, mean: Array, law: str, scale: float, f: int, draws: Draws | None
) -> float:
    """Computes the error of the midpoint of A <= B without their covariance.

    Var((A + B) / 2) = (Var A + Var B) / 2 - Var(B - A) / 4, where the last term is
    estimated from draws. Without draws: at least (Var A + Var B) / 4, since A and B are
    increasing functions of independent numbers.
    """
    worst, noise = np.zeros_like(mean), Noise(law, scale)
    middle = middle_ranks(len(u) + f, "midpoint")
    for low in range(f + 1):
        (a, variance_a), (b, variance_b) = (
            split_moments(u, noise, f, low, side, None) for side in ("lower", "upper")
        )
        variance = 0.25 * (variance_a + variance_b)
        if draws is not None and scale:
            gap = draws.gap_variance(scale, (middle[0] - low, middle[1] - low))
            variance = np.maximum(variance, 2 * variance - 0.25 * gap)
        worst = np.maximum(worst, (0.5 * (a + b) - mean) ** 2 + variance)
    return float(worst.mean())
