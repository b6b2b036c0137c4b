"""The mean over workers from whole rows, for `worker_mean` and the diagnostics.

Rows are added one by one in float32 (float64 for float64) and rounded once at the end:
XLA on CPU sums over a leading axis many times slower.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.precision import working_dtype

_BLOCK = 32  # rows a loop step: long enough that the running sum stays cheap


def sum_of_rows(rows: jax.Array, *, present: jax.Array | None) -> jax.Array:
    """Adds up the rows of those present.

    Args:
      rows: floating point ``[M, d]``, M >= 1.
      present: bool ``[M]``, or None if everybody is. Rows of absent workers are not
        read into the sum, whatever they hold.

    Returns:
      ``[d]``, float32 (float64 for float64).
    """
    dtype = working_dtype(rows.dtype)

    def term(worker: int | jax.Array) -> jax.Array:
        row = rows[worker].astype(dtype)
        if present is None:
            return row
        return jnp.where(present[worker], row, np.asarray(0, dtype))

    num_workers = rows.shape[0]
    first = num_workers % _BLOCK or _BLOCK
    start = sum((term(i) for i in range(1, min(first, num_workers))), term(0))

    def add_block(block: jax.Array, running: jax.Array) -> jax.Array:
        worker = first + block * _BLOCK
        return sum((term(worker + i) for i in range(_BLOCK)), running)

    num_blocks = (num_workers - first) // _BLOCK
    return jax.lax.fori_loop(0, num_blocks, add_block, start) if num_blocks else start
