"""The exact law of the noisy majority vote.

Worker i votes + when u_i + b xi_i > 0, with probability H(u_i / b). The number of +
votes is Poisson-binomial under independent noise, and a count of arcs on a circle under
systematic noise; for odd M, P(+) = 1 - F_median(0) (Proposition 1 of the paper). Noise
never ties a single worker's vote; without noise a worker at exactly 0 does not vote,
the rule ties="zero" of `jaxmedian.majority_vote`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import Noise
from jaxmedian.noise.laws import LAWS
from jaxmedian.theory.arguments import (
    Array,
    Result,
    scale_of,
    shaped,
    standardised,
    worker_values,
)
from jaxmedian.theory.numerics import systematic
from jaxmedian.theory.numerics.poisson_binomial import count_coefficient, count_tails


class VoteProbability(NamedTuple):
    """How a majority vote ends; the three sum to 1.

    Attributes:
      plus: P(vote = +1), a float or an array without the worker axis.
      minus: P(vote = -1).
      tie: P(as many + as -); 0 for odd M, unless there is no noise.
    """

    plus: Result
    minus: Result
    tie: Result


def vote_probability(
    values: npt.ArrayLike, noise: Noise, *, permutation: npt.ArrayLike | None = None
) -> VoteProbability:
    """Computes P(+1), P(-1) and P(tie) of the noisy majority vote, coordinate-wise.

    Independent noise: tails of PoissonBinomial(H(u_1 / b), ..., H(u_M / b)), with a
    small relative error even where they are tiny. Systematic noise: exact for every M,
    see `jaxmedian.theory.numerics.systematic`, with an absolute error of about 1e-15.

    Args:
      values: u, [M] or [M, ...], worker axis first.
      noise: law, scale (a number, or `relative`, resolved on the values) and coupling.
      permutation: systematic noise only: [M], the slot of each worker; None averages
        over all permutations, as in training.

    Returns:
      A `VoteProbability` (plus, minus, tie). Scale 0 gives the noise-free vote.

    Raises:
      ValueError: for empty, NaN or infinite values, a negative scale, or a permutation
        that is none or that comes with independent noise.
      TypeError: for values that are no numbers, or a scale that is a schedule.

    Reference: Proposition 1 and Theorem 5 of the paper; the exact law is ours.

    >>> from jaxmedian import noise
    >>> print(f"{vote_probability([1, 2, 10], noise.gaussian(5.0)).plus:.10f}")
    0.8442074808
    """
    u, shape = worker_values(values)
    scale = scale_of(noise, u)
    systematic.check_permutation(permutation, noise, len(u))
    laws = outcome_laws(u, noise, scale, permutation)
    return VoteProbability(*(shaped(part, shape) for part in laws))


def outcome_laws(
    u: Array, noise: Noise, scale: float, permutation: npt.ArrayLike | None
) -> list[Array]:
    """Computes P(+1), P(-1), P(tie), [C] each; a worker at +-inf votes for certain."""
    if scale == 0:
        tally = np.sign(u).sum(axis=0)
        return [tally > 0, tally < 0, tally == 0]
    if noise.coupling == "systematic":
        down = LAWS[noise.law].cdf(-standardised(u, scale))
        return list(np.transpose([_systematic(p, permutation) for p in down.T]))
    z = standardised(u, scale)
    return _independent(LAWS[noise.law].cdf(z), LAWS[noise.law].cdf(-z))


def _independent(up: Array, down: Array) -> list[Array]:
    """Counts votes with probabilities up and down, [M, C] each."""
    num_workers = len(up)
    majority = num_workers // 2 + 1
    plus, _ = count_tails(up, down, majority)
    minus, _ = count_tails(down, up, majority)
    if num_workers % 2:
        return [plus, minus, np.zeros_like(plus)]
    return [plus, minus, count_coefficient(up, down, num_workers // 2)]


def _systematic(
    down: Array, permutation: npt.ArrayLike | None
) -> tuple[float, float, float]:
    """Counts the - votes of one coordinate, [M] probabilities."""
    num_workers = len(down)
    majority = num_workers // 2 + 1
    enough = num_workers - majority + 1  # - votes that prevent a + majority
    if permutation is None:
        minus = systematic.at_least(down, majority)
        not_plus = minus if num_workers % 2 else systematic.at_least(down, enough)
    else:
        counts = systematic.arc_counts(down, permutation)
        minus, not_plus = float(counts[majority:].sum()), float(counts[enough:].sum())
    minus, not_plus = min(minus, 1.0), min(not_plus, 1.0)
    return 1.0 - not_plus, minus, not_plus - minus
