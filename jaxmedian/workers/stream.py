"""Gradients of many workers that are never all in memory.

With ``worker_chunk`` the step hands the optimizer a `WorkerStream` in place of stacked
arrays: a recipe that computes the gradients of a block of workers when they are asked
for. A vote or a mean folds it into one running sum a coordinate, O(d) for any number of
workers. What needs all rows at once (a median, momentum for each worker) stacks it, and
says what that costs where it is much.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax

from jaxmedian.workers import collectives
from jaxmedian.workers.blocks import (
    bare,
    blank,
    first_of,
    map_block,
    num_turns,
    put_rows,
    read_anew,
    shapes_of_all,
    shapes_of_block,
    take_rows,
)
from jaxmedian.workers.checks import check_count, check_differentiable
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.gradients import LossFn, count_in_batch, own_value_and_grad

_MASKS = ("`masked`", "`partition`")
_MUCH = 2**30  # bytes of stacked gradients that are worth a warning


class Block(NamedTuple):
    """The gradients of some workers.

    Attributes:
      grads: tree of leaves ``[chunk, ...]``.
      first: number of the first of these workers on this device, int32.
      fresh: bool ``[chunk]``, who was in no earlier block. Where the chunk does not
        divide the number of workers, the last block overlaps the one before.
    """

    grads: PyTree
    first: jax.Array
    fresh: jax.Array


class WorkerStream:
    """The gradients of the local workers, leaves ``[m, ...]``, block by block.

    Attributes:
      axis_name: mesh axis over which workers are spread, or None.
      shapes: tree of `jax.ShapeDtypeStruct`, the stacked gradients as they would be.
      block_shapes: a `Block` of shapes.
      worker_chunk: workers of a block.
      num_blocks: blocks to compute, in order.
      stacked: the stacked gradients, if somebody asked for them, else None.
    """

    def __init__(
        self,
        value_and_grads_of: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
        params: optax.Params,
        batch: PyTree,
        worker_chunk: int,
        axis_name: AxisName | None,
    ) -> None:
        """Describes a stream.

        Args:
          value_and_grads_of: parameters and the batch of a block, leaves
            ``[chunk, ...]`` -> values and gradients of its workers, likewise.
          params: parameters.
          batch: tree of leaves ``[m, ...]``, the local workers' samples.
          worker_chunk: workers per block; all of them if there are fewer.
          axis_name: mesh axis over which workers are spread, or None.
        """
        self._block = value_and_grads_of
        self._source = jax.tree.map(jnp.asarray, (params, batch))
        self._num_workers, self.axis_name = count_in_batch(batch), axis_name
        self.worker_chunk = min(worker_chunk, self._num_workers)
        self.num_blocks = num_turns(self._num_workers, self.worker_chunk)
        value = self._describe()
        self._results = {"value": blank(value)}

    def _describe(self) -> PyTree:
        """Sets the shapes of the gradients, and returns those of the values."""
        params, batch = self._source
        chunk = self.worker_chunk
        rows = shapes_of_block(batch, chunk)
        value, grads = bare(jax.eval_shape(self._block, params, rows))
        self.block_shapes = bare(
            jax.eval_shape(
                lambda grads: Block(grads, jnp.int32(0), jnp.ones(chunk, bool)), grads
            )
        )
        self.shapes = shapes_of_all(grads, self._num_workers)
        self.stacked: Any = None
        return shapes_of_all(value, self._num_workers)

    @property
    def value(self) -> PyTree:
        """Losses ``[m]``, or losses and aux; zeros until it was consumed."""
        return self._results["value"]

    @property
    def carry(self) -> PyTree:
        """What `compute` hands from block to block: values, and what it reads."""
        return self.value, self._source

    @carry.setter
    def carry(self, carry: PyTree) -> None:
        self._results["value"], _ = carry  # shared by the streams made of this one

    def map(self, function: Callable[[PyTree], PyTree]) -> "WorkerStream":
        """Returns the stream of what a function makes of each block of gradients.

        Args:
          function: leaves ``[chunk, ...]`` -> leaves ``[chunk, ...]``, each worker's
            from its own alone.
        """
        value_and_grads_of = self._block

        def mapped_block(params: optax.Params, batch: PyTree) -> tuple[PyTree, PyTree]:
            value, grads = value_and_grads_of(params, batch)
            return value, function(grads)

        mapped = copy.copy(self)
        mapped._block = mapped_block
        mapped._describe()
        return mapped

    def compute(self, number: jax.Array, carry: PyTree) -> tuple[Block, PyTree]:
        """Computes block ``number``, and carries its values among those of all."""
        value, source = carry
        params, batch = source = read_anew(source)
        first = first_of(number, self._num_workers, self.worker_chunk)
        block_value, grads = self._block(
            params, take_rows(batch, first, self.worker_chunk)
        )
        fresh = first + jnp.arange(self.worker_chunk) >= number * self.worker_chunk
        return Block(grads, first, fresh), (put_rows(value, block_value, first), source)

    def stack(self, transform: str) -> PyTree:
        """Computes all gradients, ``[m, ...]``, for a transform that needs them."""
        if self.stacked is not None:
            return self.stacked
        if self._num_bytes() > _MUCH:
            warnings.warn(
                f"`{transform}` {self._needs()}. A vote or a mean right behind the "
                "gradients would need one worker chunk of them.",
                stacklevel=2,
            )

        def put_block(number: jax.Array, carry: PyTree) -> PyTree:
            whole, carry = carry
            block, carry = self.compute(number, carry)
            return put_rows(whole, block.grads, block.first), carry

        start = collectives.vary((blank(self.shapes), self.carry), self.axis_name)
        self.stacked, self.carry = jax.lax.fori_loop(
            0, self.num_blocks, put_block, start
        )
        return self.stacked

    def _num_bytes(self) -> int:
        leaves = jax.tree.leaves(self.shapes)
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    def _needs(self) -> str:
        return (
            f"needs the gradients of all {self._num_workers} workers of this device at "
            f"once, {self._num_bytes() / 2**20:,.0f} MiB"
        )

    def _refuse(self, *arguments: object) -> NoReturn:
        del arguments
        self.refuse("this one")

    def refuse(self, transform: str) -> NoReturn:
        """Raises TypeError for a foreign transform that met the stream."""
        if transform in _MASKS:
            raise TypeError(
                "With `worker_chunk` gradients are a stream of worker blocks, and "
                "`optax.masked` and `optax.partition` look inside their tree. The "
                f"optimizer {self._needs()}: leave `worker_chunk` out."
            )
        raise TypeError(
            "With `worker_chunk`, only jaxmedian's own transforms may stand before the "
            f"aggregator: {transform} met a stream of worker blocks instead of arrays. "
            f"It {self._needs()}: leave `worker_chunk` out, lift the transform with "
            "`per_worker`, which computes what has no state block by block, or put it "
            "behind the aggregator."
        )

    # What an elementwise transform would do to an array.
    __jax_array__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = _refuse
    __rmul__ = __truediv__ = __rtruediv__ = __neg__ = __pow__ = __abs__ = _refuse
    shape = dtype = ndim = size = property(_refuse)


def stream_value_and_grads(
    loss_fn: LossFn, *, has_aux: bool, axis_name: AxisName | None, worker_chunk: int
) -> Callable[[PyTree, PyTree], WorkerStream]:
    """Builds ``(params, batch) -> WorkerStream``, the unstacked gradients."""
    check_count("worker_chunk", worker_chunk)
    value_and_grad = own_value_and_grad(loss_fn, has_aux, axis_name)

    def of_block(params: optax.Params, batch: PyTree) -> PyTree:
        return map_block(value_and_grad, params, batch)

    def value_and_grads(params: optax.Params, batch: PyTree) -> WorkerStream:
        check_differentiable(params)
        return WorkerStream(of_block, params, batch, worker_chunk, axis_name)

    return value_and_grads
