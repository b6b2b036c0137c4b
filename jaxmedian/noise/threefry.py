"""Random words as an elementwise expression, so that noise melts into what uses it.

`jax.random.bits` is a call that XLA does not fuse on CPU: its words travel through
memory, one array a worker. Written out over an iota (Threefry-2x32, 20 rounds: Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), the same words, bit for
bit, are computed in registers where a kernel needs them.

This file knows keys and words; what the words mean is said in `jaxmedian.laws`.
"""

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_KEY_PARITY = np.uint32(0x1BD11BDA)


@jax.jit
def words(key_words: jax.Array, positions: jax.Array) -> jax.Array:
    """Draws one word a coordinate: `jax.random.bits`, elementwise.

    Args:
      key_words: uint32 ``[..., 2]``, `jax.random.key_data` of Threefry keys.
      positions: uint32, the flat positions of the coordinates in their leaf, of a shape
        that broadcasts with the leading axes of ``key_words``.

    Returns:
      uint32 words. For one key and ``positions = arange(size)`` they are
      ``jax.random.bits(key, (size,), "uint32")`` in JAX's partitionable layout, in
      which coordinate n is the XOR of both outputs for the 64-bit counter n.

    >>> import jax
    >>> key = jax.random.key(0, impl="threefry2x32")
    >>> fused = words(jax.random.key_data(key), jnp.arange(5, dtype=jnp.uint32))
    >>> bool((fused == jax.random.bits(key, (5,), "uint32")).all())
    True
    """
    key0, key1 = key_words[..., 0], key_words[..., 1]
    schedule = (key0, key1, key0 ^ key1 ^ _KEY_PARITY)
    x0 = schedule[0] + jnp.zeros_like(positions)  # high word of the counter
    x1 = schedule[1] + positions
    for i in range(5):
        for distance in _ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = x0 ^ ((x1 << np.uint32(distance)) | (x1 >> np.uint32(32 - distance)))
        x0 = x0 + schedule[(i + 1) % 3]
        x1 = x1 + (schedule[(i + 2) % 3] + np.uint32(i + 1))
    return x0 ^ x1


def positions(size: int) -> jax.Array:
    """Returns the flat positions of a leaf of ``size`` entries, uint32 ``[size]``.

    Raises:
      ValueError: from 2^32 entries on, where one counter word is not enough.
    """
    if size >= 2**32:
        raise ValueError(
            f"A leaf of {size} entries is beyond the 2^32 coordinates that one noise "
            "key serves. Split the parameter into several leaves."
        )
    return jax.lax.iota(jnp.uint32, size)


def centred_uniform(word: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Maps words to t = ((word >> 9) + 1/2) 2^-22 - 1 in (-1, 1), exact in float32.

    With 24 bits in place of 23 the largest word would round to t = 1, whose noise is
    infinite.
    """
    # t = odd 2^-23 for the odd integer 2 (word >> 9) + 1 - 2^23: flip the top bit, read
    # the word as signed, and let the last bit shifted out make room for the 1.
    signed = jax.lax.bitcast_convert_type(word ^ np.uint32(2**31), jnp.int32)
    odd = (signed >> np.int32(8)) | np.int32(1)
    return odd.astype(dtype) * np.asarray(2.0**-23, dtype)


def rising_uniform(word: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Maps words to 1 + t = ((word >> 9) + 1/2) 2^-22 in (0, 2), as exactly.

    All bits of the word flipped, it is 1 - t.
    """
    steps = (word >> np.uint32(9)).astype(jnp.int32).astype(dtype)
    return (steps + np.asarray(0.5, dtype)) * np.asarray(2.0**-22, dtype)


def fair_bit(word: jax.Array) -> jax.Array:
    """Maps words to fair votes, int32: +1 where the top bit is set, else -1."""
    return jnp.where(word >> np.uint32(31) == 1, np.int32(1), np.int32(-1))
