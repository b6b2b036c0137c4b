"""The exact worst cases of median and vote against b, for every number of hostile."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxmedian as jm
from experiments.hostile.robustness_price.config import Config

COUPLINGS = jm.noise.COUPLINGS
Table = dict[str, np.ndarray]  # metric -> against b


def median_values(config: Config) -> np.ndarray:
    """Draws the workers' values, [M, coordinates]; the last f of them turn hostile."""
    rng = np.random.default_rng(config.seed)
    return rng.exponential(size=(config.median_workers, config.median_coordinates))


def vote_values(config: Config) -> np.ndarray:
    """Draws values whose noise-free vote is often wrong, [M, coordinates]."""
    rng = np.random.default_rng(config.seed + 1)
    size = (config.vote_workers, config.vote_coordinates)
    return rng.exponential(size=size) - config.shift


def median_curves(config: Config) -> dict[str, Table]:
    """Computes shift and worst error against b, for each coupling and f."""
    values, curves = median_values(config), {}
    for coupling in COUPLINGS:
        for f in range(config.median_workers // 2 + 1):
            honest = values[: len(values) - f]
            rows = []
            for scale in config.scales:
                noise = jm.noise.Noise(config.law, scale, coupling)
                down, up = jm.theory.hostile_median_shift(honest, noise, f)
                error = jm.theory.hostile_median_error(honest, noise, f)
                rows.append([down.mean(), up.mean(), error.mean()])
            down, up, error = np.transpose(rows)
            curves[curve_name("median", coupling, f)] = {
                "b": np.array(config.scales),
                "shift_down": down,
                "shift_up": up,
                "rmse": np.sqrt(error),
            }
    return curves


def vote_curves(config: Config) -> dict[str, Table]:
    """Computes the chance of a right vote against b, for each coupling and f."""
    values = vote_values(config)
    found = [
        jm.theory.hostile_crossover(values, jm.noise.Noise(config.law, scale), "vote")
        for scale in config.scales
    ]
    return {
        curve_name("vote", coupling, f): {
            "b": np.array(config.scales),
            "right": np.array([getattr(choice, coupling)[f] for choice in found]),
        }
        for coupling in COUPLINGS
        for f in range(config.vote_workers // 2 + 1)
    }


def curve_name(rule: str, coupling: str, f: int) -> str:
    """Names a curve."""
    return f"{rule}, {coupling}, f = {f}"


def best_scales(config: Config) -> list[jm.theory.scales.BestScale]:
    """Chooses b for the median against f = 0, 1, ... hostile workers."""
    values = median_values(config)
    return [
        jm.theory.best_scale(values[: len(values) - f], config.law, f=f)
        for f in range(config.median_workers // 2 + 1)
    ]


def largest_deviation(config: Config) -> float:
    """Compares `jm.perturbed_median` with the exact shift, in standard errors.

    One coordinate, b = 1, and (M - 1) / 2 hostile workers that send +inf.
    """
    honest = median_values(config)[:, 0]
    f = config.median_workers // 2
    honest = honest[: len(honest) - f]
    rows = jnp.asarray(np.append(honest, [np.inf] * f)[:, None], jnp.float32)
    keys = jax.random.split(jax.random.key(config.seed), config.draws)
    worst = 0.0
    for coupling in COUPLINGS:
        noise = jm.noise.Noise(config.law, 1.0, coupling)
        medians = jax.jit(jax.vmap(lambda k, n=noise: jm.perturbed_median(rows, n, k)))
        shift = np.asarray(medians(keys), np.float64) - honest.mean()
        exact = jm.theory.hostile_median_shift(honest, noise, f).up
        error = shift.std(ddof=1) / math.sqrt(config.draws)
        worst = max(worst, abs(shift.mean() - exact) / error)
    return float(worst)
