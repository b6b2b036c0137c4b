"""The median over workers, coordinate by coordinate, from whole rows.

    median_j = median_i(g_ij + b xi_ij)

`jnp.median` sorts along the worker axis, one coordinate at a time. Here whole rows of
order keys are selected from: by a network of comparators for
up to about a hundred workers (`kernels.networks`), by bisection on the bits beyond
(`kernels.bisection`). The two agree bit for bit; `_plan` says which and why.

Only ranks are decided here; ties do not matter to a median. Noise is drawn by
`noise.leaf_noise`, collectives are `workers.collectives`' alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels import bisection, networks, shares
from jaxmedian.kernels.networks import from_order_keys, to_order_keys
from jaxmedian.kernels.rows import working_dtype, zeros_varying_like
from jaxmedian.kernels.tiles import map_tiles
from jaxmedian.noise.laws import Law
from jaxmedian.noise.leaf_noise import LeafNoise

EvenRule = Literal["midpoint", "lower", "upper"]
EVEN_RULES: tuple[EvenRule, ...] = get_args(EvenRule)

# What decides between the plans: nanoseconds a number (and seconds to compile) of
#
#      M   no noise                systematic uniform      independent Gaussian
#     11   fused      .09  (0.1)   fused       .22 (0.2)   fused      1.21 (0.5)
#     15   fused      .12  (0.1)   fused       .21 (0.4)   fused      1.36 (0.7)
#     16   fused      .11  (0.1)   fused       .20 (0.3)   network    1.61 (0.3)
#     31   fused      .15  (0.2)   fused       .19 (0.7)   network    1.65 (0.4)
#     51   fused      .19  (0.3)   network     .39 (0.5)   network    1.65 (0.5)
#    101   fused      .36  (0.8)   network     .50 (1.0)   network    1.74 (1.0)
#    112   fused      .42  (1.0)   network     .50 (1.2)   network    1.72 (1.4)
#    113   bisection 1.38  (0.5)   bisection  1.39 (0.5)   bisection  2.67 (0.7)
#    255   bisection 1.18  (0.6)   bisection  1.21 (0.6)   bisection  2.49 (0.9)
#  1,001   bisection 1.26  (0.5)   bisection  1.26 (0.7)   bisection  2.54 (0.6)
#
# float32, d = 10^6 (M = 1,001: 10^5), jitted, on 2 shared CPU cores (AVX-512): least of
# 9 calls' processor time, halved. `python -m experiments benchmark` times them again.
# A network of 160 rows ran at .9 and took 5 s to compile; fused, 51 rows of systematic
# Gaussian noise took 2.4 s and 63 of independent noise 45 s.
NETWORK_ROWS = 112
_FUSED_SYSTEMATIC_ROWS = 32
# XLA on CPU copies what makes the keys into each use of them, noise and all, unless
# there are 16 uses or more: then the tile's keys are stored. So no tiles below 16 rows.
_FUSED_INDEPENDENT_ROWS = 15


class _Plan(NamedTuple):
    """How the rows are selected from.

    Attributes:
      network: by a network, else by bisection.
      tiled: tile by tile of coordinates, each tile written to a buffer of keys
        ``[M, tile]`` first, else in one expression over the rows as they are.
    """

    network: bool
    tiled: bool


def _plan(num_workers: int, noise: LeafNoise | None) -> _Plan:
    """Decides how the rows are selected from; see the table above."""
    network = num_workers <= NETWORK_ROWS
    if noise is None:
        fused_rows = NETWORK_ROWS
    elif noise.slots is None:
        fused_rows = _FUSED_INDEPENDENT_ROWS
    else:
        fused_rows = _FUSED_SYSTEMATIC_ROWS
    return _Plan(network=network, tiled=num_workers > fused_rows)


def median_of_rows(
    rows: jax.Array,
    *,
    noise: LeafNoise | None,
    even: EvenRule,
    present: jax.Array | None,
) -> jax.Array:
    """Computes median_i(g_i + b xi_i) coordinate by coordinate.

    Args:
      rows: floating point ``[M, d]``, M >= 1.
      noise: b xi, or None for the plain median.
      even: which value ends an even count: "midpoint" (a/2 + b/2 of the middle two),
        "lower" or "upper".
      present: bool ``[M]``, or None if everybody is. With nobody present the median
        is 0.

    Returns:
      ``[d]``, in the noise's dtype if there is noise, else in that of the rows. Its
      derivatives by the rows and by the noise's scale are those of the selected rows,
      see `kernels.shares`: 1 and xi.
    """
    law, draws = (None, None) if noise is None else (noise.law, noise[1:])
    return _median(law, even, rows, draws, present)


# A `LeafNoise` without its law.
_Draws = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _median(
    law: Law | None,
    even: EvenRule,
    rows: jax.Array,
    draws: _Draws | None,
    present: jax.Array | None,
) -> jax.Array:
    noise = None if law is None or draws is None else LeafNoise(law, *draws)
    plan = _plan(rows.shape[0], noise)
    if not plan.tiled:
        return _fused_median(rows, noise, even, present)
    return _tiled_median(rows, noise, even, present, plan.network)


@_median.defjvp
def _median_jvp(
    law: Law | None, even: EvenRule, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    rows, draws, present = primals
    moves = tangents[0]
    median = _median(law, even, *primals)
    if law is not None:

        def add_noise(rows: jax.Array, scale: jax.Array) -> jax.Array:
            return LeafNoise(law, scale, *draws[1:]).noisy_rows(rows)

        arguments = (rows, draws[0]), (moves, tangents[1][0])
        rows, moves = jax.jvp(add_noise, *arguments)
    values = shares.stored(rows)
    low, high = middle_pair(values, even, present)
    masses = shares.masses_of(present, values)
    moved = shares.tangent_of_median(values, moves, masses, low, high)
    return median, moved.astype(median.dtype)


def middle_pair(
    values: jax.Array, even: EvenRule, present: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Selects the one or two values ``[d]`` of which the median is the midpoint."""
    ends: tuple[EvenRule, EvenRule] = (even, even)
    if even == "midpoint":
        ends = "lower", "upper"
    low, high = (_median(None, end, values, None, present) for end in ends)
    return low, high


def _fused_median(
    rows: jax.Array, noise: LeafNoise | None, even: EvenRule, present: jax.Array | None
) -> jax.Array:
    """Leaves it to XLA to melt noise and network into one pass over the rows."""
    values = list(rows)
    if noise is not None:
        positions = noise.positions(rows.shape[1])
        values = [noise.noisy_row(i, row, positions) for i, row in enumerate(rows)]
    keys = [to_order_keys(value) for value in values]
    if present is not None:
        fill = absent_keys(present, keys[0].dtype)
        keys = [jnp.where(present[i], key, fill[i]) for i, key in enumerate(keys)]
    select = partial(networks.select, keys)
    return middle(select, len(keys), even, present, values[0].dtype)


def _tiled_median(
    rows: jax.Array,
    noise: LeafNoise | None,
    even: EvenRule,
    present: jax.Array | None,
    network: bool,
) -> jax.Array:
    """Goes through tiles of coordinates, so that ``[M, d]`` noise never exists."""
    num_workers, size = rows.shape
    # Drawn before the loop, since in it XLA would draw them again for each worker.
    shared_words = None
    if noise is not None:
        shared_words = noise.shared_words(noise.positions(size))

    def median_of_tile(start: jax.Array, tile_size: int) -> jax.Array:
        def tile(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, tile_size, axis=-1)

        values = tile(rows)
        if noise is not None:
            shared = None if shared_words is None else tile(shared_words)
            of_tile = noise.of_tile(start, tile_size)
            positions = of_tile.positions(tile_size)
            values = jax.vmap(of_tile.noisy_row, (0, 0, None, None))(
                jnp.arange(num_workers), values, positions, shared
            )
        keys = to_order_keys(values)
        if present is not None:
            fill = absent_keys(present, keys.dtype)
            keys = jnp.where(present[:, None], keys, fill[:, None])
        select = networks.select if network else bisection.select
        return middle(partial(select, keys), num_workers, even, present, values.dtype)

    dtype = rows.dtype if noise is None else noise.scale.dtype
    origins = [rows, present] if noise is None else [rows, present, *noise[1:]]
    return map_tiles(median_of_tile, size, num_workers, dtype, origins)


def middle(
    select: Callable[[tuple[int, ...]], list[jax.Array]],
    num_workers: int,
    even: EvenRule,
    present: jax.Array | None,
    dtype: jnp.dtype,
) -> jax.Array:
    """Selects the middle of the rows, or of those present if the absent are filled."""
    low, high = (num_workers - 1) // 2, num_workers // 2
    if present is None and (low == high or even != "midpoint"):
        rank = high if even == "upper" else low
        return from_order_keys(select((rank,))[0], dtype)
    if present is not None:
        high = min(low + 1, num_workers - 1)
    ranks = (low, high) if high > low else (low,)
    chosen = [from_order_keys(key, dtype) for key in select(ranks)]
    a, b = chosen[0], chosen[-1]
    if even == "midpoint":
        b = midpoint(a, b)
    if present is None:
        return b
    num_present = jnp.sum(present, dtype=jnp.int32)
    return a if even == "lower" else jnp.where(num_present % 2 == 0, b, a)


def absent_keys(present: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns keys ``[M]`` to fill in for the absent, below and above everybody.

    As many go below as it takes for the two fixed middle ranks of all M rows to fall on
    the two middle ranks of the n present ones, so one selection serves every mask.
    """
    num_below = (present.shape[0] - 1) // 2 - (
        jnp.sum(present, dtype=jnp.int32) - 1
    ) // 2  # 0 <= num_below <= M - n
    place = jnp.cumsum(~present, dtype=jnp.int32) - 1  # among the absent
    limits = jnp.iinfo(dtype)
    lowest, largest = np.asarray(limits.min, dtype), np.asarray(limits.max, dtype)
    fill = jnp.where(place < num_below, lowest, largest)
    # Of nobody the median is 0, whose key is 0. Put here, not in place of the result:
    # a choice there would keep XLA from contracting it with what comes after, in some
    # programs and not in others.
    return jnp.where(jnp.any(present), fill, zeros_varying_like(fill))


def midpoint(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a/2 + b/2 in the dtype of a."""
    # Not a / 2 + b / 2: XLA would factor the half out, and a + b may overflow.
    wide = working_dtype(a.dtype)
    half = np.asarray(0.5, wide)
    return (a.astype(wide) * half - b.astype(wide) * -half).astype(a.dtype)
