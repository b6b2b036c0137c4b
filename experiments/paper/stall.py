"""Whatever the step and however long: without noise, votes and medians stall.

Claim: 10 workers with one digit class each and full local batches. At every step of
{1, .1, .01, .001, .0001} and at any time up to 3,000 steps, signSGD stays below .30 and
medianSGD below .55 test accuracy. No tuning of the step mends a gap that is not noise.

    python -m experiments stall                 5 rates, 5 seeds
    python -m experiments stall --preset quick  one seed, 300 steps
    python -m experiments stall --resume        after a kill: to the same results

The accuracy is measured at every 25th step, and what counts is the highest of all.
"""

import dataclasses
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, tiny
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.outcomes import Runs, grid, report, standard_error
from experiments.common.training.problems import TrainingConfig
from experiments.common.training.trainer import build_trainer, part_folder


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the runs; each worker holds digits of one class.

    Attributes:
      rates: constant steps, each of them for both rules.
      vote_bound: test accuracy that signSGD is not to reach.
      median_bound: test accuracy that medianSGD is not to reach.
    """

    data: str = "mnist5k"
    num_steps: Count = 3000
    batch_size: Count | None = None
    hidden: Count = 128
    chunk: Count = 25
    rates: Amounts = (1.0, 0.1, 0.01, 0.001, 0.0001)
    vote_bound: float = 0.30
    median_bound: float = 0.55


PRESETS = {
    "quick": Config(num_seeds=1, num_steps=300),
    "tiny": tiny(Config(), data="digits8x8", rates=(0.01,)),
}

_RULES: dict[str, Any] = {"signSGD": jm.sign_sgd, "medianSGD": jm.median_sgd}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains both rules at every step."""
    problem = config.problem()
    split = problem.split_by_label(config.num_workers)

    def train(name: str) -> Runs:
        trainer = build_trainer(
            problem, lambda key, rate: _RULES[name](rate), **config.schedule()
        )
        return trainer(grid(rate=config.rates), split, part_folder(checkpoints, name))

    runs, partial = each_part(_RULES, train)
    curves = {
        f"{name}, step {rate:g}": found.curve(number)
        for name, found in runs.items()
        for number, rate in enumerate(config.rates)
    }
    claims = _claims(config, runs)
    extra = {"figures": _figures(config, runs)}
    return Result(curves, claims, extra, partial=partial, data=problem.description)


def _figures(config: Config, runs: dict[str, Runs]) -> dict[str, Any]:
    """Returns the highest accuracy along a run, at each step, and of all runs."""
    figures: dict[str, Any] = {}
    for name, found in runs.items():
        highest = found.metrics["test_accuracy"].max(axis=-1)  # [G, S]
        figures[f"{name}, highest"] = float(highest.max())
        for rate, row in zip(config.rates, highest, strict=True):
            figures[f"{name}, step {rate:g}"] = [float(row.mean())] + (
                [float(standard_error(row))] if len(row) > 1 else []
            )
    return figures


def _claims(config: Config, runs: dict[str, Runs]) -> tuple[Claim, ...]:
    bounds = {"signSGD": config.vote_bound, "medianSGD": config.median_bound}
    shown = {"signSGD": "flat near .1, creeping to .35-.4 in 50,000 steps"}
    return tuple(
        _claim(config, name, found, bounds[name], shown.get(name, "(not shown)"))
        for name, found in runs.items()
    )


def _claim(config: Config, name: str, runs: Runs, bound: float, shown: str) -> Claim:
    """Compares the highest accuracy of each run, at any time, with the bound."""
    highest = runs.metrics["test_accuracy"].max(axis=-1)  # [G, S]
    by_rate = (
        f"{report(row)} at {rate:g}"
        for rate, row in zip(config.rates, highest, strict=True)
    )
    steps = runs.num_steps()
    return Claim(
        f"{name} stays below {bound:.2f} test accuracy, whatever the step and seed, at "
        f"any time up to step {steps:,}",
        f"highest of any run {highest.max():.3f}; of each, " + ", ".join(by_rate),
        bool(highest.max() < bound) if config.data == "mnist5k" else None,
        paper=shown,
    )


def plot(result: Result) -> Figure:
    """Draws test accuracy against the step, a panel a rule."""
    rules = list(dict.fromkeys(name.split(",")[0] for name in result.curves))
    figure, axes = panels(len(rules))
    for ax, rule in zip(axes, rules, strict=True):
        for name, curve in result.curves.items():
            if name.startswith(rule):
                draw_band(ax, curve, "test_accuracy", name.split(", ")[1])
        ax.set(ylim=(0, 1), title=f"{rule} without noise, test accuracy")
        ax.legend(fontsize=7)
    return figure
