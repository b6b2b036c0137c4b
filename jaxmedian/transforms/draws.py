"""Draw all that is random about one step, leaf by leaf: noise, and the bits of ties.

`draw` turns a `Noise`, a key and the gradients of one step into `Draws`: it evaluates
the scale and derives the keys, nothing more. Aggregators take from it the `LeafDraws`
of a leaf, or of small leaves joined end to end, and draw the words while they count;
`add_worker_noise` adds the noise to the gradients themselves, for chains in which
something stands between noise and aggregator.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels.rows import Group, working_dtype
from jaxmedian.noise import Noise, PerCoordinate, Relative, keys, lanes, threefry
from jaxmedian.noise.laws import LAWS, Law
from jaxmedian.noise.leaf_noise import LeafNoise, systematic_slots
from jaxmedian.transforms.noise_scales import (
    RunningScaleState,
    coordinate_scales,
    relative_scales,
)
from jaxmedian.workers.collectives import PyTree
from jaxmedian.workers.population import Population

DrawState = keys.KeyState | RunningScaleState

_MOST_SYSTEMATIC_WORKERS = 65_535  # slots are computed in 32-bit integers


def init_state(
    noise: Noise | None, rng_key: jax.Array, params: optax.Params
) -> DrawState:
    """Returns the state of a transform that draws, before its first step."""
    state = keys.init_state(rng_key)
    if not keeps_state(noise):
        return state
    if params is None:
        raise ValueError(
            '`per_coordinate(..., "rms")` keeps running mean squares like the '
            "parameters: call `init(params)`."
        )

    def nothing_yet(leaf: jax.Array) -> jax.Array:
        return jnp.full(jnp.shape(leaf), -0.0, working_dtype(jnp.result_type(leaf)))

    squares = jax.tree.map(nothing_yet, params)
    return RunningScaleState(*state, squares, jnp.zeros([], jnp.int32))


class LeafDraws(NamedTuple):
    """All that is random about one leaf, or leaves joined end to end, in one step.

    Attributes:
      noise: what workers add to their rows, or None.
      zero_keys: uint32 ``[m, 2]``, keys of the bits of workers without a sign, or None;
        of joined leaves ``[m, lanes, 2]``.
      tie_key: uint32 ``[2]``, key of the bits that end ties, or None; of joined leaves
        ``[lanes, 2]``.
      starts: where the rows begin in their leaves, see `threefry.positions`.
    """

    noise: LeafNoise | None = None
    zero_keys: jax.Array | None = None
    tie_key: jax.Array | None = None
    starts: jax.Array | None = None

    def tie_bits(self, size: int) -> jax.Array | None:
        """Draws how ties end, int32 ``[size]`` of +-1; None if not at random."""
        if self.tie_key is None:
            return None
        positions = threefry.positions(size, self.starts)
        return threefry.fair_bit(threefry.words_of_row(self.tie_key, positions))


class Draws(NamedTuple):
    """All that is random about a step, of all L leaves.

    Attributes:
      law: of the noise, None without noise.
      scales: b of each leaf, of shape (), or one for each coordinate, ``[n]``: of all
        that is computed as one with the leaf.
      one_scale: whether b is one number for all leaves.
      key_words: uint32 ``[L, m, 2]``, or ``[L, 2]`` if workers share their words.
      slots: uint32 ``[L, m]`` if they do.
      zero_keys: uint32 ``[L, m, 2]``, keys of the bits of workers without a sign.
      tie_keys: uint32 ``[L, 2]``, keys of the bits that end ties.
    """

    law: Law | None = None
    scales: tuple[jax.Array, ...] = ()
    one_scale: bool = True
    key_words: jax.Array | None = None
    slots: jax.Array | None = None
    zero_keys: jax.Array | None = None
    tie_keys: jax.Array | None = None

    def of_leaf(
        self, leaf: int | jax.Array, start: jax.Array | None = None
    ) -> LeafDraws:
        """Returns the draws of one leaf.

        Args:
          leaf: its position among all; traced if scales are single numbers.
          start: position of the first coordinate, uint32; None for 0.
        """
        noise = None
        if self.law is not None:
            assert self.key_words is not None
            slots = None if self.slots is None else self.slots[leaf]
            scale = self.scales[leaf] if isinstance(leaf, int) else self._scale_of(leaf)
            noise = LeafNoise(self.law, scale, self.key_words[leaf], slots, start)
        zero_keys = None if self.zero_keys is None else self.zero_keys[leaf]
        tie_key = None if self.tie_keys is None else self.tie_keys[leaf]
        return LeafDraws(noise, zero_keys, tie_key, start)

    def _scale_of(self, leaf: jax.Array) -> jax.Array:
        return self.scales[0] if self.one_scale else jnp.stack(self.scales)[leaf]

    def of_leaves(self, leaves: Sequence[int]) -> "Draws":
        """Returns the draws of some of the leaves, by their positions among all."""
        chosen = np.asarray(leaves)

        def some(x: jax.Array | None) -> jax.Array | None:
            return None if x is None else x[chosen]

        return self._replace(
            scales=tuple(self.scales[leaf] for leaf in leaves) if self.scales else (),
            key_words=some(self.key_words),
            slots=some(self.slots),
            zero_keys=some(self.zero_keys),
            tie_keys=some(self.tie_keys),
        )

    def of_group(self, group: Group) -> LeafDraws:
        """Returns the draws of leaves that are computed as one."""
        if not group.in_lanes:
            return self.of_leaf(group.members[0])
        leaves, sizes = group.members, group.sizes
        starts = jnp.asarray(lanes.starts_of_lanes(sizes))
        leaf_of_lane = np.asarray(leaves)[lanes.leaf_of_lane(sizes)]

        def of_lanes(x: jax.Array | None, axis: int) -> jax.Array | None:
            """Looks up a leaf for every lane, and moves the lanes to an axis."""
            return None if x is None else jnp.moveaxis(x[leaf_of_lane], 0, axis)

        noise = None
        if self.law is not None:
            key_words, slots = of_lanes(self.key_words, -2), of_lanes(self.slots, -1)
            assert key_words is not None
            scale = self._joined_scale(leaves, sizes)
            noise = LeafNoise(self.law, scale, key_words, slots, starts)
        zero_keys, tie_key = of_lanes(self.zero_keys, -2), of_lanes(self.tie_keys, -2)
        return LeafDraws(noise, zero_keys, tie_key, starts)

    def _joined_scale(self, leaves: Sequence[int], sizes: Sequence[int]) -> jax.Array:
        first = self.scales[leaves[0]]
        if self.one_scale or first.ndim:
            return first
        scales = jnp.stack([self.scales[leaf] for leaf in leaves])
        return threefry.spread(scales[lanes.leaf_of_lane(sizes)])

    def of_workers(self, first: jax.Array, count: int) -> "Draws":
        """Returns the draws of local workers ``first`` to ``first + count - 1``."""

        def block(per_worker: jax.Array | None) -> jax.Array | None:
            if per_worker is None:
                return None
            return jax.lax.dynamic_slice_in_dim(per_worker, first, count, axis=1)

        key_words = self.key_words
        if self.slots is None:
            key_words = block(key_words)
        else:
            # Tied to the block, or XLA draws the shared words once, before the loop
            # over blocks, and keeps a word per coordinate in memory.
            key_words, _ = jax.lax.optimization_barrier((key_words, first))
        return self._replace(
            key_words=key_words,
            slots=block(self.slots),
            zero_keys=block(self.zero_keys),
        )


def draw(
    noise: Noise | None,
    random_ties: bool,
    state: DrawState,
    tree: PyTree,
    population: Population,
) -> tuple[Draws, DrawState]:
    """Draws the step at ``state`` for the leaves ``[m, ...]`` of a tree.

    Args:
      noise: what workers add, or None.
      random_ties: whether to draw the fair bits of a vote.
      state: which step of which key.
      tree: the updates, or their shapes.
      population: the workers, m of them on this device.

    Returns:
      The draws of all leaves, and the state of the next step.
    """
    leaves = jax.tree.leaves(tree)
    leaf_keys = keys.leaf_keys(state, keys.leaf_positions(tree))
    draws = Draws()
    after: DrawState = keys.next_state(state)
    if noise is not None:
        scales, after = _scales(noise, state, leaves, population)
        draws = _draws_of_noise(noise, scales, leaf_keys, population)
    if random_ties:
        zero_numbers = population.numbers() + keys.ZERO_BITS
        zero_keys = jax.vmap(keys.fold_in_each, (0, None))(leaf_keys, zero_numbers)
        tie_keys = jax.vmap(jax.random.fold_in, (0, None))(leaf_keys, keys.TALLY_TIES)
        draws = draws._replace(
            zero_keys=jax.random.key_data(zero_keys),
            tie_keys=jax.random.key_data(tie_keys),
        )
    return draws, after


def follows_gradients(noise: Noise | None) -> bool:
    """Returns whether the scale of the noise needs the gradients of all workers."""
    return noise is not None and isinstance(noise.scale, Relative | PerCoordinate)


def add_noise(rows: jax.Array, noise: LeafNoise | None) -> jax.Array:
    """Returns g_i + b xi_i for rows ``[m, d]``, in the dtype of the noise."""
    if noise is None:
        return rows
    return noise.noisy_rows(rows)


def _draws_of_noise(
    noise: Noise,
    scales: list[jax.Array],
    leaf_keys: jax.Array,
    population: Population,
) -> Draws:
    """Resolves the words of the noise of every leaf, for the local workers."""
    slots = None
    if noise.coupling == "systematic":
        slots = _slots(leaf_keys, population)
        shared = jax.vmap(jax.random.fold_in, (0, None))
        folded = shared(leaf_keys, keys.SHARED_UNIFORM)
    else:
        each = jax.vmap(keys.fold_in_each, (0, None))
        folded = each(leaf_keys, population.numbers())
    return Draws(
        LAWS[noise.law],
        tuple(scales),
        one_scale=not isinstance(noise.scale, Relative | PerCoordinate),
        key_words=jax.random.key_data(folded),
        slots=slots,
    )


def _scales(
    noise: Noise, state: DrawState, leaves: list[jax.Array], population: Population
) -> tuple[list[jax.Array], DrawState]:
    """Evaluates b >= 0 for every leaf, in the dtype in which its noise is computed.

    The laws are symmetric, so b and -b are one noise: a schedule that runs below 0
    does not turn votes round.
    """
    scale, after = noise.scale, keys.next_state(state)
    if isinstance(scale, Relative):
        return relative_scales(scale, leaves, population), after
    if isinstance(scale, PerCoordinate):
        factor = _number("factor of the noise", scale.factor, state.count)
        return coordinate_scales(scale, factor, state, leaves, population)
    value = _number("scale of the noise", scale, state.count)
    wide = [np.promote_types(leaf.dtype, np.float32) for leaf in leaves]
    return [value.astype(dtype) for dtype in wide], after


def _number(name: str, value: object, count: jax.Array) -> jax.Array:
    """Evaluates the magnitude of a number or of a schedule at step ``count``."""
    number = jnp.asarray(value(count) if callable(value) else value)
    if number.shape != ():
        raise ValueError(
            f"The {name} must be a scalar; the schedule returned shape {number.shape}."
        )
    return jnp.abs(number)


def keeps_state(noise: Noise | None) -> bool:
    """Returns whether the scale of the noise has a state that runs along."""
    scale = None if noise is None else noise.scale
    return isinstance(scale, PerCoordinate) and scale.statistic == "rms"


def _slots(leaf_keys: jax.Array, population: Population) -> jax.Array:
    """Draws the slots of systematic noise: uint32 ``[leaves, m]``, of local workers.

    Each leaf permutes the workers anew: the variance of a count, which depends on the
    permutation, averages within a step. Ranks are taken among the workers present, or
    the spacing of their noises, which is the point of it, would have holes.
    """
    num_workers = population.num_workers
    if num_workers > _MOST_SYSTEMATIC_WORKERS:
        raise ValueError(
            f"Systematic noise serves up to {_MOST_SYSTEMATIC_WORKERS} workers; got "
            f"{num_workers}. Use independent noise."
        )
    present = population.present_mask()
    numbers = population.numbers()

    def slots_of_leaf(leaf_key: jax.Array) -> jax.Array:
        permutation_key = jax.random.fold_in(leaf_key, keys.PERMUTATION)
        ranks = jax.random.permutation(permutation_key, num_workers).astype(jnp.uint32)
        num_slots = jnp.uint32(num_workers)
        if present is not None:
            counted = present.astype(jnp.uint32)
            in_order = jnp.zeros_like(counted).at[ranks].set(counted)
            ranks = (jnp.cumsum(in_order, dtype=jnp.uint32) - in_order)[ranks]
            num_slots = jnp.maximum(jnp.sum(counted, dtype=jnp.uint32), 1)
        return systematic_slots(ranks, num_slots)[numbers]

    return jax.vmap(slots_of_leaf)(leaf_keys)


def check_noise(transform: str, noise: object) -> None:
    """Raises TypeError unless ``noise`` is a `Noise`."""
    if not isinstance(noise, Noise):
        raise TypeError(
            f"`{transform}` expects a `Noise`, e.g. `jaxmedian.noise.gaussian(0.01)`; "
            f"got {noise!r}."
        )


def check_key(
    transform: str,
    noise: Noise | None,
    key: keys.Key | None,
    *,
    random_ties: bool = False,
    draws: str = "a `noise`",
) -> jax.Array | None:
    """Returns the key of a transform that draws, None for one that does not.

    ``draws`` says, to who gave a key for nothing, which of its options draw.
    """
    if noise is not None:
        check_noise(transform, noise)
    if noise is None and not random_ties:
        if key is not None:
            raise ValueError(
                f"`{transform}` was given a `key` but nothing to draw: leave it out, "
                f"or give {draws}."
            )
        return None
    if key is None:
        what = "noise" if noise is not None else '`ties="random"`'
        raise ValueError(
            f"`{transform}` needs a `key` for its {what}; pass e.g. "
            "`jax.random.key(0)`."
        )
    return keys.as_threefry_key(key)
