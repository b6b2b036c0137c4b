"""The methods that `neighbours` compares: how to build each, and what workers send."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import jaxmedian as jm
from experiments.methods.neighbours import sign_methods
from experiments.methods.neighbours.config import Config


class Method(NamedTuple):
    """How to build a method, and what a worker sends.

    Attributes:
      build: ``(config, rate, noise_scale, key)`` -> optimizer.
      bits: that a worker sends up, per coordinate and step.
      rates: the field of the config with its learning rates.
      scales: the field with its noise scales; "" for a method without noise.
    """

    build: Callable[..., optax.GradientTransformation]
    bits: float
    rates: str
    scales: str = ""


def _noisy(rule: Any, law: str, coupling: jm.noise.Coupling) -> Callable[..., Any]:
    def build(config: Config, rate: Any, scale: Any, key: Any) -> Any:
        return rule(rate, jm.noise.Noise(law, scale, coupling), key)

    return build


def _per_coordinate(
    rule: Any, statistic: jm.noise.CoordinateStatistic, coupling: jm.noise.Coupling
) -> Callable[..., Any]:
    """Builds a rule whose b in each coordinate is a factor times a statistic."""
    every = EVERY if statistic == "rms" else 1

    def build(config: Config, rate: Any, factor: Any, key: Any) -> Any:
        scale = jm.noise.per_coordinate(factor, statistic, every=every)
        return rule(rate, jm.noise.uniform(scale, coupling), key)

    return build


def _noisy_lion(config: Config, rate: Any, factor: Any, key: Any) -> Any:
    scale = jm.noise.per_coordinate(factor, "rms", every=EVERY)
    return jm.distributed_lion(
        rate,
        num_workers=config.num_workers,
        noise=jm.noise.uniform(scale, "systematic"),
        key=key,
    )


def _ef21(config: Config, rate: Any, scale: Any, key: Any) -> Any:
    return optax.chain(jm.ef21_sign(config.num_workers), sign_methods.mean(rate))


EVERY = 50  # steps from one running mean of squares that is sent to the next
_SQUARES = 1 + 32 / EVERY  # bits of a vote whose scale follows them
_SIGNS, _GRADIENTS = (1, "sign_rates"), (32, "gradient_rates")
METHODS = {
    "mean": Method(lambda c, r, b, k: sign_methods.mean(r), *_GRADIENTS),
    "vote": Method(lambda c, r, b, k: jm.sign_sgd(r), *_SIGNS),
    "median": Method(lambda c, r, b, k: jm.median_sgd(r), *_GRADIENTS),
    "EF-signSGD": Method(
        lambda c, r, b, k: sign_methods.ef_sign_sgd(r, c.num_workers),
        1,
        "gradient_rates",
    ),
    "mean of noisy signs": Method(
        _noisy(sign_methods.mean_of_noisy_signs, "gaussian", "independent"),
        *(1, "noisy_count_rates", "scales"),
    ),
    "sto-sign, B = max|g|": Method(
        lambda c, r, b, k: sign_methods.sto_sign(r, k), *_SIGNS
    ),
    "Signum": Method(
        lambda c, r, b, k: jm.signum(r, num_workers=c.num_workers), *_SIGNS
    ),
    "Distributed Lion": Method(
        lambda c, r, b, k: jm.distributed_lion(r, num_workers=c.num_workers), *_SIGNS
    ),
    **{
        f"vote, {coupling}": Method(
            _noisy(jm.noisy_sign_sgd, "uniform", coupling),
            *(1, "noisy_sign_rates", "scales"),
        )
        for coupling in jm.noise.COUPLINGS
    },
    **{
        f"median, {coupling}": Method(
            _noisy(jm.noisy_median_sgd, "uniform", coupling),
            *(32, "noisy_gradient_rates", "median_scales"),
        )
        for coupling in jm.noise.COUPLINGS
    },
    **{
        f"vote, {coupling}, per coordinate": Method(
            _per_coordinate(jm.noisy_sign_sgd, "rms", coupling),
            *(_SQUARES, "noisy_sign_rates", "factors"),
        )
        for coupling in jm.noise.COUPLINGS
    },
    **{
        f"median, {coupling}, per coordinate": Method(
            _per_coordinate(jm.noisy_median_sgd, "sd", coupling),
            *(32, "noisy_gradient_rates", "factors"),
        )
        for coupling in jm.noise.COUPLINGS
    },
    "median, unbiased": Method(
        lambda c, r, b, k: jm.noisy_median_sgd(r, jm.noise.unbiased(), k), *_GRADIENTS
    ),
    "noisy Lion, per coordinate": Method(
        _noisy_lion, _SQUARES, "noisy_sign_rates", "factors"
    ),
    "EF21-sign": Method(_ef21, 1, "gradient_rates"),
}
