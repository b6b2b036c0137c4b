"""Loops over blocks of workers whose bits do not depend on how many workers there are.

What a mesh promises (a run of ``worker_chunk=1`` ends with the same bits on any number
of devices) holds if the gradient of one worker is compiled to the same program beside
seven other workers and beside none. XLA treats a loop by its length: one turn is no
loop, whose body is fused with what follows; a few turns become one kernel. So it is not
told the length, nor that what the body reads is the same in every turn.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName


def fold_blocks(
    visit: Callable[[Any, jax.Array, Any], Any],
    start: Any,
    source: Any,
    num_workers: int,
    chunk: int,
    axis_name: AxisName | None,
) -> Any:
    """Visits the workers of this device in blocks, in order, and carries a total.

    Args:
      visit: the total, the number of the block (its workers begin at `first_of`) and
        ``source`` -> the total.
      start: the total before the first block.
      source: tree of arrays that every block reads: parameters, all workers' batches.
        What depends on the parameters alone is computed anew in each block: XLA would
        move it (a conversion to another type, say) out of the loop, into memory.
      num_workers: local workers, >= chunk.
      chunk: workers per block. With 1 there is no reverse-mode derivative.
      axis_name: mesh axis over which workers are spread, or None.
    """

    def turn(number: jax.Array, carry: Any) -> Any:
        total, source = carry
        source = jax.lax.optimization_barrier(source)
        total = collectives.vary(visit(total, number, source), axis_name)
        return total, source

    num_blocks: Any = math.ceil(num_workers / chunk)
    if chunk == 1:
        num_blocks = jax.lax.optimization_barrier(jnp.int32(num_workers))
    carry = jax.tree.map(jnp.asarray, (start, source))
    carry = collectives.vary(carry, axis_name)
    return jax.lax.fori_loop(0, num_blocks, turn, carry)[0]


def first_of(number: jax.Array, num_workers: int, chunk: int) -> jax.Array:
    """Returns the first worker of a block, int32.

    Where the chunk does not divide the number of workers, the last block overlaps the
    one before.
    """
    return jnp.minimum(number * chunk, num_workers - chunk)


def map_workers(
    of_worker: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    worker_chunk: int | None,
    axis_name: AxisName | None,
) -> Any:
    """Maps a function of parameters and one worker's batch over the local workers.

    Args:
      of_worker: parameters and the batch of one worker -> tree of arrays.
      params: parameters.
      batch: tree of leaves ``[m, ...]``.
      worker_chunk: workers computed at a time; None for all.
      axis_name: mesh axis over which workers are spread, or None.

    Returns:
      A tree of leaves ``[m, ...]``.

    Raises:
      ValueError: for a batch without a worker axis.
    """
    num_workers = count_in_batch(batch)
    if worker_chunk is None or 1 < num_workers <= worker_chunk:
        params = collectives.vary(params, axis_name)
        return jax.vmap(functools.partial(of_worker, params))(batch)
    chunk = min(worker_chunk, num_workers)

    def visit(results: Any, number: jax.Array, source: Any) -> Any:
        params, batch = source
        first = first_of(number, num_workers, chunk)
        rows = map_block(of_worker, params, take_rows(batch, first, chunk))
        return put_rows(results, rows, first)

    of_block = functools.partial(map_block, of_worker)
    _, results = result_shapes(of_block, params, batch, chunk)
    return fold_blocks(
        visit, blank(results), (params, batch), num_workers, chunk, axis_name
    )


def map_block(of_worker: Callable[[Any, Any], Any], params: Any, batch: Any) -> Any:
    """Maps a function of parameters and one worker's batch over a block's workers."""
    if count_in_batch(batch) > 1:
        return jax.vmap(functools.partial(of_worker, params))(batch)
    alone = of_worker(params, jax.tree.map(lambda rows: rows[0], batch))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], alone)


def result_shapes(
    of_block: Callable[[Any, Any], Any], params: Any, batch: Any, chunk: int
) -> tuple[Any, Any]:
    """Returns the shapes of what is computed of one block, and of all workers."""
    num_workers = count_in_batch(batch)
    first = jax.eval_shape(lambda: take_rows(batch, jnp.int32(0), chunk))
    of_first = jax.eval_shape(of_block, params, first)
    of_all = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((num_workers, *s.shape[1:]), s.dtype), of_first
    )
    return of_first, of_all


def take_rows(tree: Any, first: jax.Array, size: int) -> Any:
    """Returns the rows of a block of workers."""
    return jax.tree.map(
        lambda rows: jax.lax.dynamic_slice_in_dim(rows, first, size), tree
    )


def put_rows(whole: Any, part: Any, first: jax.Array) -> Any:
    """Writes the rows of a block of workers into those of all."""
    return jax.tree.map(
        lambda rows, some: jax.lax.dynamic_update_slice_in_dim(rows, some, first, 0),
        whole,
        part,
    )


def blank(shapes: Any) -> Any:
    """Returns a tree of zeros."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def count_in_batch(batch: Any) -> int:
    """Returns the number of workers in a batch whose leaves are ``[M, ...]``.

    Raises:
      ValueError: if the batch is empty or its leaves disagree.
    """
    counts = {shape[:1] for shape in _shapes_of(batch).values()}
    if len(counts) != 1 or () in counts or (0,) in counts:
        raise ValueError(
            "The batch must have a leading worker axis, the same M >= 1 in each leaf; "
            f"got shapes {_shapes_of(batch)}."
        )
    return counts.pop()[0]


def check_num_workers(batch: Any, num_workers: int, num_devices: int = 1) -> None:
    """Raises ValueError unless as many workers as told share so many devices.

    Samples of all workers in one axis would pass for so many workers.
    """
    found = count_in_batch(batch) * num_devices
    if found != num_workers:
        raise ValueError(
            f"`num_workers` is {num_workers}, but the batch has the leading axis of "
            f"{found} workers: {_shapes_of(batch)}. Samples of all workers in one "
            "axis, [M * n, ...], are to become [M, n, ...]: "
            f"`x.reshape({num_workers}, -1, *x.shape[1:])`."
        )


def _shapes_of(batch: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path) or "the batch": jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
