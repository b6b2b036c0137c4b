"""Digits held by label: votes stall, noise or a mean trains on (paper, Fig. 2).

Claim: 10 workers with one digit class each. signSGD with full local batches stalls at a
large mean gradient; Gaussian noise of b = 1e-2 brings it above 80 % test accuracy in
the same 500 steps, systematic noise further. Sub-sampled batches are shown beside them:
sub-sampling is noise too, but of a size nobody chose.

    python -m experiments mnist                 14 curves of 5 seeds: 10 minutes of CPU
    python -m experiments mnist --preset quick  4 curves of one seed
    python -m experiments mnist --resume        after a kill: to the same results

Expect (5 seeds, 500 steps of 1e-3; test accuracy and norm of the mean gradient):

    vote                      .141 +- .004    31 +- 4
    vote, b = 1e-5            .153 +- .011    29 +- 4
    vote, b = 1e-3            .420 +- .005    20 +- 2
    vote, b = 1e-2            .878 +- .002    1.80 +- .06
    vote, b = 3e-2            .881 +- .002    .379 +- .007
    vote, systematic, 1e-2    .890 +- .003    1.14 +- .07
    vote, systematic, 3e-2    .898 +- .002    .249 +- .009
    vote, batches of 128      .235 +- .009    30 +- 2
    mean, step .1             .914 +- .001    .050

On validation digits 1e-2 and 3e-2 are equally good (.891 and .891; systematic .909 and
.907). b = .1, the medians and sub-samples with noise were not trained with 5 seeds.

Differs from the paper in: 5,000 digits (3,500 to train on, 500 to choose b by) in place
of 60,000; 500 steps in place of 50,000.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Result
from experiments.common.training.abreast import train_abreast
from experiments.common.training.trainer import Runs, grid, load_problem
from experiments.paper.mnist.claims import judge
from experiments.paper.mnist.config import PRESETS, Config
from experiments.paper.mnist.families import curve_name, families

__all__ = ["PRESETS", "Config", "draw_accuracy", "draw_gradient", "plot", "run"]


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains every curve of the config.

    Args:
      config: what to train.
      checkpoints: folder in which each family of curves keeps checkpoints, and goes on
        from them.
    """
    problem = load_problem("mnist5k", config.hidden, config.num_seeds)
    split = jm.splits.by_label(np.asarray(problem.train["labels"]), config.num_workers)
    listed = families(config)
    runs: dict[str, Runs] = {}
    for name, family in listed.items():
        print(f"{name} ({len(runs) + 1} of {len(listed)})")
        runs[name] = train_abreast(
            problem,
            family.build,
            grid(scale=family.scales),
            split,
            batch_size=family.batch_size,
            num_steps=config.num_steps,
            chunk=config.chunk,
            checkpoint=None if checkpoints is None else checkpoints / name,
            progress=sys.stderr.isatty(),
        )
        if runs[name].num_steps() < config.num_steps:
            break  # interrupted
    curves = {
        curve_name(name, scale): found.curve(number)
        for name, found in runs.items()
        for number, scale in enumerate(found.settings["scale"])
    }
    return Result(curves, judge(config, runs))


def plot(result: Result) -> Figure:
    """Draws test accuracy and gradient norm against the step."""
    figure, (left, right) = panels(2)
    draw_accuracy(left, result)
    draw_gradient(right, result)
    return figure


def draw_accuracy(axes: Axes, result: Result) -> None:
    """Draws test accuracy against the step, on axes of somebody else's figure too."""
    for name, curve in result.curves.items():
        draw_band(axes, curve, "test_accuracy", name)
    axes.set_ylim(0, 1)
    axes.set_title("test accuracy, one digit class a worker")
    axes.legend(fontsize=7)


def draw_gradient(axes: Axes, result: Result) -> None:
    """Draws the norm of the mean gradient against the step."""
    for name, curve in result.curves.items():
        draw_band(axes, curve, "gradient_norm", name)
    axes.set_yscale("log")
    axes.set_title("norm of the mean gradient")
