"""Gradients of many workers that are never all in memory.

With ``worker_chunk`` the step hands the optimizer a `WorkerStream` in place of stacked
arrays: a recipe that computes the gradients of a block of workers when they are asked
for. A vote or a mean folds it into one running sum a coordinate, O(d) for any number of
workers. What needs all rows at once (a median, momentum for each worker) stacks it, and
says what that costs where it is much.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName

_MUCH = 2**30  # bytes of stacked gradients that are worth a warning


class WorkerStream:
    """The gradients of the local workers, leaves ``[m, ...]``, block by block.

    Attributes:
      axis_name: mesh axis over which workers are spread, or None.
      shapes: tree of `jax.ShapeDtypeStruct`, the stacked gradients as they would be.
      value: losses ``[m]`` (or losses and aux); None until the stream was consumed.
      stacked: the stacked gradients, if somebody asked for them, else None.
    """

    def __init__(
        self,
        value_and_grads_from: Callable[[jax.Array], tuple[Any, Any]],
        num_workers: int,
        chunk: int,
        axis_name: AxisName | None,
    ) -> None:
        """Describes a stream.

        Args:
          value_and_grads_from: first worker of a block -> values and gradients of its
            ``chunk`` workers, leaves ``[chunk, ...]``.
          num_workers: local workers, >= chunk.
          chunk: workers a block.
          axis_name: mesh axis over which workers are spread, or None.
        """
        self._block = value_and_grads_from
        self._num_workers, self._chunk, self.axis_name = num_workers, chunk, axis_name
        value, grads = jax.eval_shape(value_and_grads_from, jnp.int32(0))
        self._value_shapes = jax.tree.map(self._widen, value)
        self.shapes = jax.tree.map(self._widen, grads)
        self.value: Any = None
        self.stacked: Any = None

    def fold(
        self, add: Callable[[Any, Any, jax.Array, jax.Array], Any], carry: Any
    ) -> Any:
        """Runs over the blocks: ``carry = add(carry, grads, first, fresh)``.

        Args:
          add: gets the gradients ``[chunk, ...]`` of the workers from ``first`` on.
            Where the chunk does not divide the number of workers, the last block
            overlaps the one before; ``fresh``, bool ``[chunk]``, says who is new.
          carry: what to start from.
        """
        last = self._num_workers - self._chunk
        num_blocks = math.ceil(self._num_workers / self._chunk)

        def body(block: jax.Array, carries: tuple[Any, Any]) -> tuple[Any, Any]:
            carry, values = carries
            start = block * self._chunk
            first = jnp.minimum(start, last)
            value, grads = self._block(first)
            fresh = first + jnp.arange(self._chunk) >= start
            values = jax.tree.map(
                lambda whole, part: jax.lax.dynamic_update_slice_in_dim(
                    whole, part, first, axis=0
                ),
                values,
                value,
            )
            return add(carry, grads, first, fresh), values

        carries = collectives.vary((carry, _blank(self._value_shapes)), self.axis_name)
        carry, self.value = jax.lax.fori_loop(0, num_blocks, body, carries)
        return carry

    def blank(self, reduce_block: Callable[..., Any]) -> Any:
        """Returns zeros shaped as ``reduce_block(grads, first, fresh)``."""
        grads = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((self._chunk, *s.shape[1:]), s.dtype),
            self.shapes,
        )
        first = jax.ShapeDtypeStruct((), jnp.int32)
        fresh = jax.ShapeDtypeStruct((self._chunk,), jnp.bool_)
        return _blank(jax.eval_shape(reduce_block, grads, first, fresh))

    def stack(self, transform: str) -> Any:
        """Computes all gradients, ``[m, ...]``, for a transform that needs them."""
        if self.stacked is not None:
            return self.stacked
        if self._num_bytes() > _MUCH:
            warnings.warn(
                f"`{transform}` {self._needs()}. A vote or a mean right behind the "
                "gradients would need one worker chunk of them.",
                stacklevel=2,
            )

        def put(whole: Any, grads: Any, first: jax.Array, fresh: jax.Array) -> Any:
            del fresh  # the same rows again
            return jax.tree.map(
                lambda rows, part: jax.lax.dynamic_update_slice_in_dim(
                    rows, part, first, axis=0
                ),
                whole,
                grads,
            )

        self.stacked = self.fold(put, _blank(self.shapes))
        return self.stacked

    def _widen(self, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self._num_workers, *shape.shape[1:]), shape.dtype)

    def _num_bytes(self) -> int:
        leaves = jax.tree.leaves(self.shapes)
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    def _needs(self) -> str:
        return (
            f"needs the gradients of all {self._num_workers} workers of this device at "
            f"once, {self._num_bytes() / 2**20:,.0f} MiB"
        )

    def _refuse(self, *arguments: Any) -> NoReturn:
        del arguments
        raise TypeError(
            "With `worker_chunk`, only jaxmedian's own transforms may stand before the "
            "aggregator: this one met a stream of worker blocks instead of arrays. It "
            f"{self._needs()}: leave `worker_chunk` out, lift the transform with "
            "`per_worker`, or put it behind the aggregator."
        )

    # What an elementwise transform would do to an array.
    __jax_array__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = _refuse
    __rmul__ = __truediv__ = __rtruediv__ = __neg__ = __pow__ = __abs__ = _refuse
    shape = dtype = ndim = size = property(_refuse)


def materialise(transform: str, updates: Any) -> Any:
    """Returns updates as arrays: a stream is stacked for ``transform``."""
    return updates.stack(transform) if isinstance(updates, WorkerStream) else updates


def _blank(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
