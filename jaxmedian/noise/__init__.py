"""Noise descriptions: a law of unit variance, a scale b, and how workers share it.

Noisy signSGD and noisy medianSGD (Algorithms 3 and 4 of Chen et al., NeurIPS 2020)
replace worker i's gradient g_i by g_i + b * xi_i. A `Noise` says which xi and which b;
it draws nothing itself: `jaxmedian.perturbation` resolves it against gradients and a
key, and `jaxmedian.theory` computes exact expectations from it.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxmedian.noise.laws import LAWS, Law

__all__ = [
    "Noise",
    "Relative",
    "gaussian",
    "laplace",
    "logistic",
    "uniform",
    "relative",
]

COUPLINGS = ("independent", "systematic")
STATISTICS = ("max", "median")


@dataclasses.dataclass(frozen=True)
class Relative:
    """A scale that follows the gradients; build one with `relative`.

    Attributes:
      factor: >= 0, times the statistic of the gradients.
      statistic: "max" or "median" over the workers.

    >>> relative(0.1)
    Relative(factor=0.1, statistic='max')
    """

    factor: float | jax.Array
    statistic: str = "max"


Schedule = Callable[[Any], Any]
Scale = float | jax.Array | Schedule | Relative


@dataclasses.dataclass(frozen=True)
class Noise:
    """The noise b * xi that each worker adds to its gradient.

    Build one with `gaussian`, `laplace`, `logistic` or `uniform`. Not callable: it is a
    description, and randomness enters where it meets a key.

    Attributes:
      law: name of the law of xi (mean 0, variance 1 for each of them).
      scale: b, the standard deviation of one worker's noise, in units of the gradient.
      coupling: "independent" or "systematic".

    >>> noise = gaussian(0.1)
    >>> noise
    Noise(law='gaussian', scale=0.1, coupling='independent')
    >>> float(noise.cdf(0.0)), float(noise.quantile(0.5))
    (0.5, 0.0)
    """

    law: str
    scale: Scale
    coupling: str = "independent"

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise ValueError(
                f"`law` must be one of {', '.join(LAWS)}; got {self.law!r}."
            )
        if self.coupling not in COUPLINGS:
            raise ValueError(
                f"`coupling` must be one of {', '.join(COUPLINGS)}; got "
                f"{self.coupling!r}."
            )
        if not isinstance(self.scale, Relative) and not callable(self.scale):
            _check_number("scale", self.scale)

    @property
    def _law(self) -> Law:
        return LAWS[self.law]

    def cdf(self, x: Any) -> Any:
        """Computes H(x) = P(xi <= x) of the unit law.

        Args:
          x: any shape; NumPy input is computed in float64, JAX input in its own dtype.

        Returns:
          Probabilities of the shape of x. The survival function is ``cdf(-x)``, without
          cancellation: the law is symmetric.

        >>> float(uniform(0.1).cdf(0.0))
        0.5
        """
        return self._law.cdf(x)

    def pdf(self, x: Any) -> Any:
        """Computes the density h(x) of the unit law, shapes and types as in `cdf`."""
        return self._law.pdf(x)

    def quantile(self, p: Any) -> Any:
        """Computes H^{-1}(p) of the unit law for p in [0, 1], shapes as in `cdf`."""
        return self._law.quantile(p)


def gaussian(scale: Scale, coupling: str = "independent") -> Noise:
    """Describes Gaussian noise of standard deviation ``scale``, as in the paper.

    Args:
      scale: b >= 0 in units of the gradient: a number, a traced scalar, an optax
        schedule of the step, or `relative`. Scale 0 gives exactly the noise-free rule.
      coupling: "independent" (every worker draws its own, the paper's) or "systematic"
        (workers take equally spaced quantiles in random order: same marginals, and a
        vote count or median that varies less).

    Returns:
      A `Noise`.

    Raises:
      ValueError: if a number is negative, infinite or NaN, or the coupling is unknown.
      TypeError: if the scale is no number, scalar array, schedule or `relative`.

    >>> gaussian(0.01)
    Noise(law='gaussian', scale=0.01, coupling='independent')
    """
    return Noise("gaussian", scale, coupling)


def laplace(scale: Scale, coupling: str = "independent") -> Noise:
    """Describes Laplace noise of standard deviation ``scale``; see `gaussian`.

    Its density has a kink at 0, which costs an order in how fast the median's law turns
    symmetric as b grows; prefer a smooth law unless differential privacy asks for it.

    >>> laplace(0.01).law
    'laplace'
    """
    return Noise("laplace", scale, coupling)


def logistic(scale: Scale, coupling: str = "independent") -> Noise:
    """Describes logistic noise of standard deviation ``scale``; see `gaussian`.

    >>> logistic(0.01).law
    'logistic'
    """
    return Noise("logistic", scale, coupling)


def uniform(scale: Scale, coupling: str = "independent") -> Noise:
    """Describes uniform noise on [-sqrt(3) scale, sqrt(3) scale]; see `gaussian`.

    The cheapest law, and the one whose expected vote *count* is exactly proportional to
    the mean as long as no gradient exceeds sqrt(3) * scale.

    >>> uniform(0.01, "systematic")
    Noise(law='uniform', scale=0.01, coupling='systematic')
    """
    return Noise("uniform", scale, coupling)


def relative(factor: float | jax.Array, statistic: str = "max") -> Relative:
    """Scales noise by the gradients at hand, per leaf and step.

    b = factor * max over workers of max|g_i| ("max", the paper's CIFAR-10 rule), or
    factor * median over workers of max|g_i| ("median"). Non-finite entries and absent
    workers are left out. "max" has breakdown point 0, since one hostile worker sets b;
    "median" withstands a minority.

    Args:
      factor: a number >= 0 or a traced scalar, without unit; the paper takes 0.1.
      statistic: "max" or "median".

    Returns:
      A description to pass as the ``scale`` of a law.

    Raises:
      ValueError: if the factor is negative or not finite, or the statistic unknown.

    >>> gaussian(relative(0.1)).scale
    Relative(factor=0.1, statistic='max')
    """
    _check_number("factor", factor)
    if statistic not in STATISTICS:
        raise ValueError(
            f"`statistic` must be one of {', '.join(STATISTICS)}; got {statistic!r}."
        )
    return Relative(factor, statistic)


def _check_number(name: str, value: Any) -> None:
    """Raises unless value is a finite number >= 0 or a scalar JAX array."""
    if isinstance(value, jax.Array):
        if value.ndim != 0:
            raise ValueError(
                f"`{name}` must be a scalar; got an array of shape {value.shape}. For "
                "several scales at once, `jax.vmap` over the function that builds the "
                "optimizer."
            )
        if not np.issubdtype(value.dtype, np.floating) and value.dtype.name not in (
            "bfloat16",
        ):
            raise TypeError(
                f"`{name}` must be floating point; got {value.dtype}. Write 1.0 for 1, "
                "or pass `hyperparam_dtype=jnp.float32` to `optax.inject_hyperparams`."
            )
        return
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number, a scalar JAX array, an optax schedule or "
            f"`jaxmedian.noise.relative(...)`; got {value!r}."
        )
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"`{name}` must be finite and >= 0; got {value!r}.")
