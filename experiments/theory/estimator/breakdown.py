"""How many hostile workers carry an estimate away.

Hostile workers all send the same huge value in every coordinate. A rule breaks down at
the smallest number of them that moves it far beyond the honest values.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.theory.estimator import estimates
from experiments.theory.estimator.estimates import Array, Config
from experiments.theory.estimator.moments import NOISY, RICHARDSON


def errors_by_number(config: Config, values: Array) -> dict[str, np.ndarray]:
    """Replaces k = 0 .. M - 1 workers; errors against the mean of the others.

    Returns:
      For each rule the root mean squared error for each k.
    """
    key = jax.random.key(config.seed)
    errors: dict[str, list[float]] = {}
    for hostile in range(config.num_workers):
        attacked = values.copy()
        attacked[:hostile] = config.hostile_value
        honest = values[hostile:].mean(axis=0)
        for name, estimate in _all_rules(config, attacked, key).items():
            error = float(np.sqrt(((estimate - honest) ** 2).mean()))
            errors.setdefault(name, []).append(error)
    return {name: np.array(error) for name, error in errors.items()}


def _all_rules(config: Config, values: Array, key: jax.Array) -> dict[str, Array]:
    rows, keys = jnp.asarray(values, jnp.float32), key[None]
    scale, factor = config.hostile_scale, config.hostile_factor
    noisy = estimates.perturbed_medians(config.law, rows, scale, keys)[0]
    extrapolated = estimates.richardson(config.law, rows, scale, keys)[0]
    by_rule = {
        "mean": values.mean(axis=0),
        "trimmed mean": estimates.trimmed_mean(values, config.trim),
        "median": np.median(values, axis=0),
        "geometric median": estimates.geometric_median(values),
        f"{NOISY}, b = {scale:g}": np.asarray(noisy, np.float64),
        f"{RICHARDSON}, b = {scale:g}": np.asarray(extrapolated, np.float64),
    }
    for statistic in ("max", "median"):
        name = f"{NOISY}, b = {factor:g} {statistic} |g|"
        found = estimates.relative_median(config.law, rows, factor, statistic, key)
        by_rule[name] = np.asarray(found, np.float64)
    return by_rule


def breakdown(config: Config, error: Array) -> int:
    """Returns the fewest hostile workers that carry an estimate away.

    Away is further than the square root of what they send: far beyond all honest
    values, and far short of what a rule that follows them would say. M if none do.
    """
    away = error > math.sqrt(config.hostile_value)
    return int(away.argmax()) if away.any() else config.num_workers


def expected_breakdown(config: Config, name: str) -> int:
    """Returns the breakdown point of a rule, in workers."""
    if name == "mean" or name.endswith("max |g|"):
        return 1
    if name == "trimmed mean":
        return int(config.trim * config.num_workers) + 1
    return (config.num_workers + 1) // 2
