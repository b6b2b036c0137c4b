"""Batches drawn inside jit: what `run` calls ``next_batch``.

Worker data are trees of arrays ``[M, n, ...]``, n samples for each of M workers. The
factories return functions that carry their data as arguments of the compiled program
(a `jax.tree_util.Partial`), not as constants inside it; made again with equal settings
they are equal, and compile no second time. A draw takes the same time for any n: which
samples it takes is computed in `jaxmedian.training.bijections`.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxmedian.noise import keys
from jaxmedian.training import bijections
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import check_count, check_option
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.gradients import count_in_batch


def full_batch(worker_data: PyTree) -> jax.tree_util.Partial:
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
    return jax.tree_util.Partial(Server(), worker_data, None, None)


def mini_batches(
    worker_data: PyTree,
    batch_size: int,
    *,
    replace: bool = False,
    sizes: npt.ArrayLike | None = None,
) -> jax.tree_util.Partial:
    """Serves every worker a random sub-sample of its own data in every step.

    Workers draw independently of each other and of the past, by the step's key: worker
    i with ``fold_in(fold_in(key, noise.keys.BATCHES), i)``. The time of a draw depends
    on the batch alone, not on n. To see each sample once per epoch, see `epochs`.

    Args:
      worker_data: tree of arrays ``[M, n, ...]``, the same n <= 2^31 in each.
      batch_size: samples per worker and step, 1 to n (any number with ``replace``).
      replace: draw with replacement.
      sizes: integers ``[M]``, how many samples each worker holds; what follows them in
        its row is padding and is never drawn (``split.sizes`` with data taken by
        ``split.indices``). None: all n are samples. A worker of size 0 is served
        padding: leave it out of the step with ``worker_mask``. Traced sizes are not
        checked; a worker with fewer samples than a batch then repeats them.

    Returns:
      ``next_batch(key, step)`` for `jaxmedian.run`; leaves ``[M, batch_size, ...]``.

    Raises:
      TypeError, ValueError: for a bad batch size or bad sizes, or if the leaves
        disagree on M or n.

    Reference: without replacement, the first places of a keyed shuffle of 0 to n - 1:
    Hoang, Morris & Rogaway, "An enciphering scheme based on a card shuffle", 2012.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> data = jnp.arange(12).reshape(3, 4)
    >>> jm.mini_batches(data, 2)(key=jax.random.key(0), step=0).shape
    (3, 2)
    """
    check_count("batch_size", batch_size)
    least = _least_size(worker_data, sizes)
    if least == 0:
        raise ValueError(
            "No worker has samples to draw from: see `worker_data` and `sizes`."
        )
    if batch_size > least and not replace:
        raise ValueError(
            f"`batch_size` {batch_size} is more than the {least} samples of a worker: "
            "take fewer, or `replace=True`."
        )
    draw = bijections.with_replacement if replace else bijections.without_replacement
    server = Server(draw, int(batch_size))
    return jax.tree_util.Partial(server, worker_data, _as_counts(sizes), None)


def epochs(
    worker_data: PyTree,
    batch_size: int,
    key: keys.Key,
    *,
    sizes: npt.ArrayLike | None = None,
    remainder: Literal["keep", "drop"] = "keep",
) -> jax.tree_util.Partial:
    """Serves every worker its own data epoch by epoch, in a fresh order each epoch.

    Nothing is kept from step to step: a batch is a function of ``key`` and the number
    of the step, so a resumed run goes on where it was. Worker i's order in epoch e is
    that of ``fold_in(fold_in(fold_in(key, noise.keys.EPOCHS), i), e)``; orders of
    different workers and epochs are independent. Workers of unequal size have epochs of
    their own length, and start new ones in different steps.

    Args:
      worker_data: tree of arrays ``[M, n, ...]``, the same n <= 2^31 in each.
      batch_size: samples per worker and step; with ``remainder="drop"`` at most the
        size of the smallest worker.
      key: of the orders: a typed key, a legacy key or an int. The key that a run gives
        to ``next_batch`` is not used.
      sizes: as in `mini_batches`: integers ``[M]``; None: all n are samples.
      remainder: what happens to the last n mod ``batch_size`` samples of an epoch.
        "keep": the batch goes on with the first samples of the next epoch's order, so
        each sample is served exactly once per epoch (and may be twice in the batch that
        holds both ends). "drop": they are left out in this epoch, which has
        n // ``batch_size`` batches, none with a sample twice.

    Returns:
      ``next_batch(key, step)`` for `jaxmedian.run`, steps from 0 to 2^31 - 1, may be
      traced; leaves ``[M, batch_size, ...]``.

    Raises:
      TypeError, ValueError: for a bad batch size, key, option or bad sizes, or if the
        leaves disagree on M or n.

    Reference: epochs in shuffled order take fewer steps than draws with replacement to
    the same loss (Mishchenko, Khaled & Richtarik, "Random reshuffling: simple analysis
    with vast improvements", NeurIPS 2020).

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> next_batch = jm.epochs(jnp.arange(6).reshape(1, 6), 2, key=0)
    >>> epoch = [next_batch(key=None, step=step).tolist()[0] for step in range(3)]
    >>> sorted(sample for batch in epoch for sample in batch)
    [0, 1, 2, 3, 4, 5]
    """
    check_count("batch_size", batch_size)
    check_option("remainder", remainder, ("keep", "drop"))
    least = _least_size(worker_data, sizes)
    if least == 0:
        raise ValueError("`sizes` leave no worker a sample: nothing can be served.")
    if remainder == "drop" and batch_size > least:
        raise ValueError(
            f"`batch_size` {batch_size} is more than the {least} samples of a worker, "
            'whose epochs would have no batch: take fewer, or `remainder="keep"`.'
        )
    draw = (
        bijections.epochs_with_remainder
        if remainder == "keep"
        else bijections.epochs_without_remainder
    )
    server, own_key = Server(draw, int(batch_size)), keys.as_threefry_key(key)
    return jax.tree_util.Partial(server, worker_data, _as_counts(sizes), own_key)


@dataclasses.dataclass(frozen=True)
class Server:
    """Serves the samples that are drawn, or all; ``own_key`` replaces the key of a run.

    Its data are arguments, ``(worker_data, sizes, own_key)``; of the first two a device
    of a mesh may hold its own workers alone.

    Attributes:
      draw: of indices; None to serve the data as they are.
      batch_size: samples per worker and step.
      axis_name: mesh axis over which the workers of the data are spread, or None.
    """

    draw: bijections.IndexDraw | None = None
    batch_size: int = 0
    axis_name: AxisName | None = None

    def __call__(
        self,
        worker_data: PyTree,
        sizes: jax.Array | None,
        own_key: jax.Array | None,
        key: jax.Array,
        step: jax.Array | int,
    ) -> PyTree:
        """Serves the batch of a step."""
        if self.draw is None:
            return worker_data
        used_key = keys.as_threefry_key(key if own_key is None else own_key)
        return _serve(self, worker_data, sizes, used_key, step)

    def spread(self, axis_name: AxisName) -> "Server":
        """Returns the server of one device's workers inside `jax.shard_map`."""
        return dataclasses.replace(self, axis_name=axis_name)


@dataclasses.dataclass(frozen=True)
class Queue(Server):
    """Serves whole batches in turn; the data are ``((batch, ...), None, first)``.

    The batch of step ``first`` is the first, and behind the last one comes the last.
    """

    def __call__(
        self,
        worker_data: PyTree,
        sizes: jax.Array | None,
        own_key: Any,
        key: jax.Array,
        step: jax.Array | int,
    ) -> PyTree:
        """Serves the batch of a step."""
        batches, first = worker_data, own_key
        if len(batches) == 1:
            return batches[0]
        give = [functools.partial(lambda batch: batch, batch) for batch in batches]
        return jax.lax.switch(jnp.asarray(step) - first, give)


@functools.partial(jax.jit, static_argnums=0)  # compiled once outside of jit too
def _serve(
    server: Server,
    worker_data: PyTree,
    sizes: jax.Array | None,
    key: jax.Array,
    step: jax.Array | int,
) -> PyTree:
    num_local, num_samples = jnp.shape(jax.tree.leaves(worker_data)[0])[:2]
    first = collectives.position(server.axis_name) * np.uint32(num_local)
    numbers = first + jnp.arange(num_local, dtype=jnp.uint32)
    if sizes is None:
        sizes = jnp.full(numbers.shape, num_samples, jnp.uint32)
    assert server.draw is not None
    indices = server.draw(key, step, sizes, server.batch_size, numbers)
    return jax.tree.map(lambda leaf: _take_each(leaf, indices), worker_data)


def _take_each(leaf: jax.Array, indices: jax.Array) -> jax.Array:
    """Takes samples ``indices [M, batch]`` of ``leaf [M, n, ...]`` per worker.

    The worker axis stays an axis of the gather: no flat index, which 32 bits would not
    hold for large leaves, is computed.
    """

    def taken(samples: jax.Array, own: jax.Array) -> jax.Array:
        return jnp.take(samples, own, axis=0, mode="clip")

    return jax.vmap(taken)(leaf, indices)


def _as_counts(sizes: npt.ArrayLike | None) -> jax.Array | None:
    return None if sizes is None else jnp.array(sizes, jnp.uint32)


def _least_size(worker_data: PyTree, sizes: npt.ArrayLike | None) -> int:
    """Returns the size of the smallest worker that is not empty, after checking."""
    num_workers = count_in_batch(worker_data)
    lengths = {jnp.shape(leaf)[1:2] for leaf in jax.tree.leaves(worker_data)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            "`worker_data` must have a sample axis of the same length in each leaf, "
            f"[M, n, ...]; got {sorted(lengths)} after the worker axis."
        )
    ((num_samples,),) = lengths
    if num_samples > 2**31:
        raise ValueError(
            "`worker_data` may have at most 2^31 samples per worker; got "
            f"{num_samples}."
        )
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
