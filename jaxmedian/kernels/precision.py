"""The dtype in which sums, noise and midpoints are computed, to be rounded once."""

import jax.numpy as jnp


def working_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns float64 for float64, and float32 for every shorter floating-point type.

    >>> import jax.numpy as jnp
    >>> working_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
