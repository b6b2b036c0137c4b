"""What the comparison of couplings claims, regime by regime, from small b to large b.

Regimes of the vote under systematic noise: small b, the sweet spot, the dip, exact
unbiasedness. Then correlations, random settings, and medians.
"""

import dataclasses

import numpy as np

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, Seed
from experiments.common.harness.results import Claim, Curves
from experiments.theory.coupling import random_settings

LAWS = ("gaussian", "uniform")
COUPLINGS = jm.noise.COUPLINGS

# Where noise is best for the vote, and where too little noise sharpens a wrong one.
TEN_OF_101 = (1.0,) * 10 + (-0.05,) * 91
TWO_OF_11 = (-0.1,) * 9 + (1.0,) * 2
DIP = 3.0  # standard deviations of the values, where the systematic rest point leaves


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the curves. b is in standard deviations of the values.

    Attributes:
      values: u of the curves, [M], M odd; few different ones, so that all permutations
        can be gone through.
      least_scale: smallest b.
      greatest_scale: largest b.
      num_scales: points of each curve.
      simulated_scales: b of the dots.
      num_steps: steps behind each dot, each with a permutation of its own.
      coordinates: votes of one step.
      num_settings: random settings on which the couplings compete.
      setting_workers: M of the random settings, taking turns.
      median_draws: draws behind the standard deviations of the medians.
      seed: of dots, settings and draws.
    """

    values: tuple[float, ...] = TWO_OF_11
    least_scale: float = 0.1
    greatest_scale: float = 100.0
    num_scales: Count = 121
    simulated_scales: Amounts = (0.7, 1.0, 1.5, 2.0, 3.0, 10.0, 20.0)
    num_steps: Count = 4000
    coordinates: Count = 256
    num_settings: Count = 306
    setting_workers: tuple[Count, ...] = (5, 11, 31)
    median_draws: Count = 200_000
    seed: Seed = 0

    def __post_init__(self) -> None:
        if len(self.values) % 2 == 0:
            raise ValueError("`values` needs an odd number of workers, or votes tie.")
        if np.mean(self.values) == 0 or np.std(self.values) == 0:
            raise ValueError(
                "`values` needs a mean other than 0, whose sign the vote may have, and "
                "two different values; change one of them."
            )


PRESETS = {
    "quick": Config(num_scales=61, num_steps=1000, num_settings=60),
    "tiny": Config(
        num_scales=31,
        simulated_scales=(1.0, 1.5),
        num_steps=200,
        coordinates=64,
        num_settings=12,
        setting_workers=(5, 11),
        median_draws=10_000,
    ),
}


def all_claims(config: Config, curves: Curves) -> tuple[Claim, ...]:
    """Judges the curves, and what needs computations of its own."""
    return (
        _small_scale_claim(),
        _sweet_spot_claim(),
        _best_claim(config, curves),
        _dip_claim(config, curves),
        _exact_claim(config, curves),
        *_correlation_claims(curves),
        *_settings_claims(config),
        *_median_claims(config),
    )


def unbiased_from(values: tuple[float, ...]) -> float:
    """Returns the b from which the uniform systematic vote is exactly unbiased."""
    return float(jm.theory.unbiased_scale(values, "uniform", "vote"))


def _right(values: tuple[float, ...], law: str, relative: float) -> list[float]:
    """Computes P(+) for both couplings at b = ``relative`` standard deviations."""
    scale = relative * float(np.std(values))
    noises = [jm.noise.Noise(law, scale, coupling) for coupling in COUPLINGS]
    return [float(jm.theory.vote_probability(values, n).plus) for n in noises]


def _small_scale_claim() -> Claim:
    independent, systematic = _right(TWO_OF_11, "gaussian", 0.3)
    return Claim(
        "Small b makes a wrong vote surer: nine of -.1, two of 1, Gaussian, b = .3 sd",
        f"P(right) {independent:.3f} independent, {systematic:.3f} systematic",
        systematic < independent < 0.5,
    )


def _sweet_spot_claim() -> Claim:
    found = {law: _right(TEN_OF_101, law, 3.0) for law in LAWS}
    return Claim(
        "Sweet spot: ten of 101 workers hold the mean, b = 3 sd: right more often",
        ", ".join(f"{a:.3f} -> {b:.3f} {law}" for law, (a, b) in found.items()),
        all(b > a + 0.1 for a, b in found.values()),
    )


def _best_claim(config: Config, curves: Curves) -> Claim:
    best = {
        law: [float(curves[f"{law}, {c}"]["right"].max()) for c in COUPLINGS]
        for law in LAWS
    }
    noise_free = np.sign(config.values).sum() * np.mean(config.values) > 0
    return Claim(
        "Each coupling at its best b: systematic noise is right more often",
        ", ".join(f"P = {a:.3f} -> {b:.3f} {law}" for law, (a, b) in best.items()),
        None if noise_free else all(b > a for a, b in best.values()),
    )


def _dip_claim(config: Config, curves: Curves) -> Claim:
    """Looks at rest points from 3 sd to M max|u_i - mean| / sqrt(3), where x = mean."""
    u = np.asarray(config.values)
    end = len(u) * np.abs(u - u.mean()).max() / (np.sqrt(3.0) * u.std())
    off = {}
    for name in (f"{law}, {coupling}" for law in LAWS for coupling in COUPLINGS):
        relative = curves[name]["b / sd"]
        dip = (relative >= DIP) & (relative <= end)
        off[name] = np.abs(curves[name]["rest"][dip])
    here = ", ".join(f"{o[0]:.3f} and {o.max():.3f} {n}" for n, o in off.items())
    return Claim(
        f"The dip: from {DIP:g} sd to the exact regime the systematic rest point "
        "leaves the mean, the independent one approaches it",
        f"off at {DIP:g} sd, and at most until {end:.1f} sd: {here}",
        all(
            off[f"{law}, systematic"].max() > 2 * off[f"{law}, independent"].max()
            for law in LAWS
        ),
    )


def _exact_claim(config: Config, curves: Curves) -> Claim:
    u = np.asarray(config.values)
    curve = curves["uniform, systematic"]
    start = unbiased_from(config.values) / u.std()
    beyond = curve["b / sd"] >= start * (1 - 1e-12)
    error = float(np.abs(curve["over_unbiased"][beyond] - 1).max())
    first = float(curve["expected_vote"][beyond][0])
    at_start = float(u.mean() / np.abs(u).max())
    return Claim(
        "Beyond b = M max|u| / sqrt(3) the uniform systematic vote is exactly unbiased:"
        " E[vote] = M mean / (sqrt(3) b), and mean / max|u| at its start",
        f"relative error at most {error:.0e}; {first:.6f} = {at_start:.6f} at b = "
        f"{start:.2f} sd",
        error < 1e-9 and abs(first - at_start) < 1e-9,
        paper="biased for every b",
    )


def _correlation_claims(curves: Curves) -> list[Claim]:
    peaks = []
    for law in LAWS:
        curve = curves[f"{law}, systematic"]
        best = int(np.nanargmax(curve["correlation"]))
        peaks.append((curve["correlation"][best], curve["b / sd"][best], law))
    dots = [curves[f"{law}, simulated"] for law in LAWS]
    off = {
        name: max(float(np.nanmax(np.abs(dot[name]))) for dot in dots)
        for name in ("mean_off", "correlation_off")
    }
    return [
        Claim(
            "Coordinates that share a permutation and a worker pattern err together",
            ", ".join(f"correlation {r:.3f} at {b:.2f} sd {n}" for r, b, n in peaks),
            all(r > 1e-3 for r, _, _ in peaks),
        ),
        Claim(
            "jm.majority_vote has this expected vote and this correlation",
            f"at most {off['mean_off']:.1f} and {off['correlation_off']:.1f} standard "
            "errors off",
            max(off.values()) <= 5,
        ),
    ]


def _settings_claims(config: Config) -> list[Claim]:
    settings = random_settings.draw(
        config.num_settings, config.setting_workers, config.seed
    )
    best = random_settings.at_best_scale(settings, "gaussian")
    small = random_settings.at_equal_scale(settings, "gaussian", 0.3)
    judged = config.num_settings >= 50
    return [
        Claim(
            f"{len(settings)} random settings whose noise-free vote is wrong, each "
            "coupling at its best b: systematic noise mostly wins",
            f"wins {best.wins:.0%}, loses {best.losses:.0%} (by more than "
            f"{random_settings.MARGIN:g})",
            best.wins > 0.7 and best.losses < 0.05 if judged else None,
        ),
        Claim(
            "The same at b = .3 sd for both: it loses more often",
            f"wins {small.wins:.0%}, loses {small.losses:.0%}",
            small.losses > small.wins if judged else None,
        ),
    ]


def _median_claims(config: Config) -> list[Claim]:
    limits = {}
    for num_workers in (3, 11, 101):
        variances = [
            jm.theory.limit_variance("uniform", num_workers, c) for c in COUPLINGS
        ]
        limits[num_workers] = np.sqrt(variances[0] / variances[1])
    found = {}
    for law in LAWS:
        scale = float(np.std(config.values))
        variances = [
            jm.theory.simulate_median(
                config.values,
                jm.noise.Noise(law, scale, coupling),
                config.seed,
                config.median_draws,
            ).variance
            for coupling in COUPLINGS
        ]
        found[law] = float(np.sqrt(variances[0] / variances[1]))
    return [
        Claim(
            "At b = sd the systematic median has the smaller standard deviation",
            ", ".join(f"{r:.2f} times smaller {law}" for law, r in found.items()),
            all(ratio > 1 for ratio in found.values()),
        ),
        Claim(
            "For large b and uniform noise the ratio is M sqrt(3 / (M + 2))",
            ", ".join(f"{r:.4f} for M = {m}" for m, r in limits.items()),
            all(
                abs(r / (m * np.sqrt(3 / (m + 2))) - 1) < 1e-9
                for m, r in limits.items()
            ),
        ),
    ]
