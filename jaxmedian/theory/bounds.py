"""Theorems 1, 2, 5 and 6 of the paper as inequalities with every constant stated.

T steps of size delta from x_0, f L-smooth, D = f(x_0) - inf f, d coordinates, M
workers. Theorems 1 and 2 are the paper's and take the bias and the deviation of the
median from the caller. Theorems 5 and 6 are O() statements in the paper; here they are
proved anew with explicit constants, for odd M, local gradients without sampling noise,
and a known bound R on how far the workers disagree in any coordinate. The constants are
safe, not sharp: `median_moments` on real gradients is exact. Step sizes and scales that
balance the terms are in `schedules`.
"""

import numpy as np

from jaxmedian.noise import Noise
from jaxmedian.noise.laws import LAWS, Law
from jaxmedian.theory.arguments import (
    check_not_relative,
    positive_integer,
    real_number,
    scale_of,
)
from jaxmedian.theory.asymptotics import limit_variance
from jaxmedian.theory.numerics.derivatives import steepest_slope


def theorem1_bound(
    num_steps: int,
    num_coordinates: int,
    smoothness: float,
    initial_suboptimality: float,
    median_deviation: float,
    mean_gap: float,
) -> float:
    """Computes the right-hand side of Theorem 1 (signSGD with majority vote).

    With delta = sqrt(D / (L d T)),

        mean_t E||grad f||_1 <= 1.5 sqrt(d L D / T) + 2 d sigma_m
                                + 2 mean_t E||E[median] - grad f||_1.

    Args:
      num_steps: T.
      num_coordinates: d.
      smoothness: L, of the gradient of f.
      initial_suboptimality: D = f(x_0) - inf f.
      median_deviation: sigma_m, a bound on the standard deviation of the coordinate
        median of the stochastic gradients; 0 for full batches without noise.
      mean_gap: mean over steps of E||E[median] - grad f||_1.

    Returns:
      A bound on the mean over steps of E||grad f||_1.

    Raises:
      ValueError, TypeError: for a negative or non-numeric argument.

    Reference: Theorem 1 of the paper.

    >>> theorem1_bound(100, 1, 1.0, 1.0, 0.0, 0.0)
    0.15000000000000002
    """
    steps = positive_integer("num_steps", num_steps)
    d = positive_integer("num_coordinates", num_coordinates)
    smooth, initial = _problem(smoothness, initial_suboptimality)
    deviation = real_number("median_deviation", median_deviation)
    gap = real_number("mean_gap", mean_gap)
    return (
        1.5 * float(np.sqrt(d * smooth * initial / steps)) + 2 * d * deviation + 2 * gap
    )


def theorem2_bound(
    learning_rate: float,
    num_steps: int,
    num_coordinates: int,
    smoothness: float,
    initial_suboptimality: float,
    median_deviation: float,
    squared_gap: float,
) -> float:
    """Computes the right-hand side of Theorem 2 (medianSGD), in its safe form.

        mean_t E||grad f||^2 <= 2 D / (T delta) + L delta d sigma_m^2
                                + mean_t E||grad f - E[median]||^2,    delta <= 1 / L.

    Args:
      learning_rate: delta.
      num_steps: T.
      num_coordinates: d.
      smoothness: L.
      initial_suboptimality: D.
      median_deviation: sigma_m, as in `theorem1_bound`.
      squared_gap: mean over steps of E||grad f - E[median]||^2.

    Returns:
      A bound on the mean over steps of E||grad f||^2.

    Raises:
      ValueError, TypeError: for delta > 1 / L, or a negative or non-numeric argument.

    Reference: Theorem 2 of the paper.

    >>> theorem2_bound(0.1, 100, 1, 1.0, 1.0, 0.0, 0.0)
    0.2
    """
    delta = real_number("learning_rate", learning_rate, positive=True)
    steps = positive_integer("num_steps", num_steps)
    d = positive_integer("num_coordinates", num_coordinates)
    smooth, initial = _problem(smoothness, initial_suboptimality)
    if delta * smooth > 1:
        raise ValueError(
            f"`learning_rate` must be at most 1 / smoothness = {1 / smooth:.6g}; got "
            f"{delta!r}. Theorem 2 says nothing beyond."
        )
    deviation = real_number("median_deviation", median_deviation)
    gap = real_number("squared_gap", squared_gap)
    return 2 * initial / (steps * delta) + smooth * delta * d * deviation**2 + gap


def theorem5_bound(
    learning_rate: float,
    num_steps: int,
    num_coordinates: int,
    smoothness: float,
    initial_suboptimality: float,
    noise: Noise,
    num_workers: int,
    spread: float,
) -> float:
    """Computes an explicit Theorem 5 (Noisy signSGD).

    Let sigma^2 = `limit_variance`, W_t the coordinates with |grad_j| >= (2 / sqrt 3) b
    sigma, and A = M R^2 (max|h'| + M h(0)^2) / 8. If 6 A <= b^2, then

        min(1, 2 sigma / sqrt 3) mean_t E(sum_{W_t} b |grad_j| + sum_{not W_t} grad_j^2)
          <= 2 sqrt 3 sigma b (D / (T delta) + L delta d / 2) + 12 d sigma^2 A^2 / b^2.

    With b = (T d)^{1/4} and delta = (T d)^{-1/2} the first term is the paper's
    O(d^{3/4} / T^{1/4}), and the second one O((d / T)^{1/2}).

    Proof. f(x_{t+1}) <= f(x_t) - delta sum_j grad_j vote_j + L delta^2 d / 2. Scale the
    deviations of the values by theta: P(median <= 0) has derivative 0 at theta = 0 and
    a second derivative of at most 2 A / b^2, so that E[vote_j] differs from that of
    equal values, +-P(|Z| < |grad_j| / b) with Z the median of M draws, by at most 2 A /
    b^2 <= 1/3. Z is unimodal: by Gauss's inequality P(|Z| < t) >= 2/3 for t >= 2 sigma
    / sqrt 3 and >= t / (sqrt 3 sigma) below. On W_t at least |grad_j| / 3 remains;
    elsewhere 2 |A grad_j| / b^2 <= grad_j^2 / (2 sqrt 3 sigma b) + 2 sqrt 3 sigma A^2 /
    b^3. Sum over t and j, and multiply by 2 sqrt 3 sigma b.

    Args:
      learning_rate: delta.
      num_steps: T.
      num_coordinates: d.
      smoothness: L.
      initial_suboptimality: D.
      noise: independent, with a numeric scale b. For uniform noise R <= (sqrt 3 - 2
        sigma / sqrt 3) b as well, so that only flat parts of the density are met.
      num_workers: M, odd.
      spread: R >= |grad_ij - grad_kj| for all workers i, k, coordinates j and steps.

    Returns:
      A bound on mean_t E(sum_{W_t} b |grad_j| + sum_{not W_t} grad_j^2).

    Raises:
      ValueError, TypeError: if b is too small for R (the message says how large it must
        be), for an even M, systematic noise, or a negative or non-numeric argument.

    Reference: Theorem 5 of the paper for the order; the constants are ours.

    >>> from jaxmedian import noise
    >>> bound = theorem5_bound(1e-3, 10**6, 1, 1.0, 1.0, noise.gaussian(30.0), 3, 9.0)
    >>> print(f"{bound:.4f}")
    3.8286
    """
    delta = real_number("learning_rate", learning_rate, positive=True)
    steps = positive_integer("num_steps", num_steps)
    d = positive_integer("num_coordinates", num_coordinates)
    smooth, initial = _problem(smoothness, initial_suboptimality)
    law, b, m, width = _noisy(noise, num_workers, spread)
    sigma = float(np.sqrt(limit_variance(noise.law, m)))
    peak = float(law.pdf(0.0))
    a = m * width**2 * (steepest_slope(law) + m * peak**2) / 8
    needed = float(np.sqrt(6 * a))
    if np.isfinite(law.bound):
        needed = max(needed, width / (law.bound - 2 * sigma / np.sqrt(3.0)))
    if b < needed or b == 0:
        raise ValueError(
            f"`noise.scale` must be > 0 and >= {needed:.6g} for {m} workers and a "
            f"spread of {width:.6g}; got {b:.6g}. Below it the bound proves nothing."
        )
    factor = 2 * np.sqrt(3.0) * sigma * b
    right = factor * (initial / (steps * delta) + smooth * delta * d / 2)
    right += 12 * d * (sigma * a / b) ** 2
    return float(right / min(1.0, 2 * sigma / np.sqrt(3.0)))


def theorem6_bound(
    learning_rate: float,
    num_steps: int,
    num_coordinates: int,
    smoothness: float,
    initial_suboptimality: float,
    noise: Noise,
    num_workers: int,
    spread: float,
) -> float:
    """Computes an explicit Theorem 6 (Noisy medianSGD).

        mean_t E||grad f||^2 <= 2 D / (T delta) + L delta d (b sigma + R / 2)^2
                                + d min(R, M h(0) R^2 / (2 b))^2,    delta <= 1 / L,

    sigma^2 = `limit_variance`: Theorem 2 with bounds on the median that hold for any
    values within R of each other. With b = (T d)^{1/6} and delta = (T d)^{-2/3} every
    term is of the paper's order O(d^{2/3} / T^{1/3}).

    Proof. The median lies between min u + b Z and max u + b Z, Z the median of the
    noise, so its deviation is at most b sigma + R / 2 and its bias at most R. Scale the
    deviations d_i of the values by theta: E[median] has the derivative sum_i d_i P_i,
    P_i = P(i is the median), which is 0 at theta = 0, and the second derivative -1/2
    sum_{i != j} (d_i - d_j)^2 dP_i/du_j. There |dP_i/du_j| <= (1 / b) int h_i h_j (P(n
    of the others below) + P(n - 1 of them)) dz, and summed over j the h_j times either
    probability is a density, so that the sum over i and j is at most 2 M h(0) / b.
    Taylor's formula gives |bias| <= M h(0) R^2 / (2 b).

    Args:
      learning_rate: delta.
      num_steps: T.
      num_coordinates: d.
      smoothness: L.
      initial_suboptimality: D.
      noise: independent, with a numeric scale b > 0.
      num_workers: M, odd.
      spread: R >= |grad_ij - grad_kj| for all workers i, k, coordinates j and steps.
        With stochastic gradients R must also cover their whole range.

    Returns:
      A bound on the mean over steps of E||grad f||^2.

    Raises:
      ValueError, TypeError: as in `theorem2_bound`, and for an even M or systematic
        noise.

    Reference: Theorem 6 of the paper for the order; the constants are ours.

    >>> from jaxmedian import noise
    >>> bound = theorem6_bound(1e-4, 10**6, 1, 1.0, 1.0, noise.gaussian(10.0), 3, 9.0)
    >>> print(f"{bound:.4f}")
    23.5274
    """
    law, b, m, width = _noisy(noise, num_workers, spread)
    if b == 0:
        raise ValueError(
            "`noise.scale` must be > 0; without noise use `theorem2_bound`."
        )
    d = positive_integer("num_coordinates", num_coordinates)
    deviation = b * float(np.sqrt(limit_variance(noise.law, m))) + width / 2
    bias = min(width, m * float(law.pdf(0.0)) * width**2 / (2 * b))
    return theorem2_bound(
        learning_rate,
        num_steps,
        d,
        smoothness,
        initial_suboptimality,
        deviation,
        d * bias**2,
    )


def _problem(smoothness: object, initial_suboptimality: object) -> tuple[float, float]:
    return (
        real_number("smoothness", smoothness, positive=True),
        real_number("initial_suboptimality", initial_suboptimality),
    )


def _noisy(
    noise: Noise, num_workers: object, spread: object
) -> tuple[Law, float, int, float]:
    width = real_number("spread", spread)
    m = positive_integer("num_workers", num_workers)
    why = "`spread` bounds how far apart gradients are, a relative one their size"
    check_not_relative(noise, why)
    scale = scale_of(noise, np.array([[width]]))
    if m % 2 == 0:
        raise ValueError(f"`num_workers` must be odd, as in the paper; got {m}.")
    if noise.coupling != "independent":
        raise ValueError(
            "`noise` must be independent: the proof needs it. For systematic noise see "
            "`unbiased_median` and `unbiased_vote`."
        )
    return LAWS[noise.law], scale, m, width
