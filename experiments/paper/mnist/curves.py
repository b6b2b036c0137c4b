"""The curves of `mnist`: what is trained, and how each is called."""

from typing import Any, NamedTuple

import optax

import jaxmedian as jm
from experiments.common.training.trainer import Build
from experiments.paper.mnist.config import Config

EVERY = 50  # steps from one running mean of squares that is sent to the next


class Family(NamedTuple):
    """Curves that differ in b alone, and share one compiled program.

    Attributes:
      build: ``build(key, scale)`` -> optimizer.
      scales: b of each curve.
      batch_size: samples a worker and step; None for all it holds.
    """

    build: Build
    scales: tuple[float, ...]
    batch_size: int | None = None


def families(config: Config) -> dict[str, Family]:
    """Lists what this experiment trains, by name."""

    def mean(key: Any, scale: Any) -> optax.GradientTransformation:
        del key, scale
        return optax.chain(jm.worker_mean(), optax.sgd(config.mean_rate))

    def vote(
        key: Any, scale: Any, coupling: jm.noise.Coupling = "independent"
    ) -> optax.GradientTransformation:
        noise = jm.noise.gaussian(scale, coupling)
        return jm.noisy_sign_sgd(config.vote_rate, noise, key)

    def systematic_vote(key: Any, scale: Any) -> optax.GradientTransformation:
        return vote(key, scale, "systematic")

    def vote_per_coordinate(key: Any, scale: Any) -> optax.GradientTransformation:
        squares = jm.noise.per_coordinate(scale, "rms", every=EVERY)
        noise = jm.noise.uniform(squares, "systematic")
        return jm.noisy_sign_sgd(config.vote_rate, noise, key)

    def median(key: Any, scale: Any) -> optax.GradientTransformation:
        return jm.noisy_median_sgd(config.mean_rate, jm.noise.gaussian(scale), key)

    def unbiased_median(key: Any, scale: Any) -> optax.GradientTransformation:
        del scale
        return jm.noisy_median_sgd(config.mean_rate, jm.noise.unbiased(), key)

    size = config.batch_size
    listed = {
        "mean": Family(mean, (0.0,)),
        "vote": Family(vote, config.scales),
        "vote, systematic": Family(systematic_vote, config.systematic_scales),
        "vote, per coordinate": Family(vote_per_coordinate, config.coordinate_factors),
        "median": Family(median, config.median_scales),
        "median, unbiased": Family(unbiased_median, (0.0,) if config.unbiased else ()),
        f"vote, batch {size}": Family(vote, config.batch_scales, size),
    }
    return {name: family for name, family in listed.items() if family.scales}


def curve_name(family: str, scale: float) -> str:
    """Names the curve of a family with one b, in units of the gradient or relative."""
    unit = " rms" if "per coordinate" in family else ""
    return f"{family}, b = {scale:g}{unit}" if scale else family
