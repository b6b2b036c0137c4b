"""Check arguments of `jaxmedian.theory`: worker values, noise, middle ranks.

Values are ``[M, ...]``, worker axis first, and are flattened to ``[M, C]``, float64;
results go back to the trailing shape, or to plain floats for ``[M]``. The scale of a
noise must be a number, or `jaxmedian.noise.relative`, which is resolved on the values
at hand. Nothing here knows any law.
"""

import math
import numbers
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxmedian.noise import Noise, PerCoordinate, Relative

Array = npt.NDArray[np.float64]
Result = Any  # a float for values [M], an array of the trailing shape for [M, ...]

EVEN_RULES = ("midpoint", "lower", "upper")


def worker_values(
    values: npt.ArrayLike, name: str = "values"
) -> tuple[Array, tuple[int, ...]]:
    """Returns values as [M, C] in float64, and their shape without the worker axis."""
    try:
        raw = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be a rectangular array [M, ...] with one row per worker; "
            f"got rows of different lengths."
        ) from error
    if raw.dtype.kind in "bcOSUmM":
        raise TypeError(
            f"`{name}` must hold real numbers, worker axis first; got {raw.dtype}."
        )
    if raw.ndim == 0 or raw.size == 0:
        raise ValueError(
            f"`{name}` must have the shape [M] or [M, coordinates] with at least one "
            f"worker and one coordinate; got {raw.shape}."
        )
    flat = raw.astype(np.float64).reshape(raw.shape[0], -1)
    if not np.isfinite(flat).all():
        raise ValueError(
            f"`{name}` must be finite; got {np.count_nonzero(~np.isfinite(flat))} NaN "
            "or infinite entries. Remove those workers or coordinates first."
        )
    return flat, raw.shape[1:]


def has_mean(u: Array) -> npt.NDArray[np.bool_]:
    """Returns where values [M, C] have a mean other than 0, beyond rounding."""
    rounding = 2 * len(u) * np.finfo(np.float64).eps
    return np.asarray(np.abs(u.mean(axis=0)) > rounding * np.abs(u).mean(axis=0))


def shaped(results: Any, shape: tuple[int, ...]) -> Result:
    """Gives results [C] the trailing shape of the values; a float for values [M]."""
    array = np.asarray(results, np.float64)
    return float(array.reshape(())) if shape == () else array.reshape(shape)


def check_noise(noise: object) -> Noise:
    """Returns the noise, or raises if it is anything else."""
    if not isinstance(noise, Noise):
        raise TypeError(
            "`noise` must be a description such as `jaxmedian.noise.gaussian(0.1)`; "
            f"got {noise!r}."
        )
    return noise


def check_not_relative(noise: object, why: str) -> None:
    """Raises if b follows the gradients, saying why it must not."""
    if isinstance(check_noise(noise).scale, Relative):
        raise ValueError(
            f"`noise.scale` must be a number here: {why}. Give the b that it comes to."
        )


def scale_of(noise: object, values: Array) -> float:
    """Returns b as a float; a relative scale is resolved on the values [M, C]."""
    scale = check_noise(noise).scale
    if isinstance(scale, Relative):
        largest = np.abs(values).max(axis=1)
        summary = np.max if scale.statistic == "max" else np.median
        return _number("factor", scale.factor) * float(summary(largest))
    if isinstance(scale, PerCoordinate):
        raise TypeError(
            "`noise.scale` is one b per coordinate, and `jaxmedian.theory` takes one. "
            "Call it coordinate by coordinate with a number (for "
            "`jaxmedian.noise.unbiased`: `unbiased_scale(values, mean_only=True)`)."
        )
    return _number("scale", scale)


def _number(name: str, value: Any) -> float:
    if callable(value):
        raise TypeError(
            f"`noise.{name}` is a schedule, and `jaxmedian.theory` needs a number. "
            "Evaluate it at a step: `noise.gaussian(schedule(step))`."
        )
    try:
        number = float(value)
    except TypeError as error:
        raise TypeError(
            f"`noise.{name}` must be a concrete number; got {value!r}. Call "
            "`jaxmedian.theory` outside `jax.jit`, with a plain float."
        ) from error
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"`noise.{name}` must be finite and >= 0; got {number!r}.")
    return number


def middle_ranks(num_workers: int, even: str) -> tuple[int, ...]:
    """Returns the ranks, from 1, whose average is the median of that many workers."""
    if even not in EVEN_RULES:
        raise ValueError(
            f"`even` must be one of {', '.join(EVEN_RULES)}; got {even!r}."
        )
    half = num_workers // 2
    if num_workers % 2:
        return (half + 1,)
    return {"midpoint": (half, half + 1), "lower": (half,), "upper": (half + 1,)}[even]


def positive_integer(name: str, value: object) -> int:
    """Returns value as an int, or raises unless it is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral | np.integer):
        raise TypeError(f"`{name}` must be an integer >= 1; got {value!r}.")
    if value < 1:
        raise ValueError(f"`{name}` must be an integer >= 1; got {value!r}.")
    return int(value)


def real_number(name: str, value: object, positive: bool = False) -> float:
    """Returns value as a float, or raises unless it is finite and >= 0 (or > 0)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number; got {value!r}.")
    number = float(value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        sign = ">" if positive else ">="
        raise ValueError(f"`{name}` must be finite and {sign} 0; got {value!r}.")
    return number


def choice(name: str, value: object, options: tuple[str, ...]) -> str:
    """Returns value, or raises unless it is one of the options."""
    if value not in options:
        raise ValueError(
            f"`{name}` must be one of {', '.join(options)}; got {value!r}."
        )
    return str(value)


def standardised(lengths: Array, scale: float) -> Array:
    """Divides by b; a worker too far away for a float64 is infinitely far."""
    with np.errstate(over="ignore"):
        return lengths / scale
