"""Noise descriptions: a law of unit variance, a scale b, and how workers share it.

Noisy signSGD and noisy medianSGD (Algorithms 3 and 4 of Chen et al., NeurIPS 2020)
replace worker i's gradient g_i by g_i + b * xi_i. A `Noise` says which xi and which b;
it draws nothing itself: `jaxmedian.transforms` resolves it against gradients and a
key, and `jaxmedian.theory` computes exact expectations from it.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.noise.laws import LAWS, Law

__all__ = [
    "Noise",
    "Relative",
    "PerCoordinate",
    "gaussian",
    "laplace",
    "logistic",
    "uniform",
    "relative",
    "per_coordinate",
    "unbiased",
]

Coupling = Literal["independent", "systematic"]
COUPLINGS: tuple[Coupling, ...] = get_args(Coupling)
Statistic = Literal["max", "median"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
CoordinateStatistic = Literal["sd", "range", "mad", "rms", "unbiased"]
COORDINATE_STATISTICS: tuple[CoordinateStatistic, ...] = get_args(CoordinateStatistic)


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
    statistic: Statistic = "max"


Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class PerCoordinate:
    """A scale for every coordinate; build one with `per_coordinate` or `unbiased`.

    Attributes:
      factor: >= 0, times the statistic of the gradients; or a schedule.
      statistic: "sd", "range", "mad", "rms" or "unbiased".
      every: steps from one "rms" that is sent to the next.
      decay: of the running mean of squares, per step.

    >>> per_coordinate(2.0, "sd")
    PerCoordinate(factor=2.0, statistic='sd', every=1, decay=0.99)
    """

    factor: float | jax.Array | Schedule
    statistic: CoordinateStatistic
    every: int = 1
    decay: float = 0.99


Scale = float | jax.Array | Schedule | Relative | PerCoordinate


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
    coupling: Coupling = "independent"

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
        scale = self.scale
        if isinstance(scale, Relative | PerCoordinate) or callable(scale):
            return
        kinds = (
            "a number, a scalar JAX array, an optax schedule, "
            "`jaxmedian.noise.relative(...)` or `per_coordinate(...)`"
        )
        _check_number("scale", scale, kinds)
        if not isinstance(scale, jax.Array):  # a number of NumPy's, or a fraction
            object.__setattr__(self, "scale", float(scale))

    @property
    def _law(self) -> Law:
        return LAWS[self.law]

    def cdf(self, x: Any) -> Any:
        """Computes H(x) = P(xi <= x) of the unit law.

        Args:
          x: any shape; NumPy input is computed in float64, JAX input gives its own
            dtype, of 16 bits by way of float32.

        Returns:
          Probabilities of the shape of x. The survival function is ``cdf(-x)``, without
          cancellation: the law is symmetric.

        >>> float(uniform(0.1).cdf(0.0))
        0.5
        """
        return _in_own_dtype(self._law.cdf, x)

    def pdf(self, x: Any) -> Any:
        """Computes the density h(x) of the unit law, shapes and types as in `cdf`."""
        return _in_own_dtype(self._law.pdf, x)

    def quantile(self, p: Any) -> Any:
        """Computes H^{-1}(p) of the unit law for p in [0, 1], shapes as in `cdf`."""
        return _in_own_dtype(self._law.quantile, p)


def _in_own_dtype(function: Callable[[Any], Any], x: Any) -> Any:
    """Computes a function that knows 32 bits and more in the dtype of JAX input."""
    if not isinstance(x, jax.Array) or x.dtype.itemsize > 2:
        return function(x)
    return function(x.astype(jnp.float32)).astype(x.dtype)


def gaussian(scale: Scale, coupling: Coupling = "independent") -> Noise:
    """Describes Gaussian noise of standard deviation ``scale``, as in the paper.

    Args:
      scale: b in units of the gradient: a number >= 0, a traced scalar, an optax
        schedule of the step, `relative`, or `per_coordinate`. Of a traced scale or a
        schedule the magnitude counts, and NaN makes every noisy value NaN: votes
        without a sign, medians of +inf. Scale 0 gives exactly the noise-free rule.
        A scale from `optax.inject_hyperparams` wants `update` to be called under
        `jax.jit`, as in a training step: outside it each call compiles anew.
      coupling: "independent" (every worker draws its own, the paper's) or "systematic"
        (workers take equally spaced quantiles in random order: same marginals, and a
        vote count or median that varies less).

    Returns:
      A `Noise`.

    Raises:
      ValueError: if a number is negative, infinite or NaN, or the coupling is unknown.
      TypeError: if the scale is none of these.

    >>> gaussian(0.01)
    Noise(law='gaussian', scale=0.01, coupling='independent')
    """
    return Noise("gaussian", scale, coupling)


def laplace(scale: Scale, coupling: Coupling = "independent") -> Noise:
    """Describes Laplace noise of standard deviation ``scale``; see `gaussian`.

    Its density has a kink at 0, which costs an order in how fast the median's law turns
    symmetric as b grows; prefer a smooth law. (None gives privacy here: every worker
    knows the key.)

    >>> laplace(0.01).law
    'laplace'
    """
    return Noise("laplace", scale, coupling)


def logistic(scale: Scale, coupling: Coupling = "independent") -> Noise:
    """Describes logistic noise of standard deviation ``scale``; see `gaussian`.

    >>> logistic(0.01).law
    'logistic'
    """
    return Noise("logistic", scale, coupling)


def uniform(scale: Scale, coupling: Coupling = "independent") -> Noise:
    """Describes uniform noise on [-sqrt(3) scale, sqrt(3) scale]; see `gaussian`.

    The cheapest law, and the one whose expected vote *count* is exactly proportional to
    the mean as long as no gradient exceeds sqrt(3) * scale.

    >>> uniform(0.01, "systematic")
    Noise(law='uniform', scale=0.01, coupling='systematic')
    """
    return Noise("uniform", scale, coupling)


def relative(factor: float | jax.Array, statistic: Statistic = "max") -> Relative:
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
    _check_number("factor", factor, "a number or a scalar JAX array")
    if statistic not in STATISTICS:
        raise ValueError(
            f"`statistic` must be one of {', '.join(STATISTICS)}; got {statistic!r}."
        )
    return Relative(factor, statistic)


def per_coordinate(
    factor: float | jax.Array | Schedule,
    statistic: CoordinateStatistic,
    *,
    every: int = 1,
    decay: float = 0.99,
) -> PerCoordinate:
    r"""Scales the noise of each coordinate by how much the workers differ there.

    Coordinates of one model differ by orders of magnitude, and one b for all of them is
    too much here and too little there. With :math:`g_{ij}` the gradient of worker i,

    =============  ====================================================  ===============
    ``statistic``  :math:`b_j` = factor times                            breakdown point
    =============  ====================================================  ===============
    "sd"           standard deviation over workers of g_ij               0
    "range"        max_i g_ij - min_i g_ij                               0
    "mad"          median_i \|g_ij - median\|                            1/2
    "rms"          square root of a running mean of g_ij^2               0
    "unbiased"     range times n / (2 sqrt(3) ceil(n / 2)), n present    0
    =============  ====================================================  ===============

    over the workers present; values that are not finite are left out ("mad": count as
    infinitely far). Squares of float32 beyond 1e19 and ranges beyond 3e38 are infinite,
    and so are b_j and the update; those of values below 1e-19 vanish, and with them b_j
    of "sd" and "rms" (scale the loss up, or take "range"). Breakdown point 0 says that
    one hostile worker sets b_j, infinite if it likes; "mad" withstands a minority, but
    misses the one worker who holds a rare class. Good factors: about 2 ("sd",
    independent noise), 1 ("sd", systematic), 1 ("rms").

    All but "rms" are stateless and need the rows of all workers: for medians, whose
    aggregator sees them anyway, they cost one or two passes over the rows. On a mesh
    the rows of a step travel once more for them, and b is the same to the bit on any
    number of devices. A vote should send no floats each step: "rms" sends
    one mean of squares per coordinate and worker in ``every`` steps, 32 / every bits,
    and keeps a running mean of what was sent in the state of the transformation.

    Args:
      factor: a number >= 0, a traced scalar, or an optax schedule of the step.
      statistic: see the table.
      every: K >= 1, for "rms": the squares of steps 0, K, 2 K, ... are sent.
      decay: 0 <= decay < 1, for "rms": squares of t steps ago weigh decay^t.

    Returns:
      A description to pass as the ``scale`` of a law.

    Raises:
      ValueError: if the factor is negative or not finite, the statistic unknown, or
        ``every`` or ``decay`` out of range, or given for a statistic without state.
      TypeError: if the factor is no number, scalar array or schedule, ``every`` no int,
        or ``decay`` no number.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> noise = jm.noise.gaussian(jm.noise.per_coordinate(2.0, "sd"))
    >>> tx = jm.coordinate_median(noise, key=0)
    >>> grads = jnp.array([[1., 5.], [2., 5.], [9., 5.]])
    >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(2)), jnp.zeros(2))
    >>> float(updates[1])  # the workers agree: no noise
    5.0

    References:
      Ours, after the threshold of `jaxmedian.theory.unbiased_scale`. The running mean
      of squares is that of RMSProp and Adam (Kingma and Ba, ICLR 2015).
    """
    if not callable(factor):
        kinds = "a number, a scalar JAX array or an optax schedule"
        _check_number("factor", factor, kinds)
    if statistic not in COORDINATE_STATISTICS:
        raise ValueError(
            f"`statistic` must be one of {', '.join(COORDINATE_STATISTICS)}; got "
            f"{statistic!r}."
        )
    if isinstance(every, bool) or not isinstance(every, int | np.integer):
        raise TypeError(f"`every` must be an int; got {every!r}.")
    if every < 1:
        raise ValueError(f"`every` must be at least 1; got {every}.")
    for name, is_given in (("every", every != 1), ("decay", decay != 0.99)):
        if is_given and statistic != "rms":
            raise ValueError(
                f'`{name}` is for the statistic "rms"; {statistic!r} has no state and '
                "is computed in every step."
            )
    if isinstance(decay, bool) or not isinstance(decay, numbers.Real):
        raise TypeError(f"`decay` must be a number; got {decay!r}.")
    if not 0 <= decay < 1:
        raise ValueError(f"`decay` must be at least 0 and below 1; got {decay!r}.")
    return PerCoordinate(factor, statistic, int(every), float(decay))


def unbiased() -> Noise:
    r"""Describes noise that makes the median exactly unbiased, without a parameter.

    Systematic uniform noise with, in each coordinate, the least scale from which the
    expected median of n workers is their mean, whatever they hold:

    .. math:: b_j = \frac{n}{2 \sqrt{3} \lceil n / 2 \rceil}
        \left(\max_i g_{ij} - \min_i g_{ij}\right)

    for odd n and (midpoint) even n. (The median of two is their mean without noise,
    which then adds variance alone.) The proof is in `jaxmedian.theory`: the noise turns
    the workers round a circle on which they stand still, and every one is the median
    equally long. The price: one hostile worker sets b_j (breakdown point 0), and each
    coordinate follows about one random worker a step. A vote is exactly unbiased from
    another scale, see `jaxmedian.theory.unbiased_scale`.

    Returns:
      ``uniform(per_coordinate(1.0, "unbiased"), "systematic")``.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> x = jnp.array([1., 2., 10.])
    >>> medians = jax.vmap(lambda key: jm.perturbed_median(x, jm.noise.unbiased(), key))
    >>> bool(abs(medians(jnp.arange(10_000)).mean() - 13 / 3) < 0.2)
    True

    Reference: ours; systematic noise is that of correlated quantization (Suresh, Sun,
    Ro and Yu, ICML 2022).
    """
    return uniform(per_coordinate(1.0, "unbiased"), "systematic")


def _check_number(name: str, value: object, kinds: str) -> None:
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
        raise TypeError(f"`{name}` must be {kinds}; got {value!r}.")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"`{name}` must be finite and >= 0; got {value!r}.")
