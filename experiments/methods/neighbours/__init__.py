"""Votes, medians and their neighbours on one problem: accuracy against steps and bits.

Claim: where every worker holds one digit class, votes without noise fail, with momentum
(Signum, Distributed Lion) too; noise makes one bit a coordinate and worker enough, and
systematic noise more so. Every method has the same data, steps, seeds and number of
settings (rates, or half as many and two scales of noise), and takes its best on
validation digits, over all seeds. A seed splits the digits anew into training,
validation and test ones, so that errors, paired with the mean's, are of seeds and of
test digits both. Bits are those that a worker sends up.

    python -m experiments neighbours                   8x8 digits
    python -m experiments neighbours --preset quick    fewer steps and settings
    python -m experiments neighbours --preset mnist5k  28x28 digits

One b serves coordinates of all sizes: a vote bounds what its noise does to a small one,
a median takes the step.
"""

from pathlib import Path
from typing import Any

import optax
from matplotlib.figure import Figure

from experiments.common.harness.misuse import Misuse
from experiments.common.harness.plots import draw_band, legend_outside, panels
from experiments.common.harness.results import Result, each_part
from experiments.common.training.outcomes import Chosen, Runs, grid, standard_error
from experiments.common.training.trainer import build_trainer, part_folder
from experiments.methods.neighbours.claims import judge, points_behind
from experiments.methods.neighbours.config import PRESETS, Config
from experiments.methods.neighbours.contenders import METHODS

__all__ = ["PRESETS", "Config", "plot", "run"]


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains every method in every setting; keeps its best."""
    names = config.methods or tuple(METHODS)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise Misuse(f"--methods takes some of {list(METHODS)}; got {unknown}.")
    problems = [config.problem_of(seed) for seed in range(config.num_seeds)]

    def train(name: str) -> Chosen:
        method = METHODS[name]

        def build(
            key: Any, rate: Any, scale: Any = None
        ) -> optax.GradientTransformation:
            schedule = optax.cosine_decay_schedule(rate, config.num_steps)
            return method.build(config, schedule, scale, key)

        trainer = build_trainer(problems[0], build, **config.schedule())
        tuned = {"rate": getattr(config, method.rates)}
        if method.scales:
            tuned["scale"] = getattr(config, method.scales)
        folders = [
            part_folder(checkpoints, f"{name}, seed {seed}")
            for seed in range(config.num_seeds)
        ]
        runs = [
            trainer(grid(**tuned), on.split_by_label(config.num_workers), folder, on=on)
            for on, folder in zip(problems, folders, strict=True)
        ]
        return Runs.of_all(runs).chosen()

    reached, partial = each_part(names, train)
    curves = {
        name: chosen.curve | {"bits": chosen.curve["step"] * METHODS[name].bits}
        for name, chosen in reached.items()
    }
    settings = {name: chosen.setting for name, chosen in reached.items()}
    behind = points_behind(reached)
    figures = {
        f"{name}, behind": (float(points.mean()), float(standard_error(points)))
        for name, points in behind.items()
    }
    claims = judge(config, reached, behind)
    extra = {"chosen": settings, "figures": figures}
    data = problems[0].description
    return Result(curves, claims, extra, "step", partial, data)


def plot(result: Result) -> Figure:
    """Draws test accuracy with its band against steps and against bits."""
    figure, axes = panels(2)
    for ax, against in zip(axes, ("step", "bits"), strict=True):
        for name, curve in result.curves.items():
            draw_band(ax, curve, "test_accuracy", name, against)
        ax.set_ylim(0, 1)
    axes[1].set(xscale="log", xlabel="bits a coordinate and worker")
    axes[0].set_title("test accuracy, one digit class a worker")
    legend_outside(figure, axes[1])
    return figure
