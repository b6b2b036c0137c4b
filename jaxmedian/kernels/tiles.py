"""Go through the coordinates of rows ``[M, d]`` tile by tile: a tile stays in cache.

What is computed of a tile of columns needs no other columns: a median, a trimmed mean.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.noise.lanes import LANE

# Keys a tile. On CPU a tile of 4 MB stays in the second-level caches through all passes
# over it, and is large enough for XLA to share each between the cores (of 2^17 to 2^21
# none differed by more than a tenth). A GPU or TPU wants few, large kernels.
CPU_TILE = 2**20
DEVICE_TILE = 2**26


def by_platform(
    compute: Callable[[int], jax.Array], *, cpu: int, device: int
) -> jax.Array:
    """Computes with the tile size of the platform that the program is compiled for."""
    if cpu == device:
        return compute(cpu)
    return jax.lax.platform_dependent(
        cpu=lambda: compute(cpu), default=lambda: compute(device)
    )


def map_tiles(
    of_tile: Callable[[jax.Array, int], jax.Array],
    size: int,
    num_rows: int,
    dtype: jnp.dtype,
    origins: Sequence[jax.Array | None],
) -> jax.Array:
    """Joins the results of all tiles; the last begins early if the size is no multiple.

    A tile is stored a step after it was computed, since XLA on CPU keeps one thread for
    what it computes and stores at once.

    Args:
      of_tile: (first coordinate, uint32; coordinates, an int) -> their results
        ``[coordinates]``.
      size: d.
      num_rows: M, rows that a tile reads.
      dtype: of the results.
      origins: what the results are computed from: they vary over a mesh as these do.

    Returns:
      ``[d]``.
    """

    def width(keys_per_tile: int) -> int:
        num_tiles = max(1, -(-size * num_rows // keys_per_tile))
        # Whole lanes, so that joined leaves are cut between two of them.
        return min(size, -(-size // (LANE * num_tiles)) * LANE)

    return by_platform(
        lambda tile_size: _map_tiles(of_tile, size, dtype, origins, tile_size),
        cpu=width(CPU_TILE),
        device=width(DEVICE_TILE),
    )


def _map_tiles(
    of_tile: Callable[[jax.Array, int], jax.Array],
    size: int,
    dtype: jnp.dtype,
    origins: Sequence[jax.Array | None],
    tile_size: int,
) -> jax.Array:
    if tile_size == size:
        return of_tile(jnp.uint32(0), size)
    # The loop starts from any value that varies over a mesh as the results will.
    first = [x.reshape(-1)[0].astype(dtype) for x in origins if x is not None]
    anything = jnp.full([tile_size], reduce(jnp.add, first))
    num_tiles = -(-size // tile_size)
    starts = np.minimum(np.arange(num_tiles) * tile_size, size - tile_size)

    def step(previous: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        return of_tile(start, tile_size), previous

    last, results = jax.lax.scan(step, anything, jnp.asarray(starts, jnp.uint32))
    overlap = num_tiles * tile_size - size
    return jnp.concatenate([results[1:].reshape(-1), last[overlap:]])
