"""Go through the coordinates of rows ``[M, d]`` tile by tile: a tile stays in cache.

What is computed of a tile of columns needs no other columns: a median, a trimmed mean.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.noise.threefry import LANE

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


def filled_like(
    shape: Sequence[int], dtype: jnp.dtype, origins: Sequence[jax.Array | None]
) -> jax.Array:
    """Returns an array of anything for a loop over tiles to start from.

    It varies over a mesh as the results will that are computed from the origins.
    """
    first = [x.reshape(-1)[0].astype(dtype) for x in origins if x is not None]
    return jnp.full(shape, reduce(jnp.add, first))


def _map_tiles(
    of_tile: Callable[[jax.Array, int], jax.Array],
    size: int,
    dtype: jnp.dtype,
    origins: Sequence[jax.Array | None],
    tile_size: int,
) -> jax.Array:
    if tile_size == size:
        return of_tile(jnp.uint32(0), size)
    anything = filled_like([tile_size], dtype, origins)
    num_tiles = -(-size // tile_size)
    starts = np.minimum(np.arange(num_tiles) * tile_size, size - tile_size)

    def step(previous: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        return of_tile(start, tile_size), previous

    last, results = jax.lax.scan(step, anything, jnp.asarray(starts, jnp.uint32))
    overlap = num_tiles * tile_size - size
    return jnp.concatenate([results[1:].reshape(-1), last[overlap:]])


def cpu_width(num_rows: int, most: int) -> int:
    """Returns the coordinates of a tile on CPU: whole lanes, at most ``most``."""
    return min(most, max(1, CPU_TILE // num_rows // LANE) * LANE)


Tile = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
_Stored = tuple[jax.Array, jax.Array, jax.Array]  # results, one more tile, its place


def map_tiles_of_leaves(
    of_tile: Tile, leaves: Sequence[jax.Array], tile_size: int, dtype: jnp.dtype
) -> list[jax.Array]:
    """Goes through the tiles of several leaves in one loop: one kernel serves them all.

    A kernel that takes long to compile is compiled once, not once a leaf. Each tile is
    copied to one place first, where it stays in cache.

    Args:
      of_tile: (rows ``[M, tile_size]``, number of the leaf, first coordinate, uint32)
        -> their results ``[tile_size]``.
      leaves: rows ``[M, d_i]`` of one dtype, each d_i at least ``tile_size``.
      tile_size: coordinates a tile; the last of a leaf begins early.
      dtype: of the results.

    Returns:
      The results ``[d_i]`` of each leaf.
    """
    sizes = [leaf.shape[1] for leaf in leaves]
    counts = [-(-size // tile_size) for size in sizes]
    leaf_of_tile = np.repeat(np.arange(len(leaves), dtype=np.int32), counts)
    starts = np.concatenate(
        [
            np.minimum(np.arange(count) * tile_size, size - tile_size)
            for count, size in zip(counts, sizes, strict=True)
        ]
    ).astype(np.uint32)
    begins = np.cumsum([0, *sizes])  # of the leaves among all results
    places = begins[leaf_of_tile].astype(np.uint32) + starts

    def cut(leaf: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return lambda start: jax.lax.dynamic_slice_in_dim(leaf, start, tile_size, 1)

    branches = [cut(leaf) for leaf in leaves]

    def step(carry: _Stored, tile: tuple[jax.Array, ...]) -> tuple[_Stored, None]:
        # Stored a step later, as in `map_tiles`.
        results, previous, place = carry
        results = jax.lax.dynamic_update_slice_in_dim(results, previous, place, 0)
        leaf, start, next_place = tile
        rows = jax.lax.switch(leaf, branches, start)
        return (results, of_tile(rows, leaf, start), next_place), None

    results = filled_like([sum(sizes)], dtype, leaves)
    start = results, results[:tile_size], jnp.uint32(0)
    (results, last, place), _ = jax.lax.scan(
        step, start, tuple(jnp.asarray(x) for x in (leaf_of_tile, starts, places))
    )
    results = jax.lax.dynamic_update_slice_in_dim(results, last, place, 0)
    return jnp.split(results, begins[1:-1])
