"""The exact laws against the kernels: millions of noisy medians and votes.

Claim: mean and variance of the noisy median and the chances of the vote, as `jm.theory`
computes them, are those of what `jm.perturbed_median` and `jm.majority_vote` draw, for
every law, few and many workers, odd and even M. Neither knows the other: the theory is
quadrature in float64, the kernels are float32 arithmetic on random words.

    python -m experiments exactness                  10 million draws each
    python -m experiments exactness --preset quick   100,000 draws each
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Count, Seed
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result

LAWS = tuple(jm.noise.LAWS)
ESTIMATES = ("mean", "variance", "P(+1)", "P(-1)")
_BLOCK = 2**24  # noisy numbers drawn at once


@dataclasses.dataclass(frozen=True)
class Config:
    """What to draw.

    Attributes:
      num_workers: M; each has exponential values, so that nothing is symmetric.
      scale: b, in standard deviations of the values over the workers.
      draws: noisy medians, and votes, for each M and law, at least.
      seed: of values and draws.
    """

    num_workers: tuple[Count, ...] = (3, 4, 5, 10, 11, 101)
    scale: float = 1.5
    draws: Count = 10_000_000
    seed: Seed = 0


PRESETS = {
    "quick": Config(draws=100_000),
    "tiny": Config(num_workers=(3, 4), draws=20_000),
}


class Exact(NamedTuple):
    """What `jm.theory` says of one M and law: numbers in the order of ESTIMATES."""

    mean: float
    variance: float
    plus: float
    minus: float


def run(config: Config) -> Result:
    """Draws medians and votes for every M and law, and counts standard errors."""
    rng = np.random.default_rng(config.seed)
    scores: dict[str, list[np.ndarray]] = {law: [] for law in LAWS}
    for num_workers in config.num_workers:
        print(f"M = {num_workers}")
        values = rng.exponential(size=num_workers) - 0.7  # votes of either sign
        values = values.astype(np.float32).astype(np.float64)
        for law in LAWS:
            noise = jm.noise.Noise(law, config.scale * float(values.std()))
            scores[law].append(_scores(config, values, noise))
    curves = {
        law: {
            "workers": np.array(config.num_workers),
            **dict(zip(ESTIMATES, np.transpose(rows), strict=True)),
        }
        for law, rows in scores.items()
    }
    table = np.array([scores[law] for law in LAWS])  # [laws, workers, estimates]
    drawn = _in_words([_drawn(config, m) for m in config.num_workers])
    claims = [
        Claim(
            f"{name}: within 5 standard errors of the exact value, {drawn} draws",
            f"at most {np.abs(table[..., i]).max():.2f} in {table[..., i].size} cases",
            bool((np.abs(table[..., i]) <= 5).all()),
        )
        for i, name in enumerate(ESTIMATES)
    ]
    return Result(curves, tuple(claims), against="workers")


def _scores(config: Config, values: np.ndarray, noise: jm.noise.Noise) -> np.ndarray:
    """Returns (estimate - exact) / standard error, in the order of ESTIMATES."""
    mean, variance = jm.theory.median_moments(values, noise)
    vote = jm.theory.vote_probability(values, noise)
    exact = Exact(float(mean), float(variance), float(vote.plus), float(vote.minus))
    powers, counts = np.zeros(4), np.zeros(2)
    draw = _sampler(values, noise)
    size, draws = _block(config, len(values)), _drawn(config, len(values))
    case = len(LAWS) * len(values) + LAWS.index(noise.law)
    key = jax.random.fold_in(jax.random.key(config.seed), case)
    for first in range(0, draws, size):
        block_key = jax.random.fold_in(key, first)
        medians, votes = (np.asarray(x, np.float64) for x in draw(block_key, size))
        centred = medians - exact.mean
        powers += [np.sum(centred**k) for k in (1, 2, 3, 4)]
        counts += [np.sum(votes > 0), np.sum(votes < 0)]
    mean_off, second, _, fourth = powers / draws
    errors = np.sqrt(
        [exact.variance, fourth - second**2, *(p * (1 - p) for p in exact[2:])]
    )
    off = np.array([mean_off, second - exact.variance, *(counts / draws - exact[2:])])
    return off / (np.maximum(errors, 1e-12) / np.sqrt(draws))


def _block(config: Config, num_workers: int) -> int:
    """Returns how many medians are drawn at once."""
    return min(_BLOCK // num_workers, config.draws)


def _drawn(config: Config, num_workers: int) -> int:
    """Returns how many are drawn: whole blocks, so at least what the config says."""
    size = _block(config, num_workers)
    return -(-config.draws // size) * size


def _in_words(numbers: Sequence[int]) -> str:
    """Writes "100,000", or "100,000 to 120,000"."""
    return " to ".join(f"{n:,}" for n in sorted({min(numbers), max(numbers)}))


def _sampler(
    values: np.ndarray, noise: jm.noise.Noise
) -> Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]:
    """Builds ``(key, size) -> (medians [size], votes [size])``, independent draws."""

    def draw(key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        rows = jnp.broadcast_to(
            jnp.asarray(values, jnp.float32)[:, None], (len(values), size)
        )
        median_key, vote_key = jax.random.split(key)
        vote = jm.majority_vote(noise, vote_key)
        votes, _ = vote.update(rows, vote.init(rows[0]), rows[0])
        return jm.perturbed_median(rows, noise, median_key), votes

    return jax.jit(draw, static_argnums=1)


def plot(result: Result) -> Figure:
    """Draws the distances in standard errors against M."""
    figure, axes = panels(len(ESTIMATES))
    for panel, name in zip(axes, ESTIMATES, strict=True):
        for law, curve in result.curves.items():
            panel.plot(curve["workers"], curve[name], "o", label=law)
        for limit in (-5, 0, 5):
            panel.axhline(limit, color="grey", linewidth=0.8)
        panel.set(xscale="log", xlabel="M", title=f"{name}: standard errors off")
    axes[0].legend(fontsize=7)
    return figure
