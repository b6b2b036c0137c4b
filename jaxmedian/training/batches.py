"""Batches drawn inside jit: what `run` calls ``next_batch``.

Worker data are trees of arrays ``[M, n, ...]``, n samples for each of M workers. Both
factories return functions that carry their data as arguments of the compiled program
(a `jax.tree_util.Partial`), not as constants inside it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxmedian.noise import keys
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.gradients import count_in_batch


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
    worker_data: Any,
    batch_size: int,
    *,
    replace: bool = False,
    sizes: npt.ArrayLike | None = None,
) -> jax.tree_util.Partial:
    """Serves every worker a random sub-sample of its own data in every step.

    Worker i draws with ``fold_in(key, i)`` of the step's key, independently of the
    others and of the past.

    Args:
      worker_data: tree of arrays ``[M, n, ...]``, the same n in each.
      batch_size: samples a worker and step, 1 to n (any number with ``replace``).
      replace: draw with replacement.
      sizes: integers ``[M]``, how many samples each worker holds; what lies behind them
        in its row is padding and is never drawn (``split.sizes`` with data taken by
        ``split.indices``). None: all n are samples. A worker of size 0 is served
        padding: leave it out of the step with ``worker_mask``. Traced sizes are not
        checked.

    Returns:
      ``next_batch(key, step)`` for `jaxmedian.run`; leaves ``[M, batch_size, ...]``.

    Raises:
      TypeError, ValueError: for a bad batch size or bad sizes, or if the leaves
        disagree on M or n.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> data = jnp.arange(12).reshape(3, 4)
    >>> jm.mini_batches(data, 2)(key=jax.random.key(0), step=0).shape
    (3, 2)
    """
    num_workers = count_in_batch(worker_data)
    check_count("batch_size", batch_size)
    lengths = {jnp.shape(leaf)[1:2] for leaf in jax.tree.leaves(worker_data)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            "`worker_data` must have a sample axis of the same length in each leaf, "
            f"[M, n, ...]; got {sorted(lengths)} behind the worker axis."
        )
    ((num_samples,),) = lengths
    least = _least_size(sizes, num_workers, num_samples)
    if batch_size > least and not (replace and least):
        raise ValueError(
            f"`batch_size` {batch_size} is more than the {least} samples of a worker: "
            "take fewer, or `replace=True`."
        )
    draw = functools.partial(_serve_some, num_samples, batch_size, replace)
    counts = None if sizes is None else jnp.asarray(sizes, jnp.int32)
    return jax.tree_util.Partial(draw, worker_data, counts)


def _least_size(sizes: npt.ArrayLike | None, num_workers: int, num_samples: int) -> int:
    """Returns the size of the smallest worker that is not empty, after checking."""
    if sizes is None or isinstance(sizes, jax.core.Tracer):
        return num_samples
    held = np.asarray(sizes)
    if held.dtype.kind not in "iu":
        raise TypeError(f"`sizes` must hold integers; got dtype {held.dtype}.")
    if held.shape != (num_workers,) or held.min() < 0 or held.max() > num_samples:
        raise ValueError(
            f"`sizes` must hold {num_workers} numbers from 0 to {num_samples}, one a "
            f"worker; got {sizes!r}."
        )
    return int(held[held > 0].min()) if held.any() else 0


def _serve_some(
    num_samples: int,
    batch_size: int,
    replace: bool,
    worker_data: Any,
    sizes: jax.Array | None,
    key: jax.Array,
    step: jax.Array,
) -> Any:
    del step

    def pick(number: jax.Array, size: jax.Array | int) -> jax.Array:
        worker_key = jax.random.fold_in(key, number)
        if replace:
            return jax.random.randint(worker_key, (batch_size,), 0, size)
        if sizes is None:
            return jax.random.permutation(worker_key, num_samples)[:batch_size]
        # The samples with the smallest of n random words; padding comes last.
        words = jax.random.uniform(worker_key, (num_samples,))
        is_padding = jnp.arange(num_samples) >= size
        return jnp.argsort(jnp.where(is_padding, jnp.float32(2), words))[:batch_size]

    numbers = jnp.arange(count_in_batch(worker_data), dtype=jnp.uint32)
    counts = jnp.full(numbers.shape, num_samples) if sizes is None else sizes
    picked = jax.vmap(pick)(numbers, counts)
    return jax.tree.map(lambda leaf: _take_each(leaf, picked), worker_data)


def _take_each(leaf: Any, picked: jax.Array) -> jax.Array:
    """Takes samples ``picked [M, batch]`` of ``leaf [M, n, ...]``, worker by worker."""
    return jax.vmap(lambda samples, indices: samples[indices])(
        jnp.asarray(leaf), picked
    )


# Folded into the key, which may be that of the batches: workers' numbers end before.


def participants(
    key: keys.Key,
    step: jax.Array | int,
    num_workers: int,
    count: int | float,
    *,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Draws who takes part in a step: exactly ``count`` workers, all sets as likely.

    The draws of different steps are independent. What is drawn is a ``worker_mask``, an
    extra argument of every aggregator:

        step(params, opt_state, batch, worker_mask=jm.participants(key, i, M, 10))

    and in a run, whose function of extra arguments gets the key of each step,

        jm.run(..., extra_args=lambda key, step: {
            "worker_mask": jm.participants(key, step, M, 10)})

    Args:
      key: a typed key, a legacy key or an int. The mask is that of the ranks below
        ``count`` in ``random.permutation(fold_in(fold_in(key, branch), step), M)`` for
        the branch `noise.keys.PARTICIPANTS`.
      step: number of the step, may be traced.
      num_workers: M, over all devices.
      count: how many take part, 1 to M; or a fraction of M, a float in (0, 1], rounded
        to a whole number, at least 1.
      axis_name: mesh axis over which workers are spread, to get this device's block of
        the mask inside `jax.shard_map`. `jaxmedian.sharding.shard_step` cuts the whole
        mask by itself.

    Returns:
      bool ``[M]``; with ``axis_name`` the local block ``[M / D]``.

    Raises:
      TypeError, ValueError: for a bad key or number; if the devices cannot share the
        workers evenly.

    >>> import jaxmedian as jm
    >>> masks = [jm.participants(0, step, 5, 2) for step in range(3)]
    >>> [(mask.shape, int(mask.sum())) for mask in masks]
    [((5,), 2), ((5,), 2), ((5,), 2)]
    """
    check_count("num_workers", num_workers)
    number = _number(count, num_workers)
    rng_key = jax.random.fold_in(keys.as_threefry_key(key), keys.PARTICIPANTS)
    ranks = jax.random.permutation(jax.random.fold_in(rng_key, step), num_workers)
    mask = ranks < number
    num_devices = collectives.size(axis_name)
    if num_workers % num_devices:
        raise ValueError(
            f"{num_devices} devices cannot share {num_workers} workers evenly: "
            "`num_workers` is their number over all devices."
        )
    return collectives.own_block(mask, axis_name)


def _number(count: int | float, num_workers: int) -> int:
    if isinstance(count, float | np.floating):
        if not 0 < count <= 1:
            raise ValueError(
                f"`count` must be a fraction in (0, 1] or an int; got {count!r}."
            )
        return max(1, round(float(count) * num_workers))
    check_count("count", count)
    if count > num_workers:
        raise ValueError(f"`count` must be at most {num_workers} here; got {count}.")
    return int(count)
