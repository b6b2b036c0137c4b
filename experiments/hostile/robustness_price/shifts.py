"""The exact worst cases of median and vote against b, for every number of hostile."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, Seed, tiny

COUPLINGS = jm.noise.COUPLINGS
Table = dict[str, np.ndarray]  # metric -> against b


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; b of medians and votes is in standard deviations of the values.

    Attributes:
      median_workers: M of the exact medians, odd and at most 8.
      median_coordinates: exponential columns that they are averaged over.
      vote_workers: M of the exact votes, odd.
      vote_coordinates: columns that they are averaged over.
      shift: what is taken off the exponentials of the votes; their mean is 1 - shift,
        and near .69 the vote without noise is a toss-up.
      law: law of the noise.
      scales: b of medians and votes, from 0 on.
      draws: medians of jm.perturbed_median that check the exact ones.
      data: name or path of the images, as `TrainingConfig` takes it.
      data_dir: folder in which archives of data are looked for first.
      rules: of the digits: "vote", "median".
      digit_workers: M of the digits.
      digit_hostile: how many of them are hostile.
      digit_scales: b of the digits, from 0 on.
      alpha: of the Dirichlet split of the digits.
      num_seeds: runs of each setting.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      batch_size: samples a worker and step.
      hidden: units of the hidden layer.
      vote_rate: learning rate of the vote.
      median_rate: learning rate of the median.
      seed: of the values and draws.
    """

    median_workers: Count = 7
    median_coordinates: Count = 10
    vote_workers: Count = 11
    vote_coordinates: Count = 400
    shift: float = 0.7
    law: str = "uniform"
    scales: Amounts = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    draws: Count = 20_000
    data: str = "digits8x8"
    data_dir: Path | None = None
    rules: tuple[str, ...] = ("vote", "median")
    digit_workers: Count = 11
    digit_hostile: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    digit_scales: Amounts = (0.0, 0.01, 0.03, 0.1, 0.3)
    alpha: float = 0.3
    num_seeds: Count = 5
    num_steps: Count = 500
    batch_size: Count = 32
    hidden: Count = 32
    vote_rate: float = 0.01
    median_rate: float = 0.3
    seed: Seed = 0

    def __post_init__(self) -> None:
        for name in ("median_workers", "vote_workers", "digit_workers"):
            number = getattr(self, name)
            if number < 3 or number % 2 == 0:
                raise ValueError(f"`{name}` must be odd and >= 3; got {number}.")
        if self.draws < 2:
            raise ValueError(
                f"`draws` must be 2 or more, to have an error; got {self.draws}."
            )
        if 1.0 not in self.scales or self.scales[0] != 0:
            raise ValueError(
                f"--scales must begin with 0 and hold 1; got {self.scales}."
            )
        if not self.alpha > 0:
            raise ValueError(f"--alpha must be above 0; got {self.alpha}.")
        jm.noise.Noise(self.law, 1.0)  # says which laws there are
        unknown = [rule for rule in self.rules if rule not in ("vote", "median")]
        if unknown:
            raise ValueError(f"`rules` takes vote and median; got {unknown}.")
        if any(not 0 <= f <= self.digit_workers // 2 for f in self.digit_hostile):
            raise ValueError(
                "`digit_hostile` must be numbers from 0 to (M - 1) / 2 = "
                f"{self.digit_workers // 2}; got {self.digit_hostile}."
            )


PRESETS = {
    "quick": Config(
        median_workers=5,
        median_coordinates=40,
        rules=("vote",),
        digit_hostile=(0, 1, 3, 5),
        num_seeds=3,
        num_steps=300,
    ),
    "tiny": tiny(
        Config(),
        median_workers=3,
        median_coordinates=3,
        vote_workers=3,
        vote_coordinates=20,
        scales=(0.0, 1.0, 8.0),
        draws=2000,
        digit_workers=3,
        digit_hostile=(0, 1),
        digit_scales=(0.0, 0.1),
    ),
}


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


def curve_name(rule: str, coupling: jm.noise.Coupling, f: int) -> str:
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
    deviations = []
    for coupling in COUPLINGS:
        noise = jm.noise.Noise(config.law, 1.0, coupling)
        medians = jax.jit(jax.vmap(lambda k, n=noise: jm.perturbed_median(rows, n, k)))
        shift = np.asarray(medians(keys), np.float64) - honest.mean()
        exact = jm.theory.hostile_median_shift(honest, noise, f).up
        error = shift.std(ddof=1) / math.sqrt(config.draws)
        deviations.append(abs(shift.mean() - exact) / error)
    return float(np.max(deviations))  # NaN if one is
