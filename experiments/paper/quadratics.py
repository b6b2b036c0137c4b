"""The mean squared gradient of noisy runs on f_i(x) = (x - a_i)^2 / 2, exactly.

Of T steps from x_0, mean_{t < T} E (x_t - mean(a))^2: the left-hand side of the paper's
convergence theorems in one dimension, without any simulation. medianSGD is an AR(1)
process and has a closed form for every T; signSGD walks on the lattice x_0 + k delta,
a Markov chain whose law is followed step by step.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

import jaxmedian as jm
from experiments.common.harness.misuse import Misuse

Array = npt.NDArray[np.float64]

_BLOCK = 256  # pairs of steps between two looks at where the chain can be
_NEGLIGIBLE = 1e-25  # probability of a site that is left out
_REACH = 4.0  # of the largest |x_0 - a_i|: the chain is cut there, and this is checked
_MOST_LOST = 1e-9


def median_mean_square(
    centres: Any,
    noise: jm.noise.Noise,
    learning_rate: float,
    start: float,
    num_steps: float,
) -> float:
    """Computes mean_{t < T} E (x_t - mean(a))^2 of noisy medianSGD.

    With y_t = x_t - mean, beta and V the bias and the variance of median(a + b xi), and
    r = 1 - delta,

        E y_t = beta + r^t (y_0 - beta),    Var y_t = delta V (1 - r^(2 t)) / (2 -
        delta),

    whose squares and sums over t are geometric.

    Args:
      centres: a, [M].
      noise: either coupling, with a number as scale.
      learning_rate: delta, 0 < delta < 1.
      start: x_0.
      num_steps: T.
    """
    delta = learning_rate
    bias = jm.theory.median_bias(centres, noise)
    variance = jm.theory.median_moments(centres, noise)[1]
    distance = start - float(np.mean(centres)) - bias
    log_kept = np.log1p(-delta)
    first = -np.expm1(num_steps * log_kept) / delta  # sum of r^t
    second = -np.expm1(2 * num_steps * log_kept) / (delta * (2 - delta))  # of r^(2 t)
    squares = num_steps * bias**2 + 2 * bias * distance * first + distance**2 * second
    variances = delta * variance / (2 - delta) * (num_steps - second)
    return float((squares + variances) / num_steps)


def vote_mean_square(
    centres: Any,
    noise: jm.noise.Noise,
    learning_rate: float,
    start: float,
    num_steps: int,
) -> float:
    """Computes mean_{t < T} E (x_t - mean(a))^2 of noisy signSGD.

    A vote of an odd number of noisy workers never ties, so that x_t is on every second
    site of the lattice, in turn; only the sites that can be occupied are followed.

    Args:
      centres: a, [M], M odd.
      noise: either coupling, with a number > 0 as scale.
      learning_rate: delta.
      start: x_0.
      num_steps: T, even.

    Raises:
      ValueError: for an even M or an odd T, without noise, or if the chain leaves the
        lattice that is kept.
    """
    a = np.asarray(centres, np.float64)
    if len(a) % 2 == 0 or num_steps % 2 or noise.scale == 0:
        raise ValueError(
            "The chain needs an odd number of `centres`, an even `num_steps` and a "
            f"`noise.scale` > 0; got {len(a)}, {num_steps} and {noise.scale}."
        )
    reach = _REACH * np.abs(start - a).max() / learning_rate
    half = 2 * int(np.ceil(min(num_steps, reach) / 2)) + 2
    x = start + learning_rate * np.arange(-half, half + 1)
    vote = jm.theory.vote_probability(x - a[:, None], noise)
    square = (x - a.mean()) ** 2
    return _sum_over_chain(vote.minus, vote.plus, square, num_steps) / num_steps


def _sum_over_chain(up: Array, down: Array, square: Array, num_steps: int) -> float:
    """Sums E square(x_t) over t < T for a walk that starts on the middle site.

    Args:
      up: [sites] probability of a step up; the number of sites is 1 modulo 4.
      down: [sites] of a step down.
      square: [sites] what is summed.
      num_steps: T, even.
    """
    even, odd = slice(0, None, 2), slice(1, None, 2)
    tables = [np.ascontiguousarray(t[part]) for part in (even, odd) for t in (up, down)]
    squares = [np.ascontiguousarray(square[part]) for part in (even, odd)]
    law = np.zeros(len(squares[0]))
    law[len(law) // 2] = 1.0
    total = 0.0
    for done in range(0, num_steps // 2, _BLOCK):
        pairs = min(_BLOCK, num_steps // 2 - done)
        occupied = np.flatnonzero(law > _NEGLIGIBLE)
        low, high = max(occupied[0] - pairs, 0), occupied[-1] + pairs + 1
        law[:low], law[high:] = 0.0, 0.0
        here, between = slice(low, high), slice(low, high - 1)
        total += _follow(
            law[here],
            [tables[0][here], tables[1][here], tables[2][between], tables[3][between]],
            [squares[0][here], squares[1][between]],
            pairs,
        )
    if abs(law.sum() - 1) > _MOST_LOST:
        raise Misuse(
            f"The chain left the lattice with probability {1 - law.sum():.1e}: the "
            "step or the noise is too large for this problem."
        )
    return total


def _follow(law: Array, tables: list[Array], squares: list[Array], pairs: int) -> float:
    """Takes pairs of steps, changing the law [n] of the even sites in place.

    Args:
      law: [n] probabilities of the even sites.
      tables: up and down of the even sites [n], and of the odd sites between them.
      squares: what is summed, on the even sites [n] and on the odd ones.
      pairs: of steps.

    Returns:
      The sum of the expectations.
    """
    up, down = tables[0][: len(law) - 1], tables[1][1 : len(law)]
    up_odd, down_odd = tables[2][: len(up)], tables[3][: len(up)]
    square, square_odd = squares[0][: len(law)], squares[1][: len(up)]
    odd, moved = np.empty(len(up)), np.empty(len(up))
    total = 0.0
    for _ in range(pairs):
        total += float(law @ square)
        np.multiply(law[:-1], up, out=odd)
        np.multiply(law[1:], down, out=moved)
        odd += moved
        total += float(odd @ square_odd)
        np.multiply(odd, down_odd, out=moved)
        np.multiply(odd, up_odd, out=law[1:])
        law[0] = 0.0
        law[:-1] += moved
    return total
