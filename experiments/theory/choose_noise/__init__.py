"""Which b is best: against the number of workers, heterogeneity, law, and for digits.

Claim: `jm.theory.best_scale` answers from per-worker gradients alone. The median wants
a share of the workers' spread, and systematic noise at its own best b never has the
larger error. The vote needs no noise while the spread is at most the mean;
beyond, noise makes it right more often, and systematic noise more so, but where b is
too small systematic noise makes a wrong vote surer. On MNIST, one class a worker, the b
that gives the vote the steepest expected descent on 200 coordinates of real gradients,
sampled after 25 steps of plain SGD, lets signSGD train where it stalls without.

    python -m experiments choose_noise
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.data.catalog import load_data
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Result
from experiments.theory.choose_noise import skewed, training_run
from experiments.theory.choose_noise.skewed import COUPLINGS, LAWS, PRESETS, Config

__all__ = ["Config", "PRESETS", "plot", "run"]


def run(config: Config) -> Result:
    """Chooses b for skewed gradients and for the digits, and tries the latter."""
    digits = load_data(config.data, config.data_dir, config.seed)
    curves: dict[str, dict[str, np.ndarray]] = {}
    for law in LAWS:
        print(f"{law}: medians of {config.num_workers}, votes of {config.vote_workers}")
        curves[f"median, {law}"] = skewed.medians(config, law)
        curves[f"vote, {law}"] = skewed.votes(config, law)
    curves["digits"], tried = training_run.try_on_digits(config, digits)
    claims = (
        skewed.median_claim(curves),
        *skewed.vote_claims(config, curves),
        *training_run.claims(config, tried),
    )
    extra = {"digits": training_run.summary(tried)}
    return Result(curves, claims, extra, data=tried.data)


def plot(result: Result) -> Figure:
    """Draws the best b of medians, what votes achieve, and the digits' choice."""
    figure, (left, middle, right) = panels(3)
    for index, law in enumerate(LAWS):
        for coupling, style in zip(COUPLINGS, (".-", ".--"), strict=True):
            label = law if coupling == "independent" else None
            median, vote = (
                result.curves[f"median, {law}"],
                result.curves[f"vote, {law}"],
            )
            options: Any = {"color": f"C{index}", "label": label}
            left.plot(median["workers"], median[f"{coupling}_scale"], style, **options)
            middle.plot(
                vote["heterogeneity"], vote[f"{coupling}_value"], style, **options
            )
    silent = result.curves["vote, gaussian"]
    middle.plot(silent["heterogeneity"], silent["no_noise"], "k:", label="no noise")
    left.set(title="median: best b / sd (dashed: systematic)", xlabel="M")
    middle.set(title="vote: P(right) at the best b", xlabel="sd over workers / mean")
    for axis, ticks in (
        (left, result.curves["median, gaussian"]["workers"]),
        (middle, silent["heterogeneity"]),
    ):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    _draw_digits(right, result)
    return figure


def _draw_digits(axes: Axes, result: Result) -> None:
    curve = result.curves["digits"]
    for coupling in COUPLINGS:
        axes.plot(curve["scale"], curve[coupling], label=coupling)
    chosen = result.extra["digits"]["scale"]
    axes.axvline(chosen, color="grey", linestyle="--", label=f"chosen: {chosen:.3g}")
    axes.set(xscale="log", xlabel="b")
    axes.axhline(0.0, color="black", linewidth=0.5)
    axes.set_title("digits: descent of the vote / steepest")
    axes.legend(fontsize=7)
