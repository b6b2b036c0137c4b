"""Checks of arguments that many transforms take: numbers, options, extra arguments."""

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def check_f(rule: str, f: object) -> int:
    """Returns f as an int.

    Raises:
      TypeError: if it is no int. ValueError: if it is negative.
    """
    if isinstance(f, bool) or not isinstance(f, int | np.integer):
        raise TypeError(
            f"`{rule}` expects `f`, the number of hostile workers to withstand, as an "
            f"int; got {f!r}.{static_hint('f', f)}"
        )
    if f < 0:
        raise ValueError(f"`{rule}`: `f` must be >= 0; got {f}.")
    return int(f)


def check_minority(rule: str, f: int, num_workers: int) -> None:
    """Raises ValueError unless f is a minority of the workers."""
    if 2 * f >= num_workers:
        most = (num_workers - 1) // 2
        raise ValueError(
            f"`{rule}` withstands a minority: `f` is {f} of {num_workers} workers. "
            f"Take f <= {most}, or more workers."
        )


def check_radius(name: str, value: Any) -> Any:
    """Returns a number > 0, or a traced scalar as it is.

    Raises:
      TypeError: if it is neither. ValueError: if it is not finite and > 0.
    """
    if _is_known(name, value) and not (np.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be finite and > 0; got {value!r}.")
    return value


def check_decay(name: str, value: Any) -> Any:
    """Returns a number in [0, 1), or a traced scalar as it is.

    Raises:
      TypeError: if it is neither. ValueError: if it is not in [0, 1).
    """
    if _is_known(name, value) and not 0 <= value < 1:
        raise ValueError(
            f"`{name}` must be in [0, 1): the share of the momentum that stays; got "
            f"{value!r}."
        )
    return value


def _is_known(name: str, value: Any) -> bool:
    """Returns whether it is a number, and no traced scalar; raises if neither."""
    if hasattr(value, "aval") and np.shape(value) == ():
        return False
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(
            f"`{name}` must be a number or a scalar JAX array; got {value!r}."
        )
    return True


def static_hint(name: str, value: object) -> str:
    """Returns what to do if an argument arrived as an array, or nothing."""
    if not isinstance(value, jax.Array):
        return ""
    return (
        " It must be known before tracing: under `optax.inject_hyperparams` pass "
        f'`static_args=("{name}",)`.'
    )


def as_transform(name: str, value: object) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation, which then takes extra arguments.

    Raises:
      TypeError: for anything else.
    """
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(
            f"`{name}` must be an optax gradient transformation; got {value!r}."
        )
    return optax.with_extra_args_support(value)


def check_params(caller: str, params: optax.Params) -> None:
    """Raises TypeError unless parameters are a tree of arrays and numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_number = isinstance(leaf, int | float | complex)
        if not is_number and not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            place = f"`params{jax.tree_util.keystr(path)}`"
            raise TypeError(
                f"`{caller}` expects `params` as a tree of arrays; {place} is of type "
                f"{type(leaf).__name__}. {OF_A_MODEL}"
            )


def check_differentiable(params: optax.Params) -> None:
    """Raises TypeError for a leaf of integers, booleans or keys: it has no gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = getattr(leaf, "dtype", type(leaf))
        if not jnp.issubdtype(kind, jnp.inexact):
            raise TypeError(
                f"`params{jax.tree_util.keystr(path)}` is {kind}, which has no "
                "gradient. Make it floating point, or keep it out of `params`, in the "
                f"loss or in a model's state. {OF_A_MODEL}"
            )


def check_option(name: str, value: object, options: tuple[str, ...]) -> None:
    """Raises ValueError unless ``value`` is one of the options."""
    if value not in options:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, options))}; got {value!r}."
        )


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raises unless ``value`` is an int >= ``least`` that 32 bits hold."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        hint = static_hint(name, value)
        raise TypeError(f"`{name}` must be an int; got {value!r}.{hint}")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}; got {value}.")
    if value >= 2**31:
        raise ValueError(f"`{name}` must be below 2^31; got {value}.")


# What `params` should be instead of a model object.
OF_A_MODEL = (
    "Of a model object pass the arrays that are trained, and build the model from them "
    'in the loss: Flax Linen `model.init(...)["params"]`, Flax NNX `nnx.split(model, '
    "nnx.Param, ...)`, Equinox `eqx.partition(model, eqx.is_inexact_array)`."
)
OUR_EXTRA_ARGS = ("worker_mask", "worker_weights")
_NEAR_MISSES = {
    "mask": "worker_mask",
    "present": "worker_mask",
    "participants": "worker_mask",
    "weights": "worker_weights",
    "sample_weights": "worker_weights",
}


def check_extra_args(transform: str, extra_args: Mapping[str, object]) -> None:
    """Raises TypeError for an extra argument that is almost one of ours.

    Extra arguments travel through a whole chain, and optax drops those that nobody
    knows: a misspelt mask would be ignored.
    """
    for name in extra_args:
        close = difflib.get_close_matches(name, OUR_EXTRA_ARGS, n=1, cutoff=0.8)
        meant = _NEAR_MISSES.get(name, close[0] if close else None)
        if meant is not None and name not in OUR_EXTRA_ARGS:
            raise TypeError(
                f"`{transform}` was given an extra argument `{name}`, which it does "
                f"not read. Did you mean `{meant}`? If another transform of the chain "
                "reads it, rename it there: a misspelt mask would be lost."
            )
