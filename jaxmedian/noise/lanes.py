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

from jaxmedian.noise.threefry import LANE


def padded_size(size: int) -> int:
    """Returns the coordinates of the lanes that a leaf of ``size`` coordinates takes.

    >>> padded_size(100), padded_size(128)
    (128, 128)
    """
    return -(-size // LANE) * LANE


def leaf_of_lane(sizes: Sequence[int]) -> np.ndarray:
    """Returns which of the leaves each lane belongs to, int ``[lanes]``.

    >>> leaf_of_lane([100, 300]).tolist()
    [0, 1, 1, 1]
    """
    return np.repeat(
        np.arange(len(sizes)), [padded_size(size) // LANE for size in sizes]
    )


def starts_of_lanes(sizes: Sequence[int]) -> np.ndarray:
    """Returns the position in its leaf of each lane's first entry, uint32 ``[lanes]``.

    >>> starts_of_lanes([100, 300]).tolist()
    [0, 0, 128, 256]
    """
    starts = [np.arange(0, size, LANE, dtype=np.uint32) for size in sizes]
    return np.concatenate(starts)


def join(leaves: Sequence[jax.Array], fill: float) -> jax.Array:
    """Joins leaves ``[..., d_i]`` end to end, each filled up to whole lanes.

    >>> join([jnp.zeros(100), jnp.zeros(300)], 1.0).shape
    (512,)
    """
    parts = []
    for leaf in leaves:
        parts.append(leaf)
        if rest := padded_size(leaf.shape[-1]) - leaf.shape[-1]:
            parts.append(jnp.full_like(leaf, fill, shape=(*leaf.shape[:-1], rest)))
    return jnp.concatenate(parts, axis=-1)
