"""The curves of `shakespeare`: how to build each, and what a worker sends up."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import jaxmedian as jm
from experiments.common.training.transformer import is_matrix
from experiments.methods.shakespeare.config import Config

B1, B2 = 0.9, 0.99  # of AdamW; Lion's second is `Config.lion_b2`


class Contender(NamedTuple):
    """A way to train.

    Attributes:
      build: ``(config, schedule, noise_scale, key)`` -> optimizer.
      bits: that a worker sends up, per coordinate and step.
      rates: the field of the config with its learning rates.
      scales: the field with its noise scales; "" without noise.
    """

    build: Callable[..., optax.GradientTransformation]
    bits: float
    rates: str
    scales: str = ""


def learning_rate(rate: Any, warm_up: int, num_steps: int) -> optax.Schedule:
    """Builds a schedule that warms up to the rate, and falls to a tenth by a cosine."""
    warm_up = min(warm_up, num_steps - 1)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, num_steps, 0.1)
    return lambda step: rate * shape(step + 1)


def mean_adamw(config: Config, schedule: Any, *_: Any) -> optax.GradientTransformation:
    """Builds nanoGPT's AdamW: the mean's norm clipped at 1, matrices decayed."""
    return optax.chain(
        jm.worker_mean(),
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, B1, B2, weight_decay=config.decay, mask=is_matrix),
    )


def mean_lion(config: Config, schedule: Any, *_: Any) -> optax.GradientTransformation:
    """Builds Lion on the mean."""
    return optax.chain(
        jm.worker_mean(),
        optax.lion(schedule, B1, config.lion_b2, weight_decay=config.decay),
    )


def average_lion(
    config: Config, schedule: Any, *_: Any
) -> optax.GradientTransformation:
    """Builds Distributed Lion by averaging signs."""
    return optax.chain(
        jm.interpolate_momentum(config.num_workers, B1, config.lion_b2),
        jm.mean_of_signs(),
        optax.add_decayed_weights(config.decay),
        optax.scale_by_learning_rate(schedule),
    )


def noisy_lion(
    scale_of: Callable[[Any], Any] | None = None, **vote_options: Any
) -> Callable[..., optax.GradientTransformation]:
    """Builds Distributed Lion by majority, with uniform systematic noise or without.

    Args:
      scale_of: what is tuned -> the scale of a `jaxmedian.noise.Noise`.
      **vote_options: of `jaxmedian.majority_vote`.
    """

    def build(
        config: Config, schedule: Any, scale: Any, key: Any
    ) -> optax.GradientTransformation:
        noise = scale_of and jm.noise.uniform(scale_of(scale), "systematic")
        return jm.distributed_lion(
            schedule,
            B1,
            config.lion_b2,
            config.decay,
            num_workers=config.num_workers,
            noise=noise,
            key=key if noise else None,
            **vote_options,
        )

    return build


def running_squares(every: int, factor: Any) -> jm.noise.PerCoordinate:
    """Returns a scale for each coordinate, of its running root mean square."""
    return jm.noise.per_coordinate(factor, "rms", every=every)


def noisy_mean(noise: jm.noise.Noise, key: Any) -> optax.GradientTransformation:
    """Takes the mean of noisy floats: what signs of them lose, this keeps."""
    return optax.chain(jm.add_worker_noise(noise, key), jm.worker_mean())


def lion_after(
    aggregate: Callable[..., optax.GradientTransformation],
    coupling: jm.noise.Coupling = "systematic",
) -> Callable[..., optax.GradientTransformation]:
    """Builds Lion on noisy gradients, with the momentum behind the aggregator.

    Workers keep none: the noise of their batches stays in, and works as the drawn one.
    What is left of both dithers Lion's own sign.

    Args:
      aggregate: ``(noise, key)`` -> `jaxmedian.mean_of_signs`, say.
      coupling: of the noise; systematic noise would cancel in a mean.
    """

    def build(
        config: Config, schedule: Any, factor: Any, key: Any
    ) -> optax.GradientTransformation:
        noise = jm.noise.uniform(running_squares(50, factor), coupling)
        return optax.chain(
            aggregate(noise, key),
            optax.lion(schedule, B1, config.lion_b2, weight_decay=config.decay),
        )

    return build


CONTENDERS = {
    "mean + AdamW": Contender(mean_adamw, 32, "adam_rates"),
    "mean + Lion": Contender(mean_lion, 32, "lion_rates"),
    "Distributed Lion, majority": Contender(noisy_lion(), 1, "vote_rates"),
    "Distributed Lion, average": Contender(average_lion, 1, "average_rates"),
    "noisy Lion vote, one b": Contender(
        noisy_lion(lambda b: b), 1, "vote_rates", "scales"
    ),
    "noisy Lion vote, b per leaf": Contender(
        noisy_lion(lambda c: jm.noise.relative(c, "median")),
        *(1, "vote_rates", "leaf_factors"),
    ),
    **{
        f"noisy Lion vote, b per coordinate, K = {every}": Contender(
            noisy_lion(functools.partial(running_squares, every)),
            1 + 32 / every,
            "vote_rates",
            "coordinate_factors",
        )
        for every in (50, 200)
    },
    **{
        f"Lion after {name}, K = 50": Contender(
            lion_after(*how), bits + 32 / 50, "vote_rates", "coordinate_factors"
        )
        for name, bits, *how in (
            ("noisy signs", 1, jm.mean_of_signs),
            ("a noisy vote", 1, jm.majority_vote),
            ("the noisy mean", 32, noisy_mean, "independent"),
        )
    },
}
