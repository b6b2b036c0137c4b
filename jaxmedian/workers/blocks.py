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
import optax

from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName, PyTree


def num_turns(num_workers: int, chunk: int) -> Any:
    """Returns how many blocks there are; an int that XLA does not know for single ones.

    So a loop over single workers has no reverse-mode derivative.
    """
    if chunk > 1:
        return math.ceil(num_workers / chunk)
    return jax.lax.optimization_barrier(jnp.int32(num_workers))


def read_anew(source: PyTree) -> PyTree:
    """Returns what each turn reads and carries on: parameters, all workers' batches.

    What depends on the parameters alone is computed in each turn: XLA would move it (a
    conversion to another type, say) out of the loop, into memory; and beside one worker
    its whole gradient.
    """
    return jax.lax.optimization_barrier(source)


def first_of(number: jax.Array, num_workers: int, chunk: int) -> jax.Array:
    """Returns the first worker of a block, int32.

    Where the chunk does not divide the number of workers, the last block overlaps the
    one before.
    """
    return jnp.minimum(number * chunk, num_workers - chunk)


def map_in_blocks(
    of_worker: Callable[[PyTree, PyTree], PyTree],
    params: optax.Params,
    batch: PyTree,
    num_workers: int,
    chunk: int,
    axis_name: AxisName | None,
) -> PyTree:
    """Maps a function of parameters and one worker's batch over blocks of workers.

    Returns:
      Its results, a tree of leaves ``[m, ...]``.
    """

    def turn(number: jax.Array, carry: PyTree) -> PyTree:
        results, source = carry
        params, batch = source = read_anew(source)
        first = first_of(number, num_workers, chunk)
        rows = map_block(of_worker, params, take_rows(batch, first, chunk))
        return put_rows(results, rows, first), source

    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    of_block = functools.partial(map_block, of_worker)
    rows = jax.eval_shape(of_block, params, shapes_of_block(batch, chunk))
    results = blank(shapes_of_all(rows, num_workers))
    start = collectives.vary((results, (params, batch)), axis_name)
    return jax.lax.fori_loop(0, num_turns(num_workers, chunk), turn, start)[0]


def map_block(
    of_worker: Callable[[PyTree, PyTree], PyTree], params: optax.Params, batch: PyTree
) -> PyTree:
    """Maps a function of parameters and one worker's batch over a block's workers."""
    if jax.tree.leaves(batch)[0].shape[0] > 1:
        return jax.vmap(functools.partial(of_worker, params))(batch)
    alone = of_worker(params, jax.tree.map(lambda rows: rows[0], batch))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], alone)


def shapes_of_block(batch: PyTree, chunk: int) -> PyTree:
    """Returns the shapes of the rows of one block."""
    return bare(jax.eval_shape(lambda: take_rows(batch, jnp.int32(0), chunk)))


def bare(shapes: PyTree) -> PyTree:
    """Returns shapes and types alone, to ask `jax.eval_shape` for others with.

    Inside `jax.shard_map` JAX notes beside them over which axes they vary, and does not
    take that as an argument where the mesh has automatic axes too.
    """
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), shapes)


def shapes_of_all(block_shapes: PyTree, num_workers: int) -> PyTree:
    """Returns the shapes of what is computed of all workers, ``[num_workers, ...]``."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((num_workers, *s.shape[1:]), s.dtype),
        block_shapes,
    )


def take_rows(tree: PyTree, first: jax.Array, size: int) -> PyTree:
    """Returns the rows of a block of workers."""
    return jax.tree.map(
        lambda rows: jax.lax.dynamic_slice_in_dim(rows, first, size), tree
    )


def put_rows(whole: PyTree, part: PyTree, first: jax.Array) -> PyTree:
    """Writes the rows of a block of workers into those of all."""
    return jax.tree.map(
        lambda rows, some: jax.lax.dynamic_update_slice_in_dim(rows, some, first, 0),
        whole,
        part,
    )


def blank(shapes: PyTree) -> PyTree:
    """Returns a tree of zeros."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
