"""The noisy median as an estimate of a mean: bias, spread, and what breaks it.

Claim: on skewed workers the noisy median trades the bias of robust rules for variance
that averaging removes. Its bias falls as b^-2, that of the Richardson extrapolation (4
E_2b - E_b) / 3 as b^-4. With a fixed b it withstands every minority of hostile workers,
as the median does; with b = 0.1 max|g| a single one sets b. The paper (Remarks) names
the trade-off; the numbers are ours.

    python -m experiments estimator
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.harness.plots import draw_curves, panels
from experiments.common.harness.results import Result
from experiments.theory.estimator import breakdown, comparison, estimates
from experiments.theory.estimator.estimates import PRESETS, Array, Config
from experiments.theory.estimator.moments import (
    NOISY,
    RICHARDSON,
    averaged_rmse,
    exact,
    moments_by_scale,
    simulated,
)

__all__ = ["Config", "PRESETS", "plot", "run"]


def run(config: Config) -> Result:
    """Compares the rules on the same data sets."""
    values = workers(config)
    moments = moments_by_scale(config, values)
    curves = exact(config, moments)
    fixed = _fixed_rules(config, values)
    dots = {
        f"{name}, simulated": simulated(config, values, name)
        for name in (NOISY, RICHARDSON)
    }
    errors = breakdown.errors_by_number(config, values)
    counts = {
        name: breakdown.breakdown(config, error) for name, error in errors.items()
    }
    judged = (
        comparison.less_biased_claim(fixed, curves),
        comparison.slope_claim(config, curves),
        comparison.simulation_claim(config, moments, dots),
        comparison.shared_draws_claim(dots),
        comparison.averaging_claim(fixed, curves),
        comparison.breakdown_claim(config, counts),
    )
    extra = {
        "rules": fixed,
        "hostile": {name: list(error) for name, error in errors.items()},
        "breakdown": counts,
    }
    return Result({**curves, **dots}, judged, extra, against="b / sd")


def workers(config: Config) -> Array:
    """Draws the data sets, [M, sets, d]: exponential, with mean and sd 1."""
    rng = np.random.default_rng(config.seed)
    size = (config.num_workers, config.num_sets, config.dimension)
    return rng.exponential(size=size)


def _fixed_rules(config: Config, values: Array) -> comparison.Fixed:
    """Computes bias, sd and root mean squared error of the rules without noise."""
    rows = {
        "median": np.median(values, axis=0),
        "trimmed mean": estimates.trimmed_mean(values, config.trim),
        "geometric median": estimates.geometric_median(values),
    }
    found = {}
    for name, estimate in rows.items():
        error = estimate - values.mean(axis=0)
        found[name] = {
            "bias": float(error.mean()),
            "sd": float(error.std()),
            "rmse": float(np.sqrt((error**2).mean())),
        }
    return found


def plot(result: Result) -> Figure:
    """Draws bias and sd against b, error against draws, and hostile workers."""
    figure, axes = panels(4)
    for panel, metric in zip(axes, ("bias", "sd"), strict=False):
        _draw_metric(panel, result, metric)
    _draw_averages(axes[2], result)
    for name, error in result.extra["hostile"].items():
        axes[3].plot(error, marker=".", label=name)
    axes[3].set_yscale("log", nonpositive="mask")
    axes[3].set(xlabel="hostile workers", title="error against the honest mean")
    axes[3].legend(fontsize=6, loc="center right")
    return figure


def _draw_metric(axes: Axes, result: Result, metric: str) -> None:
    curves = {
        name: {**result.curves[name], metric: np.abs(result.curves[name][metric])}
        for name in (NOISY, RICHARDSON)
    }
    draw_curves(axes, curves, metric, result.against)
    for i, name in enumerate((NOISY, RICHARDSON)):
        dots = result.curves[f"{name}, simulated"]
        error = dots.get(f"{metric}_error")
        axes.errorbar(
            dots[result.against],
            np.abs(dots[metric]),
            error,
            fmt="o",
            markersize=3.5,
            capsize=2,
            color=f"C{i}",
        )
    for i, (name, rule) in enumerate(result.extra["rules"].items(), start=2):
        axes.axhline(abs(rule[metric]), color=f"C{i}", linestyle="--", label=name)
    axes.set(xscale="log", yscale="log")
    titles = {"bias": "|bias|", "sd": "sd of one error (dots share draws)"}
    axes.set_title(titles[metric])
    if metric == "bias":
        axes.legend(fontsize=7)


def _draw_averages(axes: Axes, result: Result) -> None:
    for name, cost in ((NOISY, 1), (RICHARDSON, 2)):
        curve = result.curves[name]
        errors = [averaged_rmse(curve, n / cost) for n in comparison.BUDGETS]
        axes.plot(comparison.BUDGETS, errors)
    for i, rule in enumerate(result.extra["rules"].values(), start=2):
        axes.axhline(rule["rmse"], color=f"C{i}", linestyle="--")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="noisy medians averaged",
        title="root mean squared error, best b",
    )
