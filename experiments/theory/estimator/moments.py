"""Bias and spread of noisy medians and their extrapolation: exact, and simulated.

All are averages over the coordinates of all data sets, of errors against the mean of
the workers' values; "sd" is that of the error over data sets and draws.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmedian as jm
from experiments.theory.estimator import estimates
from experiments.theory.estimator.estimates import Array, Config

NOISY, RICHARDSON = "noisy median", "Richardson"


class Moments(NamedTuple):
    """Exact bias and variance of the noisy median for each coordinate, [sets d]."""

    bias: Array
    variance: Array


def moments_by_scale(config: Config, values: Array) -> dict[float, Moments]:
    """Computes the moments for every b that is drawn or simulated."""
    columns = values.reshape(len(values), -1)
    simulated = np.array(config.simulated_scales)
    scales = np.concatenate([2.0 ** _powers(config), simulated, 2 * simulated])
    found = {}
    for scale in np.unique(scales):
        noise = jm.noise.Noise(config.law, float(scale))
        mean, variance = jm.theory.median_moments(columns, noise)
        found[float(scale)] = Moments(mean - columns.mean(axis=0), variance)
    return found


def _powers(config: Config) -> Array:
    """Returns log2 b: those of the curves, and two more for the 2b of the last two."""
    return np.arange(config.least_exponent, config.greatest_exponent + 1.01, 0.5)


def exact(
    config: Config, moments: dict[float, Moments]
) -> dict[str, dict[str, np.ndarray]]:
    """Averages the moments of both noisy estimates over the coordinates.

    Richardson's variance is that of two independent medians; its bias does not care.
    """
    scales = 2.0 ** _powers(config)
    bias = np.array([moments[float(scale)].bias for scale in scales])
    variance = np.array([moments[float(scale)].variance for scale in scales])
    near, far = slice(None, -2), slice(2, None)  # 2b is two places further on
    extrapolated = (4 * bias[far] - bias[near]) / 3
    of_independent = (16 * variance[far] + variance[near]) / 9
    return {
        NOISY: _table(scales[near], bias[near], variance[near]),
        RICHARDSON: _table(scales[near], extrapolated, of_independent),
    }


def _table(scales: Array, bias: Array, variance: Array) -> dict[str, np.ndarray]:
    return {
        "b / sd": scales,
        "bias": bias.mean(axis=1),
        "squared_bias": (bias**2).mean(axis=1),
        "variance": variance.mean(axis=1),
        "sd": np.sqrt(variance.mean(axis=1) + bias.var(axis=1)),
    }


def simulated(config: Config, values: Array, name: str) -> dict[str, np.ndarray]:
    """Draws estimates of all data sets; the average of each draw is one sample."""
    columns = values.reshape(len(values), -1)
    mean = columns.mean(axis=0)
    rows = jnp.asarray(columns, jnp.float32)
    estimate = estimates.perturbed_medians if name == NOISY else estimates.richardson
    points = []
    for i, scale in enumerate(config.simulated_scales):
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        keys = jax.random.split(key, config.draws)
        error = np.asarray(estimate(config.law, rows, scale, keys), np.float64) - mean
        averages = np.stack([error.mean(axis=1), (error**2).mean(axis=1)])
        bias, squared = averages.mean(axis=1)
        errors = averages.std(axis=1, ddof=1) / math.sqrt(config.draws)
        points.append((scale, bias, errors[0], squared, errors[1], error.std()))
    names = ("b / sd", "bias", "bias_error", "squared_error", "squared_error_error")
    return dict(zip((*names, "sd"), np.array(points).T, strict=True))


def averaged_rmse(curve: Mapping[str, np.ndarray], draws: float) -> float:
    """Computes the root mean squared error of an average of draws, at its best b."""
    return float(np.sqrt((curve["squared_bias"] + curve["variance"] / draws).min()))
