"""Training digits beside hostile workers that vote, or pull, against the mean."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import optax

import jaxmedian as jm
from experiments.common.training.outcomes import grid, standard_error
from experiments.common.training.problems import load_problem
from experiments.common.training.trainer import Build, build_trainer, part_folder
from experiments.hostile.robustness_price.shifts import (
    COUPLINGS,
    Config,
    Table,
    curve_name,
)

_FAR = 1e6  # the hostile send -1e6 times the honest mean: beyond all noise


def digit_curves(
    config: Config, checkpoints: Path | None
) -> tuple[dict[str, Table], dict[str, np.ndarray], str]:
    """Trains every rule, coupling, b and f.

    Returns:
      The last test accuracies, what the largest b costs each seed, and what the data
      are called.
    """
    problem = load_problem(
        config.data, config.hidden, config.num_seeds, config.data_dir
    )
    labels = problem.labels_for(config.digit_workers)
    split = jm.splits.dirichlet(labels, config.digit_workers, alpha=config.alpha)
    curves, costs = {}, {}
    for rule, coupling, f in itertools.product(
        config.rules, COUPLINGS, config.digit_hostile
    ):
        name = curve_name(f"digits, {rule}", coupling, f)
        print(name)
        train = build_trainer(
            problem,
            _build(config, rule, coupling, f),
            batch_size=config.batch_size,
            num_steps=config.num_steps,
            chunk=config.num_steps,
        )
        settings = grid(scale=config.digit_scales)
        runs = train(settings, split, part_folder(checkpoints, name))
        last = runs.metrics["test_accuracy"][:, :, -1]
        costs[name] = cost_of_noise(last, runs.metrics["validation_accuracy"][:, :, -1])
        curves[name] = {
            "b": np.array(config.digit_scales),
            "test_accuracy": last.mean(axis=1),
            "test_accuracy_error": standard_error(last.T),
        }
    return curves, costs, problem.description


def cost_of_noise(tested: np.ndarray, validated: np.ndarray) -> np.ndarray:
    """Returns what the last b costs against the one that validation prefers, [S].

    Args:
      tested: test accuracy of every b and seed, [B, S].
      validated: validation accuracy, by which a seed chooses its b, [B, S].
    """
    chosen = validated.argmax(axis=0)
    return tested[chosen, np.arange(len(chosen))] - tested[-1]


def _build(config: Config, rule: str, coupling: jm.noise.Coupling, f: int) -> Build:
    aggregator = jm.majority_vote if rule == "vote" else jm.coordinate_median
    rate = config.vote_rate if rule == "vote" else config.median_rate
    hostile = range(config.digit_workers - f, config.digit_workers)
    attack = [jm.attacks.inner_product_manipulation([*hostile], scale=_FAR)] * (f > 0)

    def build(key: Any, scale: Any) -> optax.GradientTransformation:
        noise = jm.noise.Noise(config.law, scale, coupling)
        schedule = optax.cosine_decay_schedule(rate, config.num_steps)
        return optax.chain(
            *attack, aggregator(noise, key), optax.scale_by_learning_rate(schedule)
        )

    return build
