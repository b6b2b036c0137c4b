"""Batches drawn inside jit: what `run` calls ``next_batch``.

Worker data are trees of arrays ``[M, n, ...]``, n samples for each of M workers. Both
factories return functions that carry their data as arguments of the compiled program
(a `jax.tree_util.Partial`), not as constants inside it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxmedian.worker_gradients import check_count, count_in_batch


def full_batch(worker_data: Any) -> jax.tree_util.Partial:
    """Serves every worker all its data in every step.

    Args:
      worker_data: tree of arrays ``[M, ...]``, served as they are.

    Returns:
      ``next_batch(key, step)`` for `jaxmedian.run`.

    Raises:
      ValueError: if the leaves disagree on M.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> jm.full_batch(jnp.ones((3, 5)))(key=None, step=0).shape
    (3, 5)
    """
    count_in_batch(worker_data)
    return jax.tree_util.Partial(_serve_all, worker_data)


def _serve_all(worker_data: Any, key: jax.Array, step: jax.Array) -> Any:
    del key, step
    return worker_data


def mini_batches(
    worker_data: Any, batch_size: int, *, replace: bool = False
) -> jax.tree_util.Partial:
    """Serves every worker a random sub-sample of its own data in every step.

    Worker i draws with ``fold_in(key, i)`` of the step's key, independently of the
    others and of the past.

    Args:
      worker_data: tree of arrays ``[M, n, ...]``, the same n in each.
      batch_size: samples a worker and step, 1 to n (any number with ``replace``).
      replace: draw with replacement.

    Returns:
      ``next_batch(key, step)`` for `jaxmedian.run`; leaves ``[M, batch_size, ...]``.

    Raises:
      TypeError, ValueError: for a bad batch size, or if the leaves disagree on M or n.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> data = jnp.arange(12).reshape(3, 4)
    >>> jm.mini_batches(data, 2)(key=jax.random.key(0), step=0).shape
    (3, 2)
    """
    num_workers = count_in_batch(worker_data)
    check_count("batch_size", batch_size)
    sizes = {jnp.shape(leaf)[1:2] for leaf in jax.tree.leaves(worker_data)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "`worker_data` must have a sample axis of the same length in each leaf, "
            f"[M, n, ...]; got {sorted(sizes)} behind the worker axis."
        )
    ((num_samples,),) = sizes
    if batch_size > num_samples and not replace:
        raise ValueError(
            f"`batch_size` {batch_size} is more than the {num_samples} samples of a "
            "worker: take fewer, or `replace=True`."
        )
    draw = functools.partial(_serve_some, num_workers, num_samples, batch_size, replace)
    return jax.tree_util.Partial(draw, worker_data)


def _serve_some(
    num_workers: int,
    num_samples: int,
    batch_size: int,
    replace: bool,
    worker_data: Any,
    key: jax.Array,
    step: jax.Array,
) -> Any:
    del step

    def pick(number: jax.Array) -> jax.Array:
        worker_key = jax.random.fold_in(key, number)
        if replace:
            return jax.random.randint(worker_key, (batch_size,), 0, num_samples)
        return jax.random.permutation(worker_key, num_samples)[:batch_size]

    picked = jax.vmap(pick)(jnp.arange(num_workers, dtype=jnp.uint32))
    return jax.tree.map(lambda leaf: _take_each(leaf, picked), worker_data)


def _take_each(leaf: Any, picked: jax.Array) -> jax.Array:
    """Takes samples ``picked [M, batch]`` of ``leaf [M, n, ...]``, worker by worker."""
    return jax.vmap(lambda samples, indices: samples[indices])(
        jnp.asarray(leaf), picked
    )
