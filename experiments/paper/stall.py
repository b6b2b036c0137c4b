"""Whatever the step and however long: without noise, votes and medians stall.

Claim: 10 workers with one digit class each and full local batches. At every step of
{1, .1, .01, .001, .0001} and at any time up to 3,000 steps, signSGD stays below .30 and
medianSGD below .55 test accuracy. No tuning of the step mends a gap that is not noise.

    python -m experiments stall                 5 rates, 5 seeds: 45 minutes of CPU
    python -m experiments stall --preset quick  one seed, 300 steps
    python -m experiments stall --resume        after a kill: to the same results

The accuracy is measured at every 25th step, and what counts is the highest of all.
Seen so far are 2 seeds, all 3,000 steps: signSGD at most .281, medianSGD at most .506
(at a step of .01, where it still rises slowly). The highest accuracy along a run, at
steps of 1, .1, .01, .001, .0001: signSGD .184, .229, .250, .193, .198 (standard errors
of .005 to .053), medianSGD .363, .427, .480, .342, .108 (.002 to .031).
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.claims import Claim
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Result
from experiments.common.training.abreast import train_abreast
from experiments.common.training.trainer import Runs, grid, load_problem, report


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the runs.

    Attributes:
      rates: constant steps, each of them for both rules.
      data: "mnist5k", "digits8x8", "mnist" or "fashion_mnist".
      num_workers: M; each holds digits of one class.
      num_seeds: runs at each step.
      num_steps: steps of every run.
      vote_bound: test accuracy that signSGD is not to reach.
      median_bound: test accuracy that medianSGD is not to reach.
      hidden: units of the hidden layer.
      chunk: steps between two measurements.
    """

    rates: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001, 0.0001)
    data: str = "mnist5k"
    num_workers: int = 10
    num_seeds: int = 5
    num_steps: int = 3000
    vote_bound: float = 0.30
    median_bound: float = 0.55
    hidden: int = 128
    chunk: int = 25


PRESETS = {
    "quick": Config(num_seeds=1, num_steps=300),
    "tiny": Config(
        rates=(0.01,), data="digits8x8", num_seeds=2, num_steps=2, hidden=4, chunk=1
    ),
}

_RULES = {"signSGD": jm.sign_sgd, "medianSGD": jm.median_sgd}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains both rules at every step.

    Args:
      config: what to train.
      checkpoints: folder in which each rule keeps checkpoints, and goes on from them.
    """
    problem = load_problem(config.data, config.hidden, config.num_seeds)
    split = jm.splits.by_label(np.asarray(problem.train["labels"]), config.num_workers)
    runs: dict[str, Runs] = {}
    for name, optimizer in _RULES.items():
        print(name)
        runs[name] = train_abreast(
            problem,
            lambda key, rate, optimizer=optimizer: optimizer(rate),
            grid(rate=config.rates),
            split,
            batch_size=None,
            num_steps=config.num_steps,
            chunk=config.chunk,
            checkpoint=None if checkpoints is None else checkpoints / name,
            progress=sys.stderr.isatty(),
        )
        if runs[name].num_steps() < config.num_steps:
            break  # interrupted
    curves = {
        f"{name}, step {rate:g}": found.curve(number)
        for name, found in runs.items()
        for number, rate in enumerate(config.rates)
    }
    return Result(curves, _claims(config, runs))


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
        shown,
        f"highest of any run {highest.max():.3f}; of each, " + ", ".join(by_rate),
        bool(highest.max() < bound) if config.data == "mnist5k" else None,
    )


def plot(result: Result) -> Figure:
    """Draws test accuracy against the step, a panel a rule."""
    rules = list(dict.fromkeys(name.split(",")[0] for name in result.curves))
    figure, axes = panels(len(rules))
    for ax, rule in zip(axes, rules, strict=True):
        for name, curve in result.curves.items():
            if name.startswith(rule):
                draw_band(ax, curve, "test_accuracy", name.split(", ")[1])
        ax.set_ylim(0, 1)
        ax.set_title(f"{rule} without noise, test accuracy")
        ax.legend(fontsize=7)
    return figure
