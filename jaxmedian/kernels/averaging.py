"""The mean over workers from whole rows, for `worker_mean` and the diagnostics.

Rows are added in float32 (float64 for float64) and rounded once, at the end.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels.precision import working_dtype
from jaxmedian.kernels.row_sums import add_up


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
      ``[d]``, float32 (float64 for float64).
    """
    dtype = working_dtype(rows.dtype)

    def term(worker: int | jax.Array) -> jax.Array:
        row = rows[worker].astype(dtype)
        if weights is not None:
            row = weights[worker].astype(dtype) * row
        if present is None:
            return row
        return jnp.where(present[worker], row, np.asarray(0, dtype))

    return add_up(term, rows.shape[0])
