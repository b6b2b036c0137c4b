"""The four noise laws: symmetric, unimodal, mean 0, variance 1.

Each law is a row of plain functions. ``cdf``, ``pdf`` and ``quantile`` are the textbook
forms; they take NumPy input (and return float64) or JAX input. ``sample`` and ``tail``
are the forms the kernels use on a centred uniform t in (-1, 1), H^{-1}((1 + t) / 2) and
P(|xi| > a): elementwise, built from operations that XLA fuses, and (for ``sample``)
written with ``log`` of the exactly representable 1 - t and 1 + t or of their product,
which compiles to the same bits in every program. The scale b of the noise is not known
here. The last fields are what `jaxmedian.theory` needs beyond that; for a smooth law
their defaults do, so that a new one is a single row.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_SQRT2 = float(np.sqrt(2.0))
_SQRT3 = float(np.sqrt(3.0))
_LOGISTIC_SCALE = _SQRT3 / float(np.pi)  # of a logistic law with variance 1

Array = Any  # a NumPy or a JAX array
Function = Callable[[Array], Array]
Derivatives = Callable[[Array, int], list[Array]]


class Law(NamedTuple):
    """A symmetric law of unit variance.

    Attributes:
      name: what users call it.
      cdf: x -> H(x).
      pdf: x -> h(x).
      quantile: p in [0, 1] -> H^{-1}(p); infinite at 0 and 1 where the law is
        unbounded.
      sample: t in (-1, 1), float32 or float64 -> H^{-1}((1 + t) / 2), traced.
      tail: a >= 0, float32 -> P(|xi| > a), traced, with a small *relative* error where
        it is above 2^-23, the least 1 + t there is; but for the flat law, whose kernels
        need none.
      bound: the law lives on [-bound, bound].
      kinks: points where the density is not smooth, sorted.
      derivatives: (z >= 0, top) -> h(z), h'(z), ..., the derivative of order ``top``,
        NumPy float64, from the right at a kink. None: by interpolation, for a density
        without kinks that is analytic within 1 of the real line.
      curvature: small x -> H(x) - 1/2 - h(0) x, NumPy float64, to a small relative
        error, if 0 is a kink; without it, or with kinks elsewhere, the bias of a median
        under very large noise is accurate to a rounding of b only.
      is_flat: the law is the uniform one on [-bound, bound].
    """

    name: str
    cdf: Function
    pdf: Function
    quantile: Function
    sample: Function
    tail: Function
    bound: float
    kinks: tuple[float, ...]
    derivatives: Derivatives | None = None
    curvature: Function | None = None
    is_flat: bool = False


def _host_or_device(x: Array) -> tuple[Array, ModuleType, Any]:
    """Returns x as an array, with the numpy and special functions that fit it."""
    if isinstance(x, jax.Array):
        return x, jnp, jax.scipy.special
    import scipy.special  # takes a second, which no kernel needs

    return np.asarray(x, np.float64), np, scipy.special


def _horner(x: Array, coefficients: tuple[float, ...]) -> Array:
    """Evaluates a polynomial, highest coefficient first."""
    value = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


# --- gaussian -------------------------------------------------------------------------


def _gaussian_cdf(x: Array) -> Array:
    x, _, special = _host_or_device(x)
    return special.ndtr(x)


def _gaussian_pdf(x: Array) -> Array:
    x, xp, _ = _host_or_device(x)
    return xp.exp(-0.5 * x * x) / float(np.sqrt(2 * np.pi))


def _gaussian_quantile(p: Array) -> Array:
    p, _, special = _host_or_device(p)
    return special.ndtri(p)


def _gaussian_derivatives(z: Array, top: int) -> list[Array]:
    found = [_gaussian_pdf(z)]
    for j in range(top):  # h' = -z h, differentiated j times
        lower = j * found[j - 1] if j else 0.0
        found.append(-z * found[j] - lower)
    return found


# Giles, "Approximating the erfinv function" (2010), single precision: erfinv(t) =
# t * poly(w - 2.5) for w = -log(1 - t^2) < 5, t * poly(sqrt(w) - 3) beyond.
_ERFINV_CENTRE = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_ERFINV_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)


def _gaussian_sample(t: Array) -> Array:
    w = -jnp.log((1 - t) * (1 + t))
    centre = _horner(w - 2.5, _ERFINV_CENTRE)
    tail = _horner(jnp.sqrt(w) - 3.0, _ERFINV_TAIL)
    return _SQRT2 * t * jnp.where(w < 5.0, centre, tail)


# log2 P(|xi| > a) / a for 0 <= a <= 5.4, fitted for this file with each error weighed
# by how far it moves a. In float32 P then has a relative error below 3e-6, and a as its
# function one below 2.5 units in the last place of max(1, a).
_LOG2_TAIL = (
    *(-2.77881535e-08, 8.1945578e-07, -1.04214047e-05, 7.26316556e-05, -0.000264594824),
    *(-3.43371405e-05, 0.00699129779, -0.0524718067, -0.459211131, -1.15110519),
)
_TAIL_END = 5.4  # P(|xi| > 5.4) = 2^-23.8, and 1 + t is at least 2^-23


def _gaussian_tail(a: Array) -> Array:
    a = jnp.minimum(a, np.asarray(_TAIL_END, a.dtype))  # NaN stays NaN
    return _exp2(a * _horner(a, _LOG2_TAIL))


# 2^f - 1 over f for |f| <= 1/2, to a relative error of 2^f below 2e-7.
_EXP2 = (0.00132764153, 0.00967552854, 0.0555071332, 0.2402212, 0.693146967)
_TO_LOW_BITS = np.float32(1.5 * 2**23)  # x + this ends in the bits of round(x)
_ONE = np.int32(127 << 23)  # the bits of 1.0


def _exp2(x: Array) -> Array:
    """Returns 2^x in float32 for |x| < 126, cheaper than an exp of the whole range.

    Its exponent is read off the bits of a sum: a conversion to integers would also look
    for NaN and for numbers out of range.
    """
    fraction = x - jnp.round(x)
    whole = jax.lax.bitcast_convert_type(x + _TO_LOW_BITS, jnp.int32)
    scale = jax.lax.bitcast_convert_type((whole << np.int32(23)) + _ONE, jnp.float32)
    return scale * (1 + fraction * _horner(fraction, _EXP2))


# --- laplace --------------------------------------------------------------------------


def _laplace_cdf(x: Array) -> Array:
    x, xp, _ = _host_or_device(x)
    tail = 0.5 * xp.exp(-_SQRT2 * xp.abs(x))
    return xp.where(x < 0, tail, 1 - tail)


def _laplace_pdf(x: Array) -> Array:
    x, xp, _ = _host_or_device(x)
    return xp.exp(-_SQRT2 * xp.abs(x)) / _SQRT2


def _laplace_derivatives(z: Array, top: int) -> list[Array]:
    return [(-_SQRT2) ** j * _laplace_pdf(z) for j in range(top + 1)]


def _laplace_curvature(x: Array) -> Array:
    y = _SQRT2 * np.abs(x)
    series = np.ones_like(y)  # exp(-y) - 1 + y = y^2 / 2 (1 - y / 3 (1 - y / 4 (...)))
    for k in range(12, 2, -1):
        series = 1 - y * series / k
    return np.copysign(0.25 * y * y * series, -x)


def _laplace_quantile(p: Array) -> Array:
    p, xp, _ = _host_or_device(p)
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = -xp.log(2 * xp.minimum(p, 1 - p)) / _SQRT2
    return xp.where(p < 0.5, -magnitude, magnitude)


def _laplace_sample(t: Array) -> Array:
    magnitude = -jnp.log(1 - jnp.abs(t)) * (1 / _SQRT2)
    return jnp.where(t < 0, -magnitude, magnitude)


def _laplace_tail(a: Array) -> Array:
    return jnp.exp(-_SQRT2 * a)


# --- logistic -------------------------------------------------------------------------


def _logistic_cdf(x: Array) -> Array:
    x, _, special = _host_or_device(x)
    return special.expit(x / _LOGISTIC_SCALE)


def _logistic_pdf(x: Array) -> Array:
    x, _, special = _host_or_device(x)
    rise = special.expit(x / _LOGISTIC_SCALE)
    return rise * special.expit(-x / _LOGISTIC_SCALE) / _LOGISTIC_SCALE


def _logistic_derivatives(z: Array, top: int) -> list[Array]:
    # h = c S (1 - S), with the survival function S, S' = -h and c = pi / sqrt(3).
    density = np.polynomial.Polynomial([0, 1, -1]) / _LOGISTIC_SCALE
    survival, derivative, found = _logistic_cdf(-z), density, []
    for _ in range(top + 1):
        found.append(derivative(survival))
        derivative = -derivative.deriv() * density
    return found


def _logistic_quantile(p: Array) -> Array:
    p, _, special = _host_or_device(p)
    return _LOGISTIC_SCALE * special.logit(p)


def _logistic_sample(t: Array) -> Array:
    return _LOGISTIC_SCALE * (jnp.log(1 + t) - jnp.log(1 - t))


def _logistic_tail(a: Array) -> Array:
    return 2 / (1 + jnp.exp(a * (1 / _LOGISTIC_SCALE)))


# --- uniform --------------------------------------------------------------------------


def _uniform_cdf(x: Array) -> Array:
    x, xp, _ = _host_or_device(x)
    return xp.clip(0.5 + x / (2 * _SQRT3), 0.0, 1.0)


def _uniform_pdf(x: Array) -> Array:
    x, xp, _ = _host_or_device(x)
    return xp.where(xp.abs(x) <= _SQRT3, 0.5 / _SQRT3, xp.zeros_like(x))


def _uniform_derivatives(z: Array, top: int) -> list[Array]:
    return [_uniform_pdf(z), *[np.zeros(np.shape(z))] * top]


def _uniform_quantile(p: Array) -> Array:
    p, xp, _ = _host_or_device(p)
    return xp.where((p >= 0) & (p <= 1), _SQRT3 * (2 * p - 1), xp.nan)


def _uniform_sample(t: Array) -> Array:
    return _SQRT3 * t


def _uniform_tail(a: Array) -> Array:
    return jnp.maximum(1 - a * (1 / _SQRT3), 0)


GAUSSIAN = Law(
    "gaussian",
    cdf=_gaussian_cdf,
    pdf=_gaussian_pdf,
    quantile=_gaussian_quantile,
    sample=_gaussian_sample,
    tail=_gaussian_tail,
    bound=float("inf"),
    kinks=(),
    derivatives=_gaussian_derivatives,
)
LAPLACE = Law(
    "laplace",
    cdf=_laplace_cdf,
    pdf=_laplace_pdf,
    quantile=_laplace_quantile,
    sample=_laplace_sample,
    tail=_laplace_tail,
    bound=float("inf"),
    kinks=(0.0,),
    derivatives=_laplace_derivatives,
    curvature=_laplace_curvature,
)
LOGISTIC = Law(
    "logistic",
    cdf=_logistic_cdf,
    pdf=_logistic_pdf,
    quantile=_logistic_quantile,
    sample=_logistic_sample,
    tail=_logistic_tail,
    bound=float("inf"),
    kinks=(),
    derivatives=_logistic_derivatives,
)
UNIFORM = Law(
    "uniform",
    cdf=_uniform_cdf,
    pdf=_uniform_pdf,
    quantile=_uniform_quantile,
    sample=_uniform_sample,
    tail=_uniform_tail,
    bound=_SQRT3,
    kinks=(-_SQRT3, _SQRT3),
    derivatives=_uniform_derivatives,
    is_flat=True,
)

LAWS = {law.name: law for law in (GAUSSIAN, LAPLACE, LOGISTIC, UNIFORM)}
