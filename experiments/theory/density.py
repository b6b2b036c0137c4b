"""How the law of the noisy median turns symmetric about the mean as b grows.

Claim: the antisymmetric part of the median's density, (f(mean + x) - f(mean - x)) / 2,
has the mass O(1/b^3) for smooth laws, an order below the O(1/b^2) of Theorem 4. That
order is reached only where the law is not smooth: by the kink of the Laplace law, and
by the edges of the uniform law for three workers. The mass is the total variation
distance between the law of the median and its mirror image.

    python -m experiments density
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

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

_TAIL = 12.0  # noise scales beyond which less than 1e-7 of any of these laws is left
_SHOWN = 161  # points of a drawn density
_MISTAKE = 1e-9  # probability with which the band may be left

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the densities and of their antisymmetric masses.

    Attributes:
      three: u of three workers, whose densities are drawn; the default is the paper's.
      five: u of another odd number of workers; only its mass is measured.
      shown_law: law of the noise behind the drawn densities.
      shown_scales: b of the drawn densities, in spreads max|u_i - u_j|.
      draws: values of `jm.perturbed_median` behind each histogram.
      least_scale: smallest b of the masses, in spreads.
      greatest_scale: largest b of the masses, in spreads.
      num_scales: points of each mass curve.
      points: of each of the three grids on which a mass is summed.
      tolerance: of the slopes, fitted over the last decade of b.
      seed: of the draws.
    """

    three: tuple[float, ...] = (1.0, 2.0, 10.0)
    five: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 14.0)
    shown_law: str = "gaussian"
    shown_scales: Amounts = (0.1, 0.3, 1.0, 4.0)
    draws: Count = 1_000_000
    least_scale: float = 0.1
    greatest_scale: float = 300.0
    num_scales: Count = 36
    points: Count = 2001
    tolerance: float = 0.02
    seed: Seed = 0

    def __post_init__(self) -> None:
        jm.noise.Noise(self.shown_law, 1.0)  # says which laws there are
        check_skewed("three", self.three, 3)
        check_skewed("five", self.five, 5)


PRESETS = {
    "quick": Config(draws=100_000),
    "tiny": Config(draws=10_000, num_scales=15, points=801),
}


def run(config: Config) -> Result:
    """Computes densities and masses, and compares the former with draws."""
    densities, distances = {}, []
    for i, relative in enumerate(config.shown_scales):
        curve, distance = _density(config, relative, i)
        densities[f"b = {relative:g} spreads"] = curve
        distances.append(distance)
    masses = {}
    for values in (config.three, config.five):
        for law in LAWS:
            masses[f"M = {len(values)}, {law}"] = _masses(config, values, law)
    claims = (*_slope_claims(config, masses), _draws_claim(config, distances))
    extra = {"law": config.shown_law, "densities": densities}
    return Result(masses, claims, extra, against="b / spread")


def antisymmetric_mass(
    values: Sequence[float], noise: jm.noise.Noise, points: int = 2001
) -> float:
    """Computes the mass of the antisymmetric part of the noisy median's density.

    int |f(mean + x) - f(mean - x)| / 2 dx over all x is the total variation of G(x) =
    F(mean + x) + F(mean - x) over x > 0, summed here on a grid: exact between its
    extrema, and never too large. The grid is fine around 0 and around the edges of the
    uniform law, where a law may have kinks, and contains each kink.

    Args:
      values: u, [M], M odd.
      noise: independent, with a number > 0 as scale.
      points: of each of the three grids.

    Returns:
      The mass, between 0 (symmetric) and 1.
    """
    u = np.asarray(values, np.float64)
    spread, mean = float(np.ptp(u)), float(u.mean())
    edge = float(np.sqrt(3.0)) * float(noise.scale)  # type: ignore[arg-type]
    around = np.linspace(-2 * spread, 2 * spread, points)
    kinks = (np.abs(np.array([[-edge], [0.0], [edge]]) + u - mean)).ravel()
    far = 2 * spread + _TAIL * edge / np.sqrt(3.0)
    grid = np.concatenate([around, around + edge, np.linspace(0, far, points), kinks])
    x = np.unique(np.maximum(grid, 0.0))
    columns = u[:, None]
    total = jm.theory.median_cdf(columns, noise, mean + x) + jm.theory.median_cdf(
        columns, noise, mean - x
    )
    return float(np.abs(np.diff(total)).sum())


def _masses(
    config: Config, values: Sequence[float], law: str
) -> dict[str, NDArray[np.float64]]:
    relative = np.geomspace(
        config.least_scale, config.greatest_scale, config.num_scales
    )
    mass = [
        antisymmetric_mass(values, jm.noise.Noise(law, float(scale)), config.points)
        for scale in relative * np.ptp(values)
    ]
    return {"b / spread": relative, "mass": np.array(mass)}


def _density(
    config: Config, relative: float, index: int
) -> tuple[dict[str, list[float]], float]:
    """Tabulates a density about the mean, over its standard deviation, and draws it.

    Returns:
      The table, with the share of draws between each point and the next as a density;
      and the largest distance between exact and empirical distribution function.
    """
    u = np.asarray(config.three)
    noise = jm.noise.Noise(config.shown_law, relative * float(np.ptp(u)))
    deviation = float(np.sqrt(jm.theory.median_moments(u, noise)[1]))
    x = np.linspace(-4, 4, _SHOWN)
    t = u.mean() + deviation * x
    density = deviation * jm.theory.median_density(u[:, None], noise, t)
    key = jax.random.fold_in(jax.random.key(config.seed), index)
    sample = np.sort(draw_medians(config.three, noise, config.draws, key))
    bins, edges = np.histogram((sample - u.mean()) / deviation, bins=40, range=(-4, 4))
    table = {
        "x": x.tolist(),
        "density": density.tolist(),
        "edges": edges.tolist(),
        "histogram": (bins / config.draws / np.diff(edges)).tolist(),
    }
    exact = jm.theory.median_cdf(u[:, None], noise, sample)
    return table, distance_of_laws(exact)


def distance_of_laws(exact: Array) -> float:
    """Returns sup |F_n - F| from the exact F at the sorted values of a sample [n]."""
    n = len(exact)
    above = np.arange(1, n + 1) / n - exact
    below = exact - np.arange(n) / n
    return float(max(above.max(), below.max()))


def expected_slope(law: str, num_workers: int) -> int:
    """Returns the order of the antisymmetric mass in b for an odd M >= 3.

    e = (u - mean) / b is the width of the neighbourhoods of a kink or an edge. Smooth
    parts contribute e^3. At the kink of the Laplace law f is wrong by e: a mass of e^2.
    At an edge of the uniform law f is about e^n, n = (M - 1) / 2: a mass of e^(n + 1).
    """
    if law == "laplace":
        return -2
    if law == "uniform":
        return -min(3, (num_workers - 1) // 2 + 1)
    return -3


def _slope_claims(config: Config, masses: Curves) -> list[Claim]:
    return [
        slopes_claim(
            f"M = {len(values)}: slope of the antisymmetric mass",
            "-2 (an upper bound)",
            {law: masses[f"M = {len(values)}, {law}"] for law in LAWS},
            "mass",
            {law: expected_slope(law, len(values)) for law in LAWS},
            greatest_scale=config.greatest_scale,
            tolerance=config.tolerance,
        )
        for values in (config.three, config.five)
    ]


def _draws_claim(config: Config, distances: list[float]) -> Claim:
    """Judges the draws by the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart.

    P(sup |F_n - F| > eps) <= 2 exp(-2 n eps^2).
    """
    number = len(distances)
    band = float(np.sqrt(np.log(2 * number / _MISTAKE) / (2 * config.draws)))
    return Claim(
        f"jm.perturbed_median has the exact law ({config.shown_law})",
        f"sup |F_n - F| = {max(distances):.5f} <= {band:.5f}, {config.draws:,} draws "
        f"at each of {number} b",
        max(distances) <= band,
    )


def plot(result: Result) -> Figure:
    """Draws the densities, their antisymmetric parts and the masses."""
    figure, axes = panels(3)
    for name, table in result.extra["densities"].items():
        x, density = np.array(table["x"]), np.array(table["density"])
        (line,) = axes[0].plot(x, density, label=name)
        axes[0].stairs(
            table["histogram"], table["edges"], color=line.get_color(), alpha=0.5
        )
        axes[1].plot(x, 0.5 * (density - density[::-1]), label=name)
    for panel in axes[:2]:
        panel.set_xlabel("(median - mean) / standard deviation")
    axes[0].set_title(f"density ({result.extra['law']}) and draws")
    axes[0].legend()
    axes[1].set_title("its antisymmetric part")
    _draw_masses(axes[2], result)
    return figure


def _draw_masses(axes: Axes, result: Result) -> None:
    workers = list(dict.fromkeys(name.split(", ")[0] for name in result.curves))
    for prefix, style in zip(workers, ("-", "--"), strict=True):
        for i, law in enumerate(LAWS):
            curve = result.curves[f"{prefix}, {law}"]
            order = expected_slope(law, int(prefix.removeprefix("M = ")))
            label = f"{prefix}, {law}: {order}"
            x, mass = curve[result.against], curve["mass"]
            axes.plot(x, mass, style, color=f"C{i}", label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=result.against,
        title="antisymmetric mass, and its slope",
    )
    axes.legend(fontsize=6)
