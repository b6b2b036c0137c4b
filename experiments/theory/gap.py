"""The gap between median and mean, and the order in which noise closes it.

Claim: E[median_i(u_i + b xi_i)] - mean(u) is the gap of the plain median for small b,
and falls as -kappa_M mu3 / b^2 for large b, an order faster than the O(1/b) of Theorem
4; with uniform noise and five workers even as 1/b^3, since kappa_5 = 0 there. Curves
are exact (`jm.theory.median_bias`), dots are averages of `jm.perturbed_median`.

    python -m experiments gap
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, Seed
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Curves, Result
from experiments.theory.power_laws import (
    LAWS,
    check_skewed,
    draw_medians,
    slopes_claim,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of both panels. The spread is max|u_i - u_j|.

    Attributes:
      three: u of the panel with three workers; the default is the paper's toy problem.
      five: u of the other panel, an odd number of workers too.
      least_scale: smallest b, in spreads.
      greatest_scale: largest b, in spreads.
      num_scales: points of each exact curve.
      simulated_scales: b of the dots, in spreads.
      draws: noisy medians behind each dot.
      tolerance: of the slopes, fitted over the last decade of b.
      seed: of the dots.
    """

    three: tuple[float, ...] = (1.0, 2.0, 10.0)
    five: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 14.0)
    least_scale: float = 0.01
    greatest_scale: float = 1000.0
    num_scales: Count = 81
    simulated_scales: Amounts = (0.03, 0.1, 0.3, 1.0, 2.0)
    draws: Count = 4_000_000
    tolerance: float = 0.01
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_skewed("three", self.three, 3)
        check_skewed("five", self.five, 5)


PRESETS = {
    "quick": Config(draws=400_000),
    "tiny": Config(num_scales=26, simulated_scales=(0.1, 1.0), draws=10_000),
}


def run(config: Config) -> Result:
    """Computes every curve, simulates the dots and fits the slopes."""
    curves = {}
    for values in (config.three, config.five):
        for law in LAWS:
            curves[_name(values, law)] = _exact(config, values, law)
    dots = {}
    for values in (config.three, config.five):
        for law in LAWS:
            dots[_name(values, law) + ", simulated"] = _simulated(config, values, law)
    claims = (
        *_slope_claims(config, curves),
        _coefficient_claim(config, curves),
        _simulation_claim(config, dots),
    )
    return Result({**curves, **dots}, claims, against="b / spread")


def _name(values: Sequence[float], law: str) -> str:
    return f"M = {len(values)}, {law}"


def _exact(config: Config, values: Sequence[float], law: str) -> dict[str, np.ndarray]:
    relative = np.geomspace(
        config.least_scale, config.greatest_scale, config.num_scales
    )
    bias = [
        jm.theory.median_bias(values, jm.noise.Noise(law, float(scale)))
        for scale in relative * np.ptp(values)
    ]
    return {"b / spread": relative, "bias": np.array(bias)}


def _simulated(
    config: Config, values: Sequence[float], law: str
) -> dict[str, np.ndarray]:
    """Averages perturbed medians: bias, its standard error, and the exact bias."""
    spread = float(np.ptp(values))
    panel = jax.random.fold_in(jax.random.key(config.seed), len(values))
    key = jax.random.fold_in(panel, LAWS.index(law))
    points = []
    for i, relative in enumerate(config.simulated_scales):
        noise = jm.noise.Noise(law, relative * spread)
        key_of_dot = jax.random.fold_in(key, i)
        sample = draw_medians(values, noise, config.draws, key_of_dot) - np.mean(values)
        error = sample.std(ddof=1) / np.sqrt(config.draws)
        exact = jm.theory.median_bias(values, noise)
        points.append((relative, sample.mean(), error, exact))
    names = ("b / spread", "bias", "standard_error", "exact")
    return dict(zip(names, np.array(points).T, strict=True))


def expected_slope(law: str, num_workers: int) -> int:
    """Returns the order of the bias in b for an odd M >= 3.

    -2 wherever kappa_M is not 0. For uniform noise and M >= 5 it is 0, and the order is
    that of the edges, -(floor((M - 1) / 2) + 1): see `jm.theory.bias_coefficient`.
    """
    if law == "uniform":
        return -max(2, (num_workers - 1) // 2 + 1)
    return -2


def _slope_claims(config: Config, curves: Curves) -> list[Claim]:
    return [
        slopes_claim(
            f"M = {len(values)}: slope of the exact bias against b",
            "-1 (an upper bound)",
            {law: curves[_name(values, law)] for law in LAWS},
            "bias",
            {law: expected_slope(law, len(values)) for law in LAWS},
            greatest_scale=config.greatest_scale,
            tolerance=config.tolerance,
        )
        for values in (config.three, config.five)
    ]


def _coefficient_claim(config: Config, curves: Curves) -> Claim:
    """Compares b^2 bias / -mu3 at the largest b with kappa_M, where that is not 0."""
    ratios = {}
    for values in (config.three, config.five):
        deviations = np.asarray(values) - np.mean(values)
        scale = config.greatest_scale * np.ptp(values)
        for law in LAWS:
            kappa = jm.theory.bias_coefficient(law, len(values))
            if kappa:
                found = -curves[_name(values, law)]["bias"][-1] * scale**2
                ratios[_name(values, law)] = found / np.mean(deviations**3) / kappa
    worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
    return Claim(
        "The limit of -b^2 bias / mu3 is the constant kappa_M",
        f"within {abs(ratios[worst] - 1):.1e} of it ({worst}, b = "
        f"{config.greatest_scale:g} spreads)",
        abs(ratios[worst] - 1) <= config.tolerance,
        paper="no constant",
    )


def _simulation_claim(config: Config, dots: Curves) -> Claim:
    distance = max(
        float(np.max(np.abs(dot["bias"] - dot["exact"]) / dot["standard_error"]))
        for dot in dots.values()
    )
    number = len(dots) * len(config.simulated_scales)
    return Claim(
        "jm.perturbed_median has the exact bias",
        f"{number} averages of {config.draws:,} draws: at most {distance:.1f} standard "
        "errors off",
        distance <= 5,
    )


def plot(result: Result) -> Figure:
    """Draws |bias| against b for three and for five workers."""
    workers = list(dict.fromkeys(name.split(", ")[0] for name in result.curves))
    figure, axes = panels(len(workers))
    for panel, prefix in zip(axes, workers, strict=True):
        _draw_panel(panel, result, prefix + ", ")
    axes[0].set_ylabel("|E[median] - mean|")
    return figure


def _draw_panel(axes: Axes, result: Result, prefix: str) -> None:
    num_workers = int(prefix.removeprefix("M = ").removesuffix(", "))
    for law in LAWS:
        exact = result.curves[prefix + law]
        dots = result.curves[prefix + law + ", simulated"]
        label = f"{law}: slope {expected_slope(law, num_workers)}"
        scales, bias = exact[result.against], np.abs(exact["bias"])
        (line,) = axes.plot(scales, bias, label=label)
        axes.errorbar(
            dots[result.against],
            np.abs(dots["bias"]),
            dots["standard_error"],
            fmt="o",
            markersize=3.5,
            capsize=2,
            color=line.get_color(),
        )
    large = scales[scales >= 1]
    axes.plot(large, bias[0] / large, "--", color="grey", label="1/b (Theorem 4)")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=result.against,
        title=f"M = {num_workers}: exact curves, simulated dots",
    )
    axes.legend()
