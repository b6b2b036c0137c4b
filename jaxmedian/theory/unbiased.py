"""Systematic noise above a finite b: exactly unbiased rules, for every permutation.

The scales, the moments and the expected vote of `exact_regime`, where the proofs are.
All of it is sharper than the paper (ours), whose bias is O(1/b) for every b. The price:
each coordinate follows one random worker, nothing is averaged and robustness is gone.
Below these scales use `median_moments` and `vote_probability`.

Thresholds are per coordinate: `unbiased_scale` of ``[M, d]`` is ``[d]``. With absent
workers everything holds for those present, whose number changes the vote's size (see
`unbiased_vote`). With weights it does not hold: see `shapley_shubik_index`.
"""

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import Noise
from jaxmedian.noise.laws import LAWS
from jaxmedian.theory.arguments import (
    Array,
    Result,
    choice,
    middle_ranks,
    scale_of,
    shaped,
    worker_values,
)
from jaxmedian.theory.numerics.exact_regime import (
    law_known_from,
    mean_exact_from,
    tally_step,
    vote_exact_from,
)
from jaxmedian.theory.numerics.systematic_median import exact_moments

RULES = ("median", "vote")
_ROUNDING = 1 - 1e-12  # b equal to the threshold up to rounding counts as beyond it


def unbiased_scale(
    values: npt.ArrayLike,
    law: str = "uniform",
    rule: str = "median",
    *,
    mean_only: bool = False,
) -> Result:
    """Computes the smallest b from which systematic noise is exactly unbiased.

    Median: M h(0) max|u_i - u_j|, beyond which its mean and variance are those of
    `unbiased_median`. If only the mean matters, max|u_i - u_j| / (2 H^{-1}(1/2 + 1/M))
    is enough, and for uniform noise max|u_i - u_j| / sqrt(3), times M / (M + 1) for odd
    M, which does not grow with M. Vote, uniform law: M max|u_i| / sqrt(3) for odd M,
    half of that for even M (ties "zero" or "random").

    Args:
      values: u, [M] or [M, ...], worker axis first.
      law: name of the noise law; the vote needs "uniform".
      rule: "median" (the midpoint, if M is even) or "vote".
      mean_only: for the median: the scale of an exact mean, whatever the variance.

    Returns:
      b per coordinate, in units of the values: a float for values [M], else without
      the worker axis. Take the maximum for one b that serves all coordinates. 0 where
      all values are equal (median) or 0 (vote), and for the midpoint of one or two.

    Raises:
      ValueError: for an unknown law or rule, or a vote with a law that is not uniform.

    Reference: ours; proofs in `jaxmedian.theory.numerics.exact_regime`. The coupling is
    correlated quantization (Suresh, Sun, Ro and Yu, ICML 2022).

    >>> print(f"{unbiased_scale([1, 2, 10], 'uniform', 'vote'):.6f}")
    17.320508
    >>> print(f"{unbiased_scale([1, 2, 10, 10], 'uniform', 'vote'):.6f}")
    11.547005
    >>> print(f"{unbiased_scale([1, 2, 10]):.6f}")
    7.794229
    >>> print(f"{unbiased_scale([1, 2, 10], mean_only=True):.6f}")
    3.897114
    """
    u, shape = worker_values(values)
    choice("law", law, tuple(LAWS))
    choice("rule", rule, RULES)
    if rule == "vote" and not LAWS[law].is_flat:
        raise ValueError(
            f"`law` must be 'uniform' for an exactly unbiased vote; got {law!r}."
        )
    if rule == "vote":
        largest = np.abs(u).max(axis=0)
        return shaped([vote_exact_from(len(u), q) for q in largest], shape)
    threshold = mean_exact_from if mean_only else law_known_from
    width = np.ptp(u, axis=0)
    return shaped([threshold(LAWS[law], len(u), side) for side in width], shape)


def unbiased_median(values: npt.ArrayLike, noise: Noise) -> tuple[Result, Result]:
    """Computes E = mean(u) and Var = var(u) + b^2 v_M of the systematic median.

    v_M is `limit_variance` with systematic coupling: 1 / M^2 for uniform noise. The
    same numbers as `median_moments`, for any M, where b is at least `unbiased_scale`.
    See this module for the proof.

    Args:
      values: u, [M] or [M, ...], worker axis first; the midpoint for an even M.
      noise: systematic, with a numeric or relative scale.

    Returns:
      (mean, variance), floats for values [M].

    Raises:
      ValueError: for independent noise, or a scale below `unbiased_scale`.

    Reference: ours.

    >>> from jaxmedian import noise
    >>> mean, variance = unbiased_median([1, 2, 10], noise.uniform(20.0, "systematic"))
    >>> print(f"{mean:.10f} {variance:.10f}")
    4.3333333333 60.6666666667
    """
    u, shape, scale = _beyond_threshold(values, noise, "median")
    ranks = middle_ranks(len(u), "midpoint")
    columns = [exact_moments(LAWS[noise.law], column, scale, ranks) for column in u.T]
    mean, variance = np.transpose(columns)
    return shaped(mean, shape), shaped(variance, shape)


def unbiased_vote(values: npt.ArrayLike, noise: Noise) -> Result:
    """Computes E[vote] of the systematic uniform vote beyond its threshold.

        E[vote] = M mean(u) / (sqrt(3) b)      for odd M,
                  M mean(u) / (2 sqrt(3) b)    for even M and ties "zero" or "random",

    and mean(u) / max|u_i| for both at `unbiased_scale`. The same number as plus - minus
    of `vote_probability`; proof in `jaxmedian.theory.numerics.exact_regime`.

    M is the number of workers present, so with one b a worker more or less changes the
    step: 11, 10, 9, 8 of one mean step by 11, 5, 9, 4 times mean / (sqrt(3) b). Ties
    "positive" are biased for even M.

    Args:
      values: u, [M] or [M, ...], of the workers present, worker axis first.
      noise: uniform and systematic, with a numeric or relative scale.

    Returns:
      The expected vote, a float for values [M].

    Raises:
      ValueError: for other noise, or a scale below `unbiased_scale`.

    Reference: ours; "stochastic sign" of Jin et al. (2020) is the case M = 1, and the
    expectation of each single worker in TernGrad (Wen et al., 2017) and z-SignFedAvg
    (Tang, Wang and Chang, AAAI 2024), which average signs.

    >>> from jaxmedian import noise
    >>> print(f"{unbiased_vote([1, 2, 10], noise.uniform(20.0, 'systematic')):.6f}")
    0.375278
    >>> at_half = unbiased_vote([1, 2, 10, 10], noise.uniform(11.548, "systematic"))
    >>> print(f"{at_half:.4f}")  # mean / max
    0.5750
    """
    u, shape, scale = _beyond_threshold(values, noise, "vote")
    tally = len(u) * u.mean(axis=0) / (np.sqrt(3.0) * scale)
    return shaped(tally / tally_step(len(u)), shape)


def _beyond_threshold(
    values: npt.ArrayLike, noise: Noise, rule: str
) -> tuple[Array, tuple[int, ...], float]:
    u, shape = worker_values(values)
    scale = scale_of(noise, u)
    if noise.coupling != "systematic":
        raise ValueError(
            "`noise` must be systematic: independent noise is never exactly unbiased. "
            f"Use `jaxmedian.noise.{noise.law}(scale, 'systematic')`."
        )
    smallest = np.max(unbiased_scale(u, noise.law, rule))
    if scale < smallest * _ROUNDING or scale == 0:
        raise ValueError(
            f"`noise.scale` is {scale:.6g}, and the {rule} is exactly unbiased only "
            f"from {smallest:.6g} on (`unbiased_scale`). Below it use `median_moments` "
            "or `vote_probability`."
        )
    return u, shape, scale
