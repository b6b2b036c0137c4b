"""Choose a subset of the workers from their distances ``[M, M]``.

    peel             one worker after the other, each time Krum's choice of those left
    least_diameter   the subset of one size whose farthest pair is nearest, exactly

Everything here is about M x M numbers; gradients are read before, and after.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels.distances import scores


def peel(
    squared: jax.Array,
    left: jax.Array,
    sound: jax.Array,
    wanted: jax.Array,
    cut: int,
) -> jax.Array:
    """Takes workers away one by one: each time the one with the closest neighbours.

    Of r who are left, r - ``cut`` nearest others score, at least one. Of equal scores
    the lowest number goes.

    Args:
      squared: squared distances ``[M, M]``.
      left: bool ``[M]``, from whom to take, and whose distances count.
      sound: bool ``[M]``, who may be taken.
      wanted: how many to take, int32; fewer if there are not so many.
      cut: of those left, how many do not score.

    Returns:
      bool ``[M]``, who was taken.
    """
    order = jnp.argsort(squared, axis=1)
    ascending = jnp.take_along_axis(squared, order, axis=1)
    numbers = jnp.arange(len(squared), dtype=order.dtype)
    is_other = order != numbers[:, None]

    def take(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, num_taken = state
        is_left = left[order] & is_other
        place = jnp.cumsum(is_left, axis=1, dtype=jnp.int32)
        scoring = jnp.maximum(jnp.sum(left, dtype=jnp.int32) - np.int32(cut), 1)
        num_far, score = scores(ascending, is_left & (place <= scoring))
        # The last key is the first to be compared; sorting is stable.
        best = jnp.lexsort([score, num_far, ~(left & sound)])[0]
        return left & (numbers != best), num_taken + np.int32(1)

    def goes_on(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        left, num_taken = state
        return (num_taken < wanted) & jnp.any(left & sound)

    rest, _ = jax.lax.while_loop(goes_on, take, (left, jnp.zeros_like(wanted)))
    return left & ~rest


def least_diameter(
    squared: jax.Array, candidates: jax.Array, num_kept: jax.Array, num_dropped: int
) -> jax.Array:
    """Finds the subset whose largest distance is the least.

    Take a best subset. As long as it lies in what is kept, at most one end of the
    farthest pair kept belongs to it, or it is no nearer than everybody kept. So a tree
    of 2^num_dropped branches, dropping one end of that pair in each, meets a best
    subset; there are far more subsets than branches. A second tree knows the least
    diameter, need not drop more of a pair once all are as near, and meets them all.

    Args:
      squared: squared distances ``[M, M]``.
      candidates: bool ``[M]``, whom to choose from.
      num_kept: size of the subset, int32, at least 1; if there are not so many
        candidates, all are kept.
      num_dropped: the most candidates that there may be beyond that.

    Returns:
      bool ``[M]``. Of subsets of the same diameter the one whose sorted numbers come
      first.
    """
    if num_dropped == 0:
        return candidates
    num_workers = len(squared)
    ends = jnp.asarray(np.triu_indices(num_workers, 1), jnp.int32)
    lengths = squared[ends[0], ends[1]]
    by_length = jnp.argsort(-lengths)
    longest, ends = lengths[by_length], ends[:, by_length]
    numbers = jnp.arange(num_workers, dtype=jnp.int32)
    is_end = jnp.any(ends[:, None] == numbers[None, :, None], axis=0)
    surplus = jnp.sum(candidates, dtype=jnp.int32) - num_kept
    branches = jnp.arange(2**num_dropped, dtype=jnp.int32)

    def farthest(kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns each branch's farthest pair kept ``[B]``, and its length."""
        num_ends = kept.astype(jnp.float32) @ is_end.astype(jnp.float32)
        both = num_ends > np.float32(1.5)
        pair = jnp.argmax(both, axis=1)
        nothing = np.asarray(0, squared.dtype)
        return pair, jnp.where(jnp.any(both, axis=1), longest[pair], nothing)

    def grow(near_enough: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns what the branches keep ``[B, M]``, and their diameters ``[B]``."""

        def drop(level: jax.Array, kept: jax.Array) -> jax.Array:
            pair, length = farthest(kept)
            goes = jnp.where(branches >> level & 1 == 0, ends[0, pair], ends[1, pair])
            last = jnp.max(jnp.where(kept, numbers[None], 0), axis=1)
            goes = jnp.where(length <= near_enough, last, goes)
            return kept & ((goes[:, None] != numbers[None]) | (surplus <= level))

        everybody = jnp.broadcast_to(candidates, (len(branches), num_workers))
        kept = jax.lax.fori_loop(np.int32(0), np.int32(num_dropped), drop, everybody)
        return kept, farthest(kept)[1]

    # The first tree asks for a pair in every branch: no length is below 0.
    _, diameters = grow(jnp.asarray(-1, squared.dtype))
    least = jnp.min(diameters)
    subsets, diameters = grow(least)

    def prefer_with(worker: jax.Array, best: jax.Array) -> jax.Array:
        has = best & subsets[:, worker]
        return jnp.where(jnp.any(has), has, best)

    best = jax.lax.fori_loop(0, num_workers, prefer_with, diameters <= least)
    return subsets[jnp.argmax(best)]
