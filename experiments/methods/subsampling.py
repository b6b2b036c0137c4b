"""Sub-sampling as noise: the gap, and accuracy, against the batch size (paper, Fig. 2).

Claim: small batches serve signSGD and medianSGD as noise does, since the gradients of
small batches spread further than the workers lie apart: the smaller the batch, the
nearer E[median of the batch gradients] lies to the mean gradient, and the better the
noise-free rules train. How small is small is a matter of the data, which is why a scale
b that one can choose is the better dial.

    python -m experiments subsampling                 MNIST-5k
    python -m experiments subsampling --preset quick  a smaller network, fewer steps

The gap is measured at parameters that a few steps on the mean of the gradients reach:
||E[median_i g_i(batch)] - mean_i g_i||, relative to ||mean_i g_i||, from two
independent halves of the draws, whose errors then do not add up to a gap.

Differs from the paper in: 5,000 digits in place of 60,000, all batch sizes in place of
128, fewer steps.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.misuse import Misuse
from experiments.common.harness.options import Count, tiny
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.outcomes import Runs, claim_ahead, grid, report
from experiments.common.training.problems import Problem, TrainingConfig, serve
from experiments.common.training.trainer import (
    build_trainer,
    part_folder,
    run_to_end,
)


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the comparison; workers hold exclusive classes.

    Attributes:
      rules: "vote" and "median", or one of them.
      batch_sizes: samples a worker and step, drawn with replacement. Each is a program
        of its own, since it is a shape; seeds are vmapped in each.
      batch_size: of the steps before the gap is measured; None for whole gradients.
      vote_rate: constant step of the vote.
      median_rate: constant step of the median.
      warm_steps: steps on the mean of the gradients before the gap is measured.
      warm_rate: their learning rate.
      draws: batches behind each gap, an even number.
    """

    data: str = "mnist5k"
    num_steps: Count = 1000
    batch_size: Count | None = None
    hidden: Count = 128
    rules: tuple[str, ...] = ("vote", "median")
    batch_sizes: tuple[Count, ...] = (1, 4, 16, 64, 128)
    vote_rate: float = 1e-3
    median_rate: float = 0.1
    warm_steps: Count = 100
    warm_rate: float = 0.1
    draws: Count = 2000


PRESETS = {
    "quick": Config(batch_sizes=(1, 4, 32, 128), num_steps=500, hidden=16, draws=1000),
    "tiny": tiny(Config(), data="digits8x8", batch_sizes=(2,), warm_steps=2, draws=4),
}

_RULES: dict[str, Any] = {"vote": jm.sign_sgd, "median": jm.median_sgd}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Measures the gap and trains both rules at every batch size."""
    if config.draws % 2:
        raise Misuse(f"--draws must be even; got {config.draws}.")
    unknown = [rule for rule in config.rules if rule not in _RULES]
    if unknown:
        raise Misuse(f"--rules takes some of {list(_RULES)}; got {unknown}.")
    problem = config.problem()
    split = problem.split_by_label(config.num_workers)
    params, full = _warm_up(config, problem, split)
    gaps: dict[int, float] = {}

    def train(part: str) -> dict[str, Runs]:
        size = int(part.removeprefix("batch "))
        gaps[size] = _gap(config, problem, split, params, full, size)
        runs = {}
        for rule in config.rules:
            rate = config.vote_rate if rule == "vote" else config.median_rate
            name = f"{rule}, {part}"
            trainer = build_trainer(
                problem,
                lambda key, rate, rule=rule: _RULES[rule](rate),
                batch_size=size,
                num_steps=config.num_steps,
                chunk=config.chunk,
            )
            runs[name] = trainer(
                grid(rate=(rate,)), split, part_folder(checkpoints, name)
            )
        return runs

    parts, partial = each_part((f"batch {n}" for n in config.batch_sizes), train)
    runs = {name: found for part in parts.values() for name, found in part.items()}
    curves = {name: found.curve(0) for name, found in runs.items()}
    gaps = {size: gap for size, gap in gaps.items() if f"batch {size}" in parts}
    extra = {
        "gap": {str(size): gap for size, gap in gaps.items()},
        "figures": {f"gap, batch {size}": gap for size, gap in gaps.items()},
    }
    claims = _claims(config, runs, gaps)
    return Result(curves, claims, extra, partial=partial, data=problem.description)


def _warm_up(config: Config, problem: Problem, split: jm.splits.Split) -> Any:
    """Returns parameters, and every worker's full-batch gradient there, flat [M, d]."""
    whole = serve(problem.train, split, None)
    params = run_to_end(
        problem.model.loss,
        optax.chain(jm.worker_mean(), optax.sgd(config.warm_rate)),
        problem.model.params,
        serve(problem.train, split, config.batch_size),
        config.warm_steps,
        key=0,
    ).params
    batch = whole(jax.random.key(0), 0)
    return params, _flat(jm.worker_grads(problem.model.loss)(params, batch))


def _flat(grads: Any) -> jax.Array:
    rows = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(grads)]
    return jnp.concatenate(rows, axis=1)


def _gap(
    config: Config,
    problem: Problem,
    split: jm.splits.Split,
    params: Any,
    full: jax.Array,
    size: int,
) -> float:
    """Estimates ||E[median] - mean|| / ||mean|| over batches of one size.

    With a and b the averages over two independent halves, E<a - mean, b - mean> is the
    square of the gap itself; below 0 by chance it counts as 0.
    """
    served = serve(problem.train, split, size)
    grads_of = jm.worker_grads(problem.model.loss)

    @jax.jit
    def average(key: jax.Array, next_batch: Any, params: Any) -> jax.Array:
        def add(draw: jax.Array, total: jax.Array) -> jax.Array:
            batch = next_batch(jax.random.fold_in(key, draw), draw)
            return total + jm.median(_flat(grads_of(params, batch)))

        start = jnp.zeros_like(full[0])
        return jax.lax.fori_loop(0, config.draws // 2, add, start) / (config.draws // 2)

    mean = full.mean(axis=0)
    off = [average(jax.random.key(i), served, params) - mean for i in range(2)]
    squared = float(jnp.vdot(*off))
    return float(np.sqrt(max(squared, 0.0)) / jnp.linalg.norm(mean))


def _claims(
    config: Config, runs: dict[str, Runs], gaps: dict[int, float]
) -> tuple[Claim, ...]:
    sizes = sorted(gaps)
    if len(sizes) < 2:
        return ()  # there is nothing to compare with
    judged = config.num_steps >= 500
    claims = [
        Claim(
            "The gap of the expected median, over the norm of the mean, shrinks with "
            "the batch",
            ", ".join(f"{gaps[size]:.2f} at {size}" for size in sizes),
            gaps[sizes[0]] < gaps[sizes[-1]] if judged else None,
            paper="sub-sampling acts like noise",
        )
    ]
    for rule in config.rules:
        of_size = {size: runs[f"{rule}, batch {size}"] for size in sizes}
        last = {size: found.last(0) for size, found in of_size.items()}
        best = max(sizes, key=lambda size: of_size[size].validated()[0])
        claims.append(
            claim_ahead(
                f"The noise-free {rule} trains better on some smaller batch than on "
                "the largest",
                last[best],
                last[sizes[-1]],
                judged,
                "sub-samples of 128: .85-.9 (MNIST, 60,000 digits)",
                ", ".join(f"{report(last[size])} at {size}" for size in sizes),
            )
        )
    return tuple(claims)


def plot(result: Result) -> Figure:
    """Draws the gap, and the last test accuracy of both rules, against batch size."""
    figure, (left, right) = panels(2)
    gaps = {int(size): gap for size, gap in result.extra["gap"].items()}
    left.plot(list(gaps), list(gaps.values()), marker="o")
    left.set_title("||E[median] - mean|| / ||mean||")
    for rule in dict.fromkeys(name.split(",")[0] for name in result.curves):
        ends = [result.curves[f"{rule}, batch {size}"] for size in gaps]
        accuracy = [end["test_accuracy"][-1] for end in ends]
        error = [end["test_accuracy_error"][-1] for end in ends]
        right.errorbar(list(gaps), accuracy, error, marker="o", capsize=3, label=rule)
    right.set(title="test accuracy, no noise but the batch", ylim=(0, 1))
    right.legend()
    for axes in (left, right):
        axes.set(xscale="log", xlabel="batch size")
    return figure
