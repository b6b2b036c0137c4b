"""Exact sums of large whole numbers in 32 bits: each number as a few limbs.

    w = sum_l limb_l 2^(B l),    0 <= limb_l < 2^B,    B = 30 - bits of M

Sums over M workers of limbs, and twice these, fit int32 whatever the weights are, so
sample counts far above 2^31 in total are counted to the last one without 64-bit types.
Weights that need limbs are uint32; int32 ones are known to fit, twice their sum too.
"""

import jax
import jax.numpy as jnp
import numpy as np


def addends(weights: jax.Array, num_workers: int) -> jax.Array:
    """Returns weights ``[m]`` as they are added up: ``[k, m]``, k = 1 but for limbs."""
    if weights.dtype == jnp.uint32:
        return split(weights, num_workers)
    return weights[None]


def sign_of_sums(sums: jax.Array, weights: jax.Array, num_workers: int) -> jax.Array:
    """Returns the sign of sums ``[k, ...]`` of addends of weights, int32 ``[...]``."""
    if weights.dtype == jnp.uint32:
        return sign(sums, num_workers)
    return jnp.sign(sums[0]).astype(jnp.int32)


def as_float(sums: jax.Array, num_workers: int, dtype: jnp.dtype) -> jax.Array:
    """Returns sums ``[k, ...]`` of addends of weights as one number each, rounded."""
    step = np.asarray(2.0 ** _bits(num_workers), dtype)
    number = sums[-1].astype(dtype)
    for limb in sums[-2::-1]:
        number = number * step + limb.astype(dtype)
    return number


def split(weights: jax.Array, num_workers: int) -> jax.Array:
    """Cuts uint32 ``[m]``, of M workers in all, into int32 limbs ``[k, m]``.

    >>> split(jnp.uint32([5, 2**32 - 1]), 100).tolist()  # 23 bits a limb
    [[5, 8388607], [0, 511]]
    """
    bits = _bits(num_workers)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    low = np.uint32(2**bits - 1)
    return ((weights[None] >> shifts[:, None]) & low).astype(jnp.int32)


def sign(sums: jax.Array, num_workers: int) -> jax.Array:
    """Returns the sign of sums ``[k, ...]`` of limbs, int32 ``[...]``.

    The sums may be those of twice M limbs, each added or subtracted.

    >>> sums = jnp.int32([[-3, -2**23], [0, 1]])  # 23 bits a limb
    >>> sign(sums, 100).tolist()
    [-1, 0]
    """
    bits = np.int32(_bits(num_workers))
    anything_below, above = jnp.zeros_like(sums[0], bool), sums[0]
    for higher in sums[1:]:
        carry = above >> bits  # rounds down: what stays is >= 0
        anything_below |= above != carry << bits
        above = higher + carry
    return jnp.where(above == 0, anything_below.astype(jnp.int32), jnp.sign(above))


def _bits(num_workers: int) -> int:
    return 30 - int(num_workers).bit_length()
