"""Local steps: accuracy against the number of steps between two aggregations.

Claim: on heterogeneous data the vote and the median do not recover by local steps, as
in federated averaging: more of them carry the workers further apart, not nearer to a
vote that follows the mean. Noise helps at every K as it does at K = 1.

    python -m experiments local_steps                 8x8 digits, K = 1, 5, 20
    python -m experiments local_steps --preset quick  K = 1 and 5, four rules

Workers send pseudo-gradients in units of the gradient, (x - x^K) / (K local_rate), so
that K = 1 is the algorithm without local steps and one scale b fits every K.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, Whole, tiny
from experiments.common.harness.plots import draw_band, legend_outside, panels
from experiments.common.harness.results import Claim, Result, each_part
from experiments.common.training.outcomes import Chosen, report
from experiments.common.training.problems import Problem
from experiments.common.training.rules import PAPER_RULES, TunedConfig, chosen_rules
from experiments.common.training.trainer import part_folder


@dataclasses.dataclass(frozen=True)
class Config(TunedConfig):
    """Settings of the comparison; every rule is tuned at every K.

    Attributes:
      rules: names of the rules to compare; those of the paper by default.
      local_steps: K, each a program of its own.
      f: hostile workers that robust rules are told to withstand; there are none.
      num_steps: aggregations; the server's rate falls to 0 by a cosine.
      local_rate: of a worker's own steps of SGD.
      batch_size: samples a worker and local step.
      mean_rates: server's rates that mean and medians choose from, in units of the
        pseudo-gradient: K * local_rate is federated averaging.
    """

    num_steps: Count = 200
    batch_size: Count = 16
    chunk: Count = 20
    rules: tuple[str, ...] = PAPER_RULES
    mean_rates: Amounts = (0.3, 1.0, 3.0)
    local_steps: tuple[Count, ...] = (1, 5, 20)
    f: Whole = 2
    local_rate: float = 0.1


PRESETS = {
    "quick": Config(
        rules=("mean", "vote", "noisy vote, systematic", "median"),
        local_steps=(1, 5),
        num_steps=100,
        vote_rates=(0.01, 0.03),
        mean_rates=(1.0, 3.0),
    ),
    "tiny": tiny(Config(), local_steps=(2,)),
}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Trains every rule at every K; keeps each one's best setting."""
    rules = chosen_rules(config.rules)
    problem = config.problem()
    split = problem.split_by_label(config.num_workers)

    def train(rule: str) -> dict[int, Chosen]:
        row = {}
        for number in config.local_steps:
            tune = config.tune(
                _with_local_steps(config, problem, number),
                rules[rule],
                config.f,
                number * config.batch_size,
            )
            folder = part_folder(checkpoints, f"{rule}, K = {number}")
            row[number] = tune(split, folder)
        return row

    reached, partial = each_part(rules, train)
    found = {
        f"{rule} | K = {number}": chosen
        for rule, row in reached.items()
        for number, chosen in row.items()
    }
    curves = {name: chosen.curve for name, chosen in found.items()}
    best = {name: chosen.setting for name, chosen in found.items()}
    claims = _claims(config, reached)
    return Result(
        curves, claims, {"chosen": best}, partial=partial, data=problem.description
    )


def _with_local_steps(config: Config, problem: Problem, number: int) -> Problem:
    """Gives a problem the loss whose gradient a worker's pseudo-gradient is.

    That is <g, params> for the constant g = (x - x^K) / (K local_rate), the movement of
    the worker in K steps of its own on the parts of its batch.
    """
    local_updates = jm.worker_updates(
        problem.model.loss, optax.sgd(config.local_rate), number, batch_per_step=True
    )

    def loss(params: Any, batch: Any) -> jax.Array:
        parts = jax.tree.map(
            lambda leaf: leaf.reshape(1, number, -1, *leaf.shape[1:]), batch
        )
        moved = jax.lax.stop_gradient(local_updates(params, parts))
        products = jax.tree.map(lambda u, x: -jnp.vdot(u[0], x), moved, params)
        return jax.tree.reduce(jnp.add, products) / (number * config.local_rate)

    return problem._replace(model=problem.model._replace(loss=loss))


def _claims(config: Config, reached: dict[str, dict[int, Chosen]]) -> tuple[Claim, ...]:
    claims = [
        Claim(
            f"{rule}: test accuracy after {config.num_steps} aggregations",
            "; ".join(
                f"K = {number}: {report(chosen.last)}" for number, chosen in row.items()
            ),
        )
        for rule, row in reached.items()
    ]
    judged = config.num_steps >= 100
    for rule in ("vote", "median"):
        noisy = f"noisy {rule}, systematic"
        if {rule, noisy} <= set(reached):
            ahead = {
                number: (
                    reached[noisy][number].last - reached[rule][number].last
                ).mean()
                for number in config.local_steps
            }
            claims.append(
                Claim(
                    f"Noise helps the {rule} at every K",
                    ", ".join(f"by {gain:.3f} at {k}" for k, gain in ahead.items()),
                    bool(min(ahead.values()) > 0) if judged else None,
                )
            )
    return tuple(claims)


def plot(result: Result) -> Figure:
    """Draws test accuracy against aggregations, one panel for each K."""
    numbers = list(dict.fromkeys(name.split("K = ")[1] for name in result.curves))
    figure, axes = panels(len(numbers))
    for ax, number in zip(axes, numbers, strict=True):
        for name, curve in result.curves.items():
            rule, own = name.split(" | K = ")
            if own == number:
                draw_band(ax, curve, "test_accuracy", rule)
        ax.set(ylim=(0, 1), title=f"test accuracy, K = {number}", xlabel="aggregations")
    legend_outside(figure, axes[0])
    return figure
