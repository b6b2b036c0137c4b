"""Random words as an elementwise expression, so that noise melts into what uses it.

`jax.random.bits` is a call that XLA does not fuse on CPU: its words travel through
memory, one array a worker. Written out over an iota (Threefry-2x32, 20 rounds: Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), the same words, bit for
bit, are computed in registers where a kernel needs them.

This file knows keys and words; what the words mean is said in `noise.laws`.
"""

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_KEY_PARITY = np.uint32(0x1BD11BDA)

LANE = 128  # coordinates of joined leaves that share a key; see `noise.lanes`


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


def words_of_row(key_words: jax.Array, positions: jax.Array) -> jax.Array:
    """Draws the words ``[d]`` of one worker, of one leaf or of joined leaves.

    Args:
      key_words: uint32 ``[2]``; of joined leaves ``[lanes, 2]``, see `noise.lanes`.
      positions: uint32 ``[d]``.
    """
    if key_words.ndim == 2:
        halves = [spread(key_words[:, half]) for half in range(2)]
        key_words = jnp.stack(halves, axis=-1)
    return words(key_words, positions)


def spread(x: jax.Array) -> jax.Array:
    """Repeats what belongs to a lane along it: ``[..., n] -> [..., 128 n]``."""
    repeated = jnp.broadcast_to(x[..., None], (*x.shape, LANE))
    return repeated.reshape(*x.shape[:-1], x.shape[-1] * LANE)


def positions(size: int, starts: jax.Array | None = None) -> jax.Array:
    """Returns the flat positions of ``size`` coordinates in a leaf, uint32 ``[size]``.

    Args:
      size: coordinates in all.
      starts: uint32, where they begin: ``[lanes]`` of joined leaves, see `noise.lanes`,
        or ``[]`` of one leaf; None for the beginning of a leaf.

    Raises:
      ValueError: from 2^32 entries on, where one counter word is not enough.
    """
    if size >= 2**32:
        raise ValueError(
            f"A leaf of {size} entries is beyond the 2^32 coordinates that one noise "
            "key serves. Split the parameter into several leaves."
        )
    along = jax.lax.iota(jnp.uint32, size)
    if starts is None:
        return along
    if starts.ndim == 0:
        return starts + along
    return spread(starts) + (along & np.uint32(LANE - 1))


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
