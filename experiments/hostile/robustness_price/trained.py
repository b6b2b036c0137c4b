"""Training digits beside hostile workers that vote, or pull, against the mean."""

from typing import Any

import numpy as np
import optax

import jaxmedian as jm
from experiments.common.training.trainer import (
    Build,
    build_trainer,
    grid,
    load_problem,
    standard_error,
)
from experiments.hostile.robustness_price.config import Config
from experiments.hostile.robustness_price.shifts import COUPLINGS, Table, curve_name

_FAR = 1e6  # the hostile send -1e6 times the honest mean: beyond all noise


def digit_curves(config: Config) -> dict[str, Table]:
    """Trains every rule, coupling, b and f; the last test accuracies."""
    problem = load_problem("digits8x8", config.hidden, config.num_seeds)
    labels = np.asarray(problem.train["labels"])
    split = jm.splits.dirichlet(labels, config.digit_workers, alpha=config.alpha)
    curves = {}
    for rule in config.rules:
        for coupling in COUPLINGS:
            for f in config.digit_hostile:
                print(f"digits: {rule}, {coupling}, f = {f}")
                train = build_trainer(
                    problem,
                    _build(config, rule, coupling, f),
                    batch_size=config.batch_size,
                    num_steps=config.num_steps,
                    chunk=config.num_steps,
                )
                runs = train(grid(scale=config.digit_scales), split)
                last = runs.metrics["test_accuracy"][:, :, -1]
                curves[curve_name(f"digits, {rule}", coupling, f)] = {
                    "b": np.array(config.digit_scales),
                    "test_accuracy": last.mean(axis=1),
                    "test_accuracy_error": standard_error(last.T),
                }
    return curves


def _build(config: Config, rule: str, coupling: str, f: int) -> Build:
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
