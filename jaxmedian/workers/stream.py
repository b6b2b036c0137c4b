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

from jaxmedian.workers import collectives
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.gradients import LossFn, count_in_batch

_MUCH = 2**30  # bytes of stacked gradients that are worth a warning


class Block(NamedTuple):
    """The gradients of some workers.

    Attributes:
      grads: tree of leaves ``[chunk, ...]``.
      first: number of the first of these workers on this device, int32.
      fresh: bool ``[chunk]``, who was in no earlier block. Where the chunk does not
        divide the number of workers, the last block overlaps the one before.
    """

    grads: Any
    first: jax.Array
    fresh: jax.Array


class WorkerStream:
    """The gradients of the local workers, leaves ``[m, ...]``, block by block.

    Attributes:
      axis_name: mesh axis over which workers are spread, or None.
      shapes: tree of `jax.ShapeDtypeStruct`, the stacked gradients as they would be.
      block_shapes: a `Block` of shapes.
      num_blocks: blocks to compute, in order.
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
          chunk: workers per block.
          axis_name: mesh axis over which workers are spread, or None.
        """
        self._block = value_and_grads_from
        self._num_workers, self._chunk, self.axis_name = num_workers, chunk, axis_name
        self.num_blocks = math.ceil(num_workers / chunk)
        value, grads = jax.eval_shape(value_and_grads_from, jnp.int32(0))
        self._results = {"value": _blank(jax.tree.map(self._widen, value))}
        self._describe(grads)

    def _describe(self, grads: Any) -> None:
        self.shapes = jax.tree.map(self._widen, grads)
        self.block_shapes, _ = jax.eval_shape(self.compute, jnp.int32(0), self.value)
        self.stacked: Any = None

    @property
    def value(self) -> Any:
        """Losses ``[m]``, or losses and aux; zeros until it was consumed."""
        return self._results["value"]

    @value.setter
    def value(self, value: object) -> None:
        self._results["value"] = value  # shared by the streams made of this one

    def map(self, function: Callable[[Any], Any]) -> "WorkerStream":
        """Returns the stream of what a function makes of each block of gradients.

        Args:
          function: leaves ``[chunk, ...]`` -> leaves ``[chunk, ...]``, each worker's
            from its own alone.
        """
        value_and_grads_from = self._block

        def mapped_block(first: jax.Array) -> tuple[Any, Any]:
            value, grads = value_and_grads_from(first)
            return value, function(grads)

        mapped = copy.copy(self)
        mapped._block = mapped_block
        _, grads = jax.eval_shape(mapped_block, jnp.int32(0))
        mapped._describe(grads)
        return mapped

    def compute(self, number: jax.Array, value: object) -> tuple[Block, Any]:
        """Computes block ``number``, and puts its values among those of all workers."""
        start = number * self._chunk
        first = jnp.minimum(start, self._num_workers - self._chunk)
        block_value, grads = self._block(first)
        fresh = first + jnp.arange(self._chunk) >= start
        return Block(grads, first, fresh), _put(value, block_value, first)

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

        def put_block(number: jax.Array, carry: Any) -> Any:
            whole, value = carry
            block, value = self.compute(number, value)
            return _put(whole, block.grads, block.first), value

        carry = collectives.vary((_blank(self.shapes), self.value), self.axis_name)
        self.stacked, self.value = jax.lax.fori_loop(
            0, self.num_blocks, put_block, carry
        )
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
        self.refuse("this one")

    def refuse(self, transform: str) -> NoReturn:
        """Raises TypeError for a foreign transform that met the stream."""
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


def _put(whole: Any, part: Any, first: jax.Array) -> Any:
    """Writes the rows of some workers into those of all."""
    return jax.tree.map(
        lambda rows, some: jax.lax.dynamic_update_slice_in_dim(rows, some, first, 0),
        whole,
        part,
    )


def _blank(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def stream_value_and_grads(
    loss_fn: LossFn, *, has_aux: bool, axis_name: AxisName | None, worker_chunk: int
) -> Callable[[Any, Any], WorkerStream]:
    """Builds ``(params, batch) -> WorkerStream``, the unstacked gradients."""
    check_count("worker_chunk", worker_chunk)
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)

    def value_and_grads(params: Any, batch: Any) -> WorkerStream:
        num_local = count_in_batch(batch)
        chunk = min(worker_chunk, num_local)
        params = collectives.vary(params, axis_name)

        def of_block(first: jax.Array) -> Any:
            # Tied to the block, or XLA moves what depends on the parameters alone
            # (their conversion to another type, say) out of the loop, into memory.
            block_params, _ = jax.lax.optimization_barrier((params, first))

            def of_worker(worker_batch: Any) -> Any:
                return value_and_grad(block_params, worker_batch)

            if chunk == 1:
                alone = of_worker(jax.tree.map(lambda x: jnp.asarray(x)[first], batch))
                return jax.tree.map(lambda x: jnp.asarray(x)[None], alone)
            block = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(jnp.asarray(x), first, chunk),
                batch,
            )
            return jax.vmap(of_worker)(block)

        return WorkerStream(of_block, num_local, chunk, axis_name)

    return value_and_grads


_UPDATES = (".update", ".update_fn")  # what factories of transforms call theirs


def is_about_streams(error: BaseException) -> bool:
    """Returns whether JAX was handed a stream for an array, by its own words."""
    return "WorkerStream" in str(error) or "__jax_array__" in str(error)


def foreign_transform(error: BaseException) -> str:
    """Names the innermost factory of a transform that is neither ours nor JAX's."""
    name, trace = "another transform", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "").split(".")[0]
        qualified = getattr(trace.tb_frame.f_code, "co_qualname", "")  # Python 3.11
        is_update = ".<locals>." in qualified and qualified.endswith(_UPDATES)
        if module not in ("jax", "jaxmedian") and is_update:
            factory = qualified.split(".<locals>.")[0]
            name = name if factory in ("chain", "named_chain") else f"`{factory}`"
        trace = trace.tb_next
    return name
