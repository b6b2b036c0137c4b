"""Independent against systematic noise: right votes, rest points, common errors.

Claim: systematic noise sharpens the vote. Where b is too small it makes a wrong vote
surer; around the best b it is right far more often; from about 3 standard deviations of
the workers on its count varies too little to linearise its sign, and the rest point
leaves the mean (the dip); and with uniform noise of b >= M max|u_i| / sqrt(3) the vote
is exactly unbiased. Everything is exact (`jm.theory`), the dots are votes of
`jm.majority_vote`. None of it is in the paper, which has independent noise only.

    python -m experiments coupling
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.plots import draw_curves, panels
from experiments.common.harness.results import Result
from experiments.theory.coupling import correlation
from experiments.theory.coupling.regimes import (
    COUPLINGS,
    DIP,
    LAWS,
    PRESETS,
    Config,
    all_claims,
    unbiased_from,
)

__all__ = ["Config", "PRESETS", "plot", "run"]


def run(config: Config) -> Result:
    """Computes the curves for both laws and couplings, and judges each regime."""
    curves = {
        f"{law}, {coupling}": _curve(config, law, coupling)
        for law in LAWS
        for coupling in COUPLINGS
    }
    for law in LAWS:
        curves[f"{law}, simulated"] = _simulated(config, law)
    start = unbiased_from(config.values) / float(np.std(config.values))
    extra = {"exact from b / sd": start}
    return Result(curves, all_claims(config, curves), extra, against="b / sd")


def _curve(
    config: Config, law: str, coupling: jm.noise.Coupling
) -> dict[str, np.ndarray]:
    """Computes the law of the vote along b."""
    u = np.asarray(config.values)
    first_exact = unbiased_from(config.values) / u.std()
    grid = np.geomspace(config.least_scale, config.greatest_scale, config.num_scales)
    relative = np.union1d(grid, [first_exact, DIP])
    curve: dict[str, list[float]] = {
        "b / sd": list(relative),
        "right": [],
        "rest": [],
        "expected_vote": [],
        "over_unbiased": [],
        "correlation": [],
    }
    for scale in relative * u.std():
        noise = jm.noise.Noise(law, float(scale), coupling)
        vote = jm.theory.vote_probability(u, noise)
        expected = vote.plus - vote.minus
        rest = jm.theory.rest_point(u, noise, "vote")
        curve["right"].append(vote.plus if u.mean() > 0 else vote.minus)
        curve["rest"].append((rest - u.mean()) / u.std())
        curve["expected_vote"].append(expected)
        unbiased = len(u) * u.mean() / (np.sqrt(3.0) * scale)
        curve["over_unbiased"].append(expected / unbiased)
        if coupling == "systematic":
            curve["correlation"].append(correlation.exact(config.values, noise)[2])
    return {name: np.array(values) for name, values in curve.items() if values}


def _simulated(config: Config, law: str) -> dict[str, np.ndarray]:
    """Runs `jm.majority_vote` with systematic noise at a few b."""
    u = np.asarray(config.values)
    key = jax.random.fold_in(jax.random.key(config.seed), LAWS.index(law))
    rows = []
    for i, relative in enumerate(config.simulated_scales):
        noise = jm.noise.Noise(law, relative * float(u.std()), "systematic")
        exact = correlation.exact(config.values, noise)
        found = correlation.measured(
            config.values,
            noise,
            jax.random.fold_in(key, i),
            config.num_steps,
            config.coordinates,
        )
        off = (
            (found.mean - exact.mean) / found.mean_error,
            (found.correlation - exact.correlation) / found.correlation_error,
        )
        rows.append((relative, *found, *off))
    names = ("b / sd", *correlation.Measured._fields, "mean_off", "correlation_off")
    return dict(zip(names, np.array(rows).T, strict=True))


def plot(result: Result) -> Figure:
    """Draws P(right), rest point, expected vote and correlation against b."""
    figure, axes = panels(4)
    titles: dict[str, Any] = {
        "right": "P(vote = sign of mean)",
        "rest": "(rest point - mean) / sd",
        "over_unbiased": "E[vote] / (M mean / (sqrt(3) b))",
        "correlation": "correlation, shared permutation",
    }
    for panel, (metric, title) in zip(axes, titles.items(), strict=True):
        for i, law in enumerate(LAWS):
            for coupling, style in zip(COUPLINGS, ("--", "-"), strict=True):
                name = f"{law}, {coupling}"
                shown = {name: result.curves[name]}
                draw_curves(
                    panel, shown, metric, result.against, color=f"C{i}", linestyle=style
                )
        panel.axvline(
            result.extra["exact from b / sd"], color="grey", linewidth=0.8, zorder=0
        )
        panel.set(xscale="log", title=title)
    axes[0].legend()
    start = axes[3].get_lines()[-1]
    start.set_label("exactly unbiased\nfrom here (uniform)")
    axes[3].legend(handles=[start])
    for i, law in enumerate(LAWS):
        dots = result.curves[f"{law}, simulated"]
        axes[3].errorbar(
            dots[result.against],
            dots["correlation"],
            dots["correlation_error"],
            fmt="o",
            markersize=3.5,
            capsize=2,
            color=f"C{i}",
        )
    return figure
