"""Median and vote of plain arrays, without optax: estimate a mean through a median.

The same kernels as `jaxmedian.coordinate_median` and `jaxmedian.majority_vote`, for
an array with the workers along any axis. They do not know trees, steps or meshes.
Outside jit they are compiled once per shape and setting, whatever key and scale.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmedian.kernels.ballots import TieRule
from jaxmedian.kernels.selection import EvenRule
from jaxmedian.noise import Noise, keys
from jaxmedian.transforms.draws import check_key, check_noise, keeps_state
from jaxmedian.transforms.median import coordinate_median
from jaxmedian.transforms.vote import majority_vote
from jaxmedian.workers.population import population_of

Axis = int | Sequence[int] | None


def median(
    x: jax.Array,
    axis: Axis = 0,
    *,
    even: EvenRule = "midpoint",
    mask: jax.Array | None = None,
) -> jax.Array:
    """Computes the median along an axis: `jnp.median`, many times faster for few rows.

    Args:
      x: floating point, any shape.
      axis: the axis to remove, several of them, or None for all; fastest if it is the
        first alone.
      even: "midpoint" (NumPy's), "lower" or "upper", for an even count.
      mask: bool ``[x.shape[axis]]`` (of several axes, their shape); entries where it is
        False do not count.

    Returns:
      The shape of x without the axis, in its dtype. NaN counts as +inf, where NumPy
      returns NaN. With nothing left by the mask the median is 0. Its derivative is that
      of the selected entry (of the middle two, a half each); tied entries share it
      equally.

    Raises:
      ValueError: for a bad axis, option or mask. TypeError: if x is not floating point.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> jm.median(jnp.array([3., 1., 2., 10.])).item()
    2.5
    """
    coordinate_median(even=even)  # checks the option
    return _aggregate("median", x, axis, mask, even)


def vote(
    x: jax.Array,
    axis: Axis = 0,
    *,
    ties: TieRule = "zero",
    key: keys.Key | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Computes the majority vote of signs along an axis.

    Args:
      x: floating point, any shape.
      axis: the axis to remove, several of them, or None for all; fastest if it is the
        first alone.
      ties: "zero", "random" or "positive"; see `jaxmedian.majority_vote`.
      key: for ``ties="random"``, refused otherwise.
      mask: bool ``[x.shape[axis]]`` (of several axes, their shape); entries where it is
        False do not vote.

    Returns:
      -1, 0 or +1 in the dtype of x and its shape without the axis; its derivative by x
      is 0.

    Raises:
      ValueError: for a bad axis, option, key or mask. TypeError: if x is not floating
        point.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> jm.vote(jnp.array([[3., -1.], [1., -2.], [-8., 0.]])).tolist()
    [1.0, -1.0]
    """
    is_random = ties == "random"
    check_key("vote", None, key, random_ties=is_random, draws='`ties="random"`')
    majority_vote(key=key, ties=ties)  # checks the option
    return _aggregate("vote", x, axis, mask, ties, key=key)


def perturbed_median(
    x: jax.Array,
    noise: Noise,
    key: keys.Key,
    axis: Axis = 0,
    *,
    even: EvenRule = "midpoint",
) -> jax.Array:
    """Estimates the mean along an axis by the median after noise.

    Its expectation is the mean up to O(spread^3 / b^2) for noise of scale b, and its
    variance about b^2 pi / (2 M) for Gaussian noise. `jaxmedian.theory` has both
    exactly.

    Args:
      x: floating point, any shape.
      noise: law, scale and coupling; a schedule is taken at step 0.
      key: a typed key, a legacy key or an int. The draws are those of the first update
        of ``coordinate_median(noise, key)``: draw again with another key.
      axis: the axis to remove, several of them, or None for all.
      even: "midpoint", "lower" or "upper", for an even count.

    Returns:
      The shape of x without the axis, in its dtype. Its derivative by x is that of the
      selected entry, by the scale of the noise the xi of that entry.

    Raises:
      TypeError, ValueError: for a bad noise, key, axis or option, or if x is not
        floating point.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> x = jnp.array([1., 2., 10.])[:, None] * jnp.ones((1, 100_000))
    >>> estimate = jm.perturbed_median(x, jm.noise.gaussian(20.0), jax.random.key(0))
    >>> abs(estimate.mean().item() - 4.288) < 0.25  # the mean is 4.333, the median 2
    True
    """
    check_noise("perturbed_median", noise)
    check_key("perturbed_median", noise, key)
    coordinate_median(even=even)  # checks the option
    if keeps_state(noise):
        raise ValueError(
            '`perturbed_median` has no state, in which `per_coordinate(..., "rms")` '
            'keeps running mean squares: use "sd", "range" or "mad".'
        )
    return _aggregate("perturbed_median", x, axis, None, even, noise, key)


def _aggregate(
    name: str,
    x: Any,
    axis: Axis,
    mask: Any,
    option: Any,
    noise: Noise | None = None,
    key: keys.Key | None = None,
) -> jax.Array:
    """Runs the first update of an aggregator on one array."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` expects a floating-point array; got {x.dtype}. Pass "
            "`x.astype(jnp.float32)`."
        )
    axes = _as_axes(name, axis, x.shape)
    removed = [x.shape[i] for i in axes]
    rows = jnp.moveaxis(x, axes, range(len(axes)))
    rows = rows.reshape(math.prod(removed), *rows.shape[len(axes) :])
    if mask is not None and len(axes) != 1:
        mask = jnp.asarray(mask)
        if mask.shape != tuple(removed):
            raise ValueError(
                f"`{name}` expects a `mask` of shape {tuple(removed)}, that of axes "
                f"{axes}; got {mask.shape}."
            )
        mask = mask.reshape(-1)
    template = jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
    # Errors in this function's name
    population_of(name, rows, template, worker_mask=mask, mask_name="mask")
    rng_key = None if key is None else keys.as_threefry_key(key)
    scale, description = None, noise
    if noise is not None and isinstance(noise.scale, int | float | jax.Array):
        scale, description = noise.scale, dataclasses.replace(noise, scale=0.0)
    try:
        hash(description)
    except TypeError:  # an array inside the scale
        update = _first_update
    else:
        update = _compiled_first_update
    return update(name, option, description, scale, rng_key, rows, mask)


def _first_update(
    name: str,
    option: Any,
    noise: Noise | None,
    scale: jax.Array | float | None,
    rng_key: jax.Array | None,
    rows: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    """Aggregates rows ``[M, ...]``; a scale that is a number is an argument."""
    if noise is not None and scale is not None:
        noise = dataclasses.replace(noise, scale=jnp.asarray(scale))
    if name == "vote":
        aggregator = majority_vote(noise, rng_key, ties=option)
    else:
        aggregator = coordinate_median(noise, rng_key, even=option)
    template = jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
    state = aggregator.init(template)
    return aggregator.update(rows, state, template, worker_mask=mask)[0]


_compiled_first_update = jax.jit(_first_update, static_argnums=(0, 1, 2))


def _as_axes(name: str, axis: Axis, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes to remove, >= 0 and all different."""
    if axis is None:
        axis = range(len(shape))
    several = axis if isinstance(axis, Sequence) else [axis]
    try:
        if any(isinstance(i, bool) for i in several):
            raise TypeError
        given = [operator.index(i) for i in several]
    except TypeError:
        raise TypeError(
            f"`{name}` expects `axis` to be an int, several, or None for all; got "
            f"{axis!r}."
        ) from None
    axes = tuple(i % max(len(shape), 1) for i in given)
    in_range = all(-len(shape) <= i < len(shape) for i in given)
    if not axes or not in_range or len(set(axes)) != len(axes):
        raise ValueError(
            f"`{name}` was given `axis` {axis} for an array of shape {shape}."
        )
    return axes
