"""Leaves laid end to end that draw their words in one kernel, each with its own keys.

A word needs the key of its leaf and its coordinate's position there. Leaves that are
joined begin at multiples of 128 coordinates, so that a lane of 128 shares both but for
the last bits of the position: they are looked up once a lane and repeated along it in
the registers of the kernel that draws. Words are those of the leaves by themselves.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.noise import threefry

LANE = 128


def lanes_of(size: int) -> int:
    """Returns how many lanes a leaf of ``size`` coordinates takes, the last in part."""
    return -(-size // LANE)


def leaf_of_lane(sizes: Sequence[int]) -> np.ndarray:
    """Returns which of the leaves each lane belongs to, int ``[lanes]``.

    >>> leaf_of_lane([100, 300]).tolist()
    [0, 1, 1, 1]
    """
    return np.repeat(np.arange(len(sizes)), [lanes_of(size) for size in sizes])


def starts_of_lanes(sizes: Sequence[int]) -> np.ndarray:
    """Returns the position in its leaf of each lane's first entry, uint32 ``[lanes]``.

    >>> starts_of_lanes([100, 300]).tolist()
    [0, 0, 128, 256]
    """
    starts = [np.arange(lanes_of(size), dtype=np.uint32) for size in sizes]
    return np.concatenate(starts) * np.uint32(LANE)


def join(leaves: Sequence[jax.Array], fill: float) -> jax.Array:
    """Joins leaves ``[..., d_i]`` end to end, each filled up to whole lanes.

    >>> join([jnp.zeros(100), jnp.zeros(300)], 1.0).shape
    (512,)
    """
    parts = []
    for leaf in leaves:
        parts.append(leaf)
        if rest := -leaf.shape[-1] % LANE:
            parts.append(jnp.full_like(leaf, fill, shape=(*leaf.shape[:-1], rest)))
    return jnp.concatenate(parts, axis=-1)


def spread(x: jax.Array) -> jax.Array:
    """Repeats what belongs to a lane along it: ``[..., n] -> [..., 128 n]``."""
    repeated = jnp.broadcast_to(x[..., None], (*x.shape, LANE))
    return repeated.reshape(*x.shape[:-1], x.shape[-1] * LANE)


def positions(size: int, starts: jax.Array | None) -> jax.Array:
    """Returns the positions of ``size`` coordinates in their leaf, or their leaves.

    Args:
      size: coordinates in all.
      starts: uint32, where they begin: ``[lanes]`` of joined leaves, see
        `starts_of_lanes`, or ``[]`` of one leaf; None for the beginning of a leaf.
    """
    along = threefry.positions(size)
    if starts is None:
        return along
    if starts.ndim == 0:
        return starts + along
    return spread(starts) + (along & np.uint32(LANE - 1))


def words(key_words: jax.Array, positions: jax.Array) -> jax.Array:
    """Draws the words of one worker: `threefry.words` of one leaf or of joined ones.

    Args:
      key_words: uint32 ``[2]``, or ``[lanes, 2]`` of joined leaves.
      positions: uint32 ``[d]``.
    """
    if key_words.ndim == 2:
        halves = [spread(key_words[:, half]) for half in range(2)]
        key_words = jnp.stack(halves, axis=-1)
    return threefry.words(key_words, positions)
