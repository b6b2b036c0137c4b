"""What the comparison of estimates claims: bias, its order, its price, breakdown."""

import math

import numpy as np

from experiments.common.harness.results import Claim, Curves
from experiments.theory.estimator.breakdown import expected_breakdown
from experiments.theory.estimator.estimates import Config
from experiments.theory.estimator.moments import (
    NOISY,
    RICHARDSON,
    Moments,
    averaged_rmse,
)
from experiments.theory.power_laws import slope

BUDGETS = np.geomspace(1, 1e8, 81)  # noisy medians that an average may cost

Fixed = dict[str, dict[str, float]]  # rule without noise -> bias, sd, rmse


def less_biased_claim(fixed: Fixed, exact: Curves) -> Claim:
    """Finds the b from which on the noisy median is less biased than every rule."""
    least = min(abs(rule["bias"]) for rule in fixed.values())
    curve = exact[NOISY]
    start = _first(np.abs(curve["bias"]) < least, curve["b / sd"])
    biases = ", ".join(f"{rule['bias']:.3f} {name}" for name, rule in fixed.items())
    return Claim(
        "On skewed workers the noisy median is less biased than every robust rule, "
        "for b large enough",
        f"bias {biases}; noisy below them from b = {start:.2f} sd on",
        math.isfinite(start),
        paper="bias O(1/b)",
    )


def slope_claim(config: Config, exact: Curves) -> Claim:
    """Fits the last factor of two of b; kinks and edges of a law change the orders."""
    found = {
        name: slope(curve["b / sd"][-3:], curve["bias"][-3:])
        for name, curve in exact.items()
    }
    smooth = config.law in ("gaussian", "logistic")
    judged = smooth and exact[NOISY]["b / sd"][-3] >= 16
    return Claim(
        "The bias falls as b^-2, that of (4 E_2b - E_b) / 3 as b^-4",
        f"slopes {found[NOISY]:.3f} and {found[RICHARDSON]:.3f} up to b = "
        f"{exact[NOISY]['b / sd'][-1]:g} sd",
        abs(found[NOISY] + 2) < 0.05 and abs(found[RICHARDSON] + 4) < 0.05
        if judged
        else None,
        paper="-1 (an upper bound)",
    )


def simulation_claim(
    config: Config, moments: dict[float, Moments], dots: Curves
) -> Claim:
    """Compares the dots with the exact moments, in standard errors."""
    off = []
    for i, scale in enumerate(config.simulated_scales):
        (bias, variance), doubled = moments[scale], moments[2 * scale].bias
        noisy = {name: v[i] for name, v in dots[f"{NOISY}, simulated"].items()}
        other = {name: v[i] for name, v in dots[f"{RICHARDSON}, simulated"].items()}
        squared = (bias**2 + variance).mean()
        off += [
            (noisy["bias"] - bias.mean()) / noisy["bias_error"],
            (noisy["squared_error"] - squared) / noisy["squared_error_error"],
            (other["bias"] - (4 * doubled - bias).mean() / 3) / other["bias_error"],
        ]
    return Claim(
        "jm.perturbed_median has the exact bias and mean squared error, and its "
        "extrapolation the exact bias",
        f"{len(off)} comparisons: at most {np.abs(off).max():.1f} standard errors off",
        bool(np.abs(off).max() <= 5),
    )


def shared_draws_claim(dots: Curves) -> Claim:
    """Compares sd over sd at the largest simulated b with both limits."""
    last = dots[f"{NOISY}, simulated"]["b / sd"].argmax()
    noisy, other = (dots[f"{n}, simulated"]["sd"][last] for n in (NOISY, RICHARDSON))
    scale = dots[f"{NOISY}, simulated"]["b / sd"][last]
    ratio, shared, independent = other / noisy, 7 / 3, math.sqrt(65) / 3
    return Claim(
        "Price of the extrapolation: the sd of one draw, times 7/3 if both medians "
        "share their draws, times sqrt(65)/3 = 2.69 if not",
        f"{noisy:.2f} -> {other:.2f}, times {ratio:.3f}, at b = {scale:g} sd",
        bool(abs(ratio - shared) < 0.1 * (independent - shared))
        if scale >= 8
        else None,
    )


def averaging_claim(fixed: Fixed, exact: Curves) -> Claim:
    """Finds how many draws must be averaged to beat each rule, at the best b."""
    noisy = np.array([averaged_rmse(exact[NOISY], n) for n in BUDGETS])
    needed = {
        name: _first(noisy < rule["rmse"], BUDGETS) for name, rule in fixed.items()
    }
    enough = all(math.isfinite(n) for n in needed.values())
    other = np.array([averaged_rmse(exact[RICHARDSON], n / 2) for n in BUDGETS])
    needed["the noisy median (Richardson)"] = _first(other < noisy, BUDGETS)
    return Claim(
        "Averaging removes the variance: with enough draws the noisy median has the "
        "smallest root mean squared error; its extrapolation needs far more",
        "draws to beat " + ", ".join(f"{name}: {n:.3g}" for name, n in needed.items()),
        enough,
        reason="the extrapolation counted as two independent medians",
    )


def _first(holds: np.ndarray, points: np.ndarray) -> float:
    """Returns the point from which on it holds to the end, infinity if it does not."""
    fails = np.flatnonzero(~holds)
    start = fails[-1] + 1 if fails.size else 0
    return float(points[start]) if start < len(points) else math.inf


def breakdown_claim(config: Config, counts: dict[str, int]) -> Claim:
    """Compares the numbers of hostile workers with the known breakdown points."""
    return Claim(
        f"Hostile workers needed to break each rule, of {config.num_workers}: a fixed "
        "b keeps the breakdown point of the median, b = factor max|g| loses it",
        ", ".join(f"{count} {name}" for name, count in counts.items()),
        all(count == expected_breakdown(config, n) for n, count in counts.items()),
        paper="named as a trade-off",
    )
