"""Sum rows over workers in blocks: the loop behind every tally and every mean.

XLA on CPU reduces over a leading axis 20 to 50 times slower than it adds whole rows,
and one expression over many rows is slow to compile and to run. So rows are computed
and added a block at a time, and only the running sum is kept.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Row = Callable[[int | jax.Array], Any]  # worker -> [d], or a tree of such rows

# Rows a loop step. In one expression, independent noise of 60 workers takes a minute to
# compile, and 101 rows of 10^6 numbers take 36 ms to add; by eights, 16 (2 CPU cores).
BLOCK = 8


def add_up(
    row: Row,
    num_workers: int,
    block_size: int = BLOCK,
    combine: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
) -> Any:
    """Adds ``row(0)`` to ``row(num_workers - 1)``, a block of them a loop step.

    Args:
      row: what one worker adds; its number is a Python int or traced.
      num_workers: at least 1.
      block_size: rows a loop step.
      combine: what to do in place of adding, `jax.numpy.maximum` say.

    >>> import jax.numpy as jnp
    >>> add_up(lambda worker: jnp.full([2], worker), num_workers=20).tolist()
    [190, 190]
    """

    def add(workers: Sequence[int | jax.Array], total: Any) -> Any:
        for worker in workers:
            total = jax.tree.map(combine, total, row(worker))
        return total

    def add_block(block: jax.Array, total: Any) -> Any:
        start = first + block * block_size
        return add([start + i for i in range(block_size)], total)

    # The sum starts from rows, not from zeros, and so varies over a mesh as they do.
    first = num_workers % block_size or min(block_size, num_workers)
    total = add(range(1, first), row(0))
    num_blocks = (num_workers - first) // block_size
    return jax.lax.fori_loop(0, num_blocks, add_block, total) if num_blocks else total


def computed_once(x: jax.Array) -> jax.Array:
    """Returns x, which many will read, from memory.

    XLA on CPU copies what makes x into every reader: to cut a kernel's result into the
    leaves of a tree, it would compile the kernel once a leaf. What a branch reads is
    stored, if XLA cannot tell which branch is taken.

    >>> computed_once(jnp.arange(3)).tolist()
    [0, 1, 2]
    """
    is_true = jax.lax.optimization_barrier(jnp.bool_(True))

    def store(x: jax.Array) -> jax.Array:
        return jax.lax.cond(is_true, lambda x: x, jnp.negative, x)

    return jax.lax.platform_dependent(x, cpu=store, default=lambda x: x)


def zeros_varying_like(x: jax.Array) -> jax.Array:
    """Returns integer zeros that vary over a mesh as x does: loops may start from them.

    >>> zeros_varying_like(jnp.int32([3, -1])).tolist()
    [0, 0]
    """
    return jnp.bitwise_xor(x, x)


_SMALL_SCALE = 2.0**-40  # in which sums of fewer than 2^38 finite values are finite


def without_overflow(mean_of: Callable[[jax.Array | None], jax.Array]) -> jax.Array:
    """Computes a mean, and where it overflowed on the way again on a smaller scale.

    Args:
      mean_of: s -> mean of the values times s, a power of two; None stands for 1. It
        takes the rows apart itself: what is cut outside is stored for the second time.

    >>> huge = jnp.full([3], 3e38)
    >>> mean = without_overflow(lambda s: (huge if s is None else huge * s).mean())
    >>> abs(mean.item() / 3e38 - 1) < 1e-6
    True
    """
    mean = mean_of(None)

    def mend() -> jax.Array:
        scaled = mean_of(jnp.asarray(_SMALL_SCALE, mean.dtype))
        largest = float(jnp.finfo(mean.dtype).max)
        # Of finite values it is no larger than they are, whatever the rounding.
        again = jnp.clip(scaled / _SMALL_SCALE, -largest, largest)
        again = jnp.where(jnp.isfinite(scaled), again, scaled)
        return jnp.where(jnp.isfinite(mean), mean, again)

    return jax.lax.cond(jnp.all(jnp.isfinite(mean)), lambda: mean, mend)


def working_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns float64 for float64, and float32 for every shorter floating-point type.

    >>> import jax.numpy as jnp
    >>> working_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def sum_of_rows(
    rows: jax.Array, *, present: jax.Array | None, weights: jax.Array | None = None
) -> jax.Array:
    """Adds up the rows of those present.

    Args:
      rows: floating point ``[M, d]``, M >= 1.
      present: bool ``[M]``, or None if everybody is. Rows of absent workers are not
        read into the sum, whatever they hold.
      weights: ``[M]``, what to multiply each row with, or None.

    Returns:
      ``[d]``, float32 (float64 for float64). A sum beyond the largest float is
      infinite, as anywhere else, and so is a mean made of it.
    """
    dtype = working_dtype(rows.dtype)

    def term(worker: int | jax.Array) -> jax.Array:
        row = rows[worker].astype(dtype)
        if weights is not None:
            row = weights[worker].astype(dtype) * row
        if present is None:
            return row
        return jnp.where(present[worker], row, 0)

    return add_up(term, rows.shape[0])
