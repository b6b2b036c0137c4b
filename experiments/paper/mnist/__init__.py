"""Digits held by label: votes stall, noise or a mean trains on (paper, Fig. 2).

Claim: 10 workers with one digit class each. signSGD with full local batches stalls at a
large mean gradient; Gaussian noise of b = 1e-2 brings it above 80 % test accuracy in
the same 500 steps, systematic noise further. Sub-sampled batches are shown beside them:
sub-sampling is noise too, but of a size nobody chose.

    python -m experiments mnist                 14 curves of 5 seeds
    python -m experiments mnist --preset quick  4 curves of one seed
    python -m experiments mnist --preset paper  Figure 2 at its full size, resumable
    python -m experiments mnist --resume        after a kill: to the same results

The paper's size is 60,000 digits and 50,000 steps. A step on full local batches costs
some .4 core seconds there, a step on batches of 128 some .03 a seed, so that curves of
full batches take a fifth of the steps, and one seed. ``--curves`` picks some: started
again with others and ``--resume``, in the same folder, each goes on where it was.

Differs from the paper in: by default 5,000 digits (3,500 to train on, 500 to choose b
by) in place of 60,000, and 500 steps; with ``--preset paper`` 10,000 steps of full
batches in place of 50,000.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.harness.misuse import Misuse
from experiments.common.harness.plots import draw_band, legend_outside, panels
from experiments.common.harness.results import Result, each_part
from experiments.common.training.outcomes import Runs, grid
from experiments.common.training.problems import Problem
from experiments.common.training.trainer import build_trainer, part_folder
from experiments.paper.mnist.claims import judge
from experiments.paper.mnist.config import PRESETS, Config
from experiments.paper.mnist.curves import curve_name, families

__all__ = ["PRESETS", "Config", "draw_accuracy", "draw_gradient", "plot", "run"]


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains every curve of the config."""
    listed = {
        curve_name(name, scale): (name, scale)
        for name, family in families(config).items()
        for scale in family.scales
    }
    unknown = [name for name in config.curves if name not in listed]
    if unknown:
        raise Misuse(f"--curves takes some of {list(listed)}; got {unknown}.")
    problem = config.problem()
    split = problem.split_by_label(config.num_workers)
    _check_batches(config, config.curves or tuple(listed), int(split.sizes.min()))
    trainer = functools.cache(functools.partial(_trainer, config, problem))

    def train(curve: str) -> Runs:
        name, scale = listed[curve]
        folder = part_folder(checkpoints, curve)
        return trainer(name)(grid(scale=(scale,)), split, folder)

    runs, partial = each_part(config.curves or listed, train)
    curves = {name: found.curve(0) for name, found in runs.items()}
    pace = {name: found.pace() for name, found in runs.items()}
    claims = judge(config, _by_family(runs, listed))
    return Result(curves, claims, {"pace": pace}, "step", partial, problem.description)


def _check_batches(config: Config, curves: Sequence[str], held: int) -> None:
    """Raises unless each worker holds the samples of a batch, drawn without return."""
    drawn = any(curve.startswith("vote, batch ") for curve in curves)
    if drawn and config.batch_size > held:
        raise Misuse(
            f"--batch-size takes at most the {held:,} samples of the smallest worker; "
            f"got {config.batch_size:,}. Give a smaller one, or train no curves on "
            "batches: `--batch-scales` with nothing behind it."
        )


def _trainer(config: Config, problem: Problem, name: str) -> Callable[..., Runs]:
    """Builds the trainer of a family."""
    family = families(config)[name]
    divisor, seeds = 1, config.num_seeds
    if family.batch_size is None:
        divisor = config.full_batch_divisor
        seeds = config.full_batch_seeds or seeds
    num_steps = -(-config.num_steps // divisor)
    chunk = config.chunk * config.full_batch_divisor // divisor
    return build_trainer(
        problem.first_seeds(seeds),
        family.build,
        batch_size=family.batch_size,
        num_steps=num_steps,
        chunk=min(chunk, -(-num_steps // 4)),
        replace=False,
    )


def _by_family(
    runs: dict[str, Runs], listed: dict[str, tuple[str, float]]
) -> dict[str, Runs]:
    """Joins the curves of each family."""
    joined: dict[str, Runs] = {}
    for curve, found in runs.items():
        name = listed[curve][0]
        joined[name] = joined[name].join(found) if name in joined else found
    return joined


def plot(result: Result) -> Figure:
    """Draws test accuracy and gradient norm against the step."""
    figure, (left, right) = panels(2)
    draw_accuracy(left, result)
    draw_gradient(right, result)
    legend_outside(figure, left)
    return figure


def draw_accuracy(axes: Axes, result: Result) -> None:
    """Draws test accuracy against the step, on axes of somebody else's figure too."""
    for name, curve in result.curves.items():
        draw_band(axes, curve, "test_accuracy", name)
    axes.set(ylim=(0, 1), title="test accuracy, one digit class a worker")


def draw_gradient(axes: Axes, result: Result) -> None:
    """Draws the norm of the mean gradient against the step."""
    for name, curve in result.curves.items():
        draw_band(axes, curve, "gradient_norm", name)
    axes.set(yscale="log", title="norm of the mean gradient")
