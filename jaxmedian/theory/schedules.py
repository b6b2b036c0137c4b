"""Noise scale and step size from the number of steps and coordinates.

Each pair balances the terms of a bound as T and d grow; the constants (smoothness,
spread of the gradients) are left out, as in the paper, so treat the values as exponents
and put factors in front. They are asymptotic: b must exceed the spread of the workers'
gradients before they mean anything.
"""

from typing import NamedTuple

from jaxmedian.theory.arguments import choice, positive_integer

ALGORITHMS = ("noisy_median_sgd", "noisy_sign_sgd")


class Schedule(NamedTuple):
    """A constant noise scale b and a constant step size delta."""

    scale: float
    learning_rate: float


def schedule_theorem5(num_steps: int, num_coordinates: int) -> Schedule:
    """Returns b = (T d)^{1/4}, delta = (T d)^{-1/2} for Noisy signSGD.

    Rate: O(d^{3/4} / T^{1/4}) for the mixed measure of `theorem5_bound`.

    Args:
      num_steps: T.
      num_coordinates: d.

    Returns:
      (b, delta).

    Raises:
      ValueError, TypeError: unless both are whole numbers >= 1.

    Reference: Theorem 5 of the paper.

    >>> schedule_theorem5(10_000, 1)
    Schedule(scale=10.0, learning_rate=0.01)
    """
    size = _size(num_steps, num_coordinates)
    return Schedule(size ** (1 / 4), size ** (-1 / 2))


def schedule_theorem6(num_steps: int, num_coordinates: int) -> Schedule:
    """Returns b = (T d)^{1/6}, delta = (T d)^{-2/3} for Noisy medianSGD.

    Rate: O(d^{2/3} / T^{1/3}) for the mean of ||grad f||^2.

    Args:
      num_steps: T.
      num_coordinates: d.

    Returns:
      (b, delta).

    Raises:
      ValueError, TypeError: unless both are whole numbers >= 1.

    Reference: Theorem 6 of the paper.

    >>> scale, learning_rate = schedule_theorem6(10**6, 1)
    >>> print(f"{scale:.6f} {learning_rate:.6f}")
    10.000000 0.000100
    """
    size = _size(num_steps, num_coordinates)
    return Schedule(size ** (1 / 6), size ** (-2 / 3))


def schedule_sharper(
    num_steps: int, num_coordinates: int, algorithm: str = "noisy_median_sgd"
) -> Schedule:
    """Returns the schedules that a bias of O(1/b^2) allows, in place of the paper's.

    Noisy medianSGD: 1 / (T delta) + delta d b^2 + d / b^4 is balanced by b = (T
    d)^{1/10}, delta = (T d)^{-3/5}, rate d^{3/5} / T^{2/5}. Noisy signSGD: b (1 / (T
    delta) + delta d) + d / b^2 (`theorem5_bound`) by b = (T d)^{1/6}, delta = (T
    d)^{-1/2}, rate d^{2/3} / T^{1/3}. (For a smooth density the last term is d / b^4
    too, and b = (T d)^{1/10} with the same delta gives signSGD the rate of the median.)

    Args:
      num_steps: T.
      num_coordinates: d.
      algorithm: "noisy_median_sgd" or "noisy_sign_sgd".

    Returns:
      (b, delta).

    Raises:
      ValueError, TypeError: unless both are whole numbers >= 1, or for another name.

    Reference: ours.

    >>> scale, learning_rate = schedule_sharper(10**10, 1)
    >>> print(f"{scale:.6f} {learning_rate:.8f}")
    10.000000 0.00000100
    """
    choice("algorithm", algorithm, ALGORITHMS)
    size = _size(num_steps, num_coordinates)
    if algorithm == "noisy_median_sgd":
        return Schedule(size ** (1 / 10), size ** (-3 / 5))
    return Schedule(size ** (1 / 6), size ** (-1 / 2))


def _size(num_steps: int, num_coordinates: int) -> float:
    steps = positive_integer("num_steps", num_steps)
    return float(steps * positive_integer("num_coordinates", num_coordinates))
