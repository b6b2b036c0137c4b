"""Systematic noise above a finite b: exactly unbiased rules, for every permutation.

The scales, the moments and the expected vote of `exact_regime`, where the proofs are.
All of it is sharper than the paper (ours), whose bias is O(1/b) for every b. The price:
each coordinate follows one random worker, nothing is averaged and robustness is gone.
Below these scales use `median_moments` and `vote_probability`.
"""

from typing import Any

import numpy as np

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
    vote_exact_from,
)
from jaxmedian.theory.numerics.systematic_median import exact_moments

RULES = ("median", "vote")
_ROUNDING = 1 - 1e-12  # b equal to the threshold up to rounding counts as beyond it


def unbiased_scale(
    values: Any,
    law: str = "uniform",
    rule: str = "median",
    *,
    mean_only: bool = False,
) -> Result:
    """Computes the smallest b from which systematic noise is exactly unbiased.

    Median: M h(0) max|u_i - u_j|, beyond which its mean and variance are those of
    `unbiased_median`. If only the mean matters, max|u_i - u_j| / (2 H^{-1}(1/2 + 1/M))
    is enough, and for uniform noise M max|u_i - u_j| / (sqrt(3) (M + 1)) (odd M), which
    does not grow with M. Vote: M max|u_i| / sqrt(3).

    Args:
      values: u, [M] or [M, ...], worker axis first; M odd for the vote.
      law: name of the noise law; the vote needs "uniform".
      rule: "median" (the midpoint, if M is even) or "vote".
      mean_only: for the median: the scale of an exact mean, whatever the variance.

    Returns:
      b for each coordinate, in units of the values; take the maximum for all of them.

    Raises:
      ValueError: for an unknown law or rule, or a vote with an even M or another law.

    Reference: ours; proofs in `jaxmedian.theory.numerics.exact_regime`.

    >>> print(f"{unbiased_scale([1, 2, 10], 'uniform', 'vote'):.6f}")
    17.320508
    >>> print(f"{unbiased_scale([1, 2, 10]):.6f}")
    7.794229
    >>> print(f"{unbiased_scale([1, 2, 10], mean_only=True):.6f}")
    3.897114
    """
    u, shape = worker_values(values)
    choice("law", law, tuple(LAWS))
    _check_rule(rule, law, len(u))
    if rule == "vote":
        largest = np.abs(u).max(axis=0)
        return shaped([vote_exact_from(len(u), q) for q in largest], shape)
    threshold = mean_exact_from if mean_only else law_known_from
    width = np.ptp(u, axis=0)
    return shaped([threshold(LAWS[law], len(u), side) for side in width], shape)


def unbiased_median(values: Any, noise: Noise) -> tuple[Result, Result]:
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


def unbiased_vote(values: Any, noise: Noise) -> Result:
    """Computes E[vote] = M mean(u) / (sqrt(3) b) of the systematic uniform vote.

    The same number as plus - minus of `vote_probability`, where b is at least
    `unbiased_scale`; proof in `jaxmedian.theory.numerics.exact_regime`.

    Args:
      values: u, [M] or [M, ...], worker axis first, M odd.
      noise: uniform and systematic, with a numeric or relative scale.

    Returns:
      The expected vote, a float for values [M].

    Raises:
      ValueError: for other noise, an even M, or a scale below `unbiased_scale`.

    Reference: ours; "stochastic sign" of Jin et al. (2020) is the case M = 1.

    >>> from jaxmedian import noise
    >>> print(f"{unbiased_vote([1, 2, 10], noise.uniform(20.0, 'systematic')):.6f}")
    0.375278
    """
    u, shape, scale = _beyond_threshold(values, noise, "vote")
    return shaped(len(u) * u.mean(axis=0) / (np.sqrt(3.0) * scale), shape)


def _beyond_threshold(
    values: Any, noise: Noise, rule: str
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


def _check_rule(rule: str, law: str, num_workers: int) -> None:
    choice("rule", rule, RULES)
    if rule == "vote" and num_workers % 2 == 0:
        raise ValueError(
            f"`values` has {num_workers} workers; an exactly unbiased vote needs an "
            "odd number."
        )
    if rule == "vote" and not LAWS[law].is_flat:
        raise ValueError(
            f"`law` must be 'uniform' for an exactly unbiased vote; got {law!r}."
        )
