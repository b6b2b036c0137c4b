"""Weights of workers: what they may be, and the type that holds their sums.

A worker of weight w counts as w workers: as often in a vote or a median, as much in a
mean. Integers stay integers, so that votes by weight are exact.
"""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

_LEAST = 1e-15  # weight, beside 0, whose products with gradients float32 holds


def check_weights(
    transform: str, worker_weights: Any, num_local: int, num_workers: int
) -> jax.Array:
    """Returns the weights of this device in a type that holds their sums.

    float32 or float64; int32 if twice their sum over all workers fits, and uint32 where
    it may not (int64 under `jax_enable_x64`).

    Raises:
      TypeError: if they are no numbers. ValueError: for another shape; for values that
        are known and negative, not finite, 0 in sum, or beyond what the type holds.
    """
    parts = jax.tree.leaves(worker_weights)
    if any(isinstance(part, jax.core.Tracer) for part in parts):
        worker_weights = jnp.asarray(worker_weights)  # of a list, under jit
    known = None
    if not isinstance(worker_weights, jax.core.Tracer):
        known = np.asarray(worker_weights)  # jnp.asarray would wrap what is too long
    dtype = worker_weights.dtype if known is None else known.dtype
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.floating)):
        raise TypeError(
            f"`{transform}` expects `worker_weights` of numbers; got {dtype}. A choice "
            "of workers is a `worker_mask`."
        )
    if np.shape(worker_weights) != (num_local,):
        raise ValueError(
            f"`{transform}` expects `worker_weights` "
            f"{one_each(num_local, num_workers)}; got {np.shape(worker_weights)}."
        )
    if known is not None:
        _check_known_weights(transform, known, num_workers)
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(worker_weights, _float_of(dtype))
    if jax.dtypes.canonicalize_dtype(np.int64) == np.int64:
        return jnp.asarray(worker_weights).astype(jnp.int64)
    largest = int(jnp.iinfo(dtype).max)
    if known is not None:
        worker_weights = known.astype(np.uint32)
        largest = int(known.max()) if num_local == num_workers else largest
    weights = jnp.asarray(worker_weights)
    if 2 * largest * num_workers < 2**31:
        return weights.astype(jnp.int32)
    return jnp.maximum(weights, 0).astype(jnp.uint32)


def _check_known_weights(transform: str, known: np.ndarray, num_workers: int) -> None:
    finite = known.astype(np.float64)
    if not (np.isfinite(finite).all() and (finite >= 0).all() and finite.sum() > 0):
        raise ValueError(
            f"`{transform}` expects finite `worker_weights` >= 0 that do not sum to 0; "
            f"got {known.tolist()}."
        )
    weighty = finite[finite > 0]
    is_single = known.dtype.kind not in "iu" and _float_of(known.dtype) == np.float32
    if is_single and not (weighty.min() >= _LEAST and weighty.max() <= 1 / _LEAST):
        raise ValueError(
            f"`{transform}` expects `worker_weights` that are 0 or from 1e-15 to 1e15, "
            "beyond which products with gradients overflow or vanish in float32; got "
            f"{known.tolist()}. Divide them by a common factor."
        )
    if known.dtype.kind not in "iu":
        return
    is_long = jax.dtypes.canonicalize_dtype(np.int64) == np.int64
    if not is_long and known.max() >= 2**32:
        raise ValueError(
            f"`{transform}` was given a weight of {known.max()} in `worker_weights`, "
            "which 32 bits do not hold. Pass them as float32, divide them by a common "
            "factor, or set `jax_enable_x64`."
        )
    if 2 * num_workers * int(known.max()) >= 2**63:  # what counts add up at most
        raise ValueError(
            f"`{transform}` was given a weight of {known.max()} in `worker_weights`: "
            f"64 bits do not hold twice the sum of {num_workers} such. Pass them as "
            "float64, or divide them by a common factor."
        )


def _float_of(dtype: Any) -> Any:
    """Returns the type that float weights are held in: float64 where JAX has it."""
    is_double = dtype == np.float64 and jax.dtypes.canonicalize_dtype(dtype) == dtype
    return np.float64 if is_double else np.float32


def refuse_weights(transform: str) -> NoReturn:
    """Raises ValueError for a transform that knows no weights and was given some."""
    raise ValueError(
        f"`{transform}` takes no `worker_weights`: `worker_mean`, `majority_vote`, "
        "`mean_of_signs`, `coordinate_median`, `trimmed_mean` and `geometric_median` "
        "do."
    )


def one_each(num_local: int, num_workers: int) -> str:
    """Says what shape a mask or weights have, for messages."""
    here = "" if num_local == num_workers else f" on a device, of {num_workers}"
    return f"of shape ({num_local},), one entry a worker{here}"
