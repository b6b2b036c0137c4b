"""Draw all that is random about one step, leaf by leaf: noise, and the bits of ties.

`draw` turns a `Noise`, a key and the gradients of one step into the `LeafDraws` of each
leaf: it evaluates the scale and derives the keys, nothing more. Aggregators draw the
words while they count; `add_worker_noise` adds the noise to the gradients themselves,
for chains in which something stands between noise and aggregator.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels.rows import working_dtype
from jaxmedian.noise import Noise, PerCoordinate, Relative, keys, threefry
from jaxmedian.noise.laws import LAWS
from jaxmedian.noise.leaf_noise import LeafNoise, systematic_slots
from jaxmedian.transforms.noise_scales import (
    coordinate_scales,
    relative_scales,
    running_squares,
)
from jaxmedian.workers.population import Population

_MOST_SYSTEMATIC_WORKERS = 65_535  # slots are computed in 32-bit integers


class RunningScaleState(NamedTuple):
    """State of a transform whose noise follows running mean squares, coordinate-wise.

    Attributes:
      count: the step it is at, int32.
      rng_key: its unchanging key.
      mean_squares: tree like the parameters, float32 (float64 for float64): the mean
        over workers of g_ij^2, averaged over the steps in which it was sent.
    """

    count: jax.Array  # type: ignore[assignment]
    rng_key: jax.Array
    mean_squares: Any


DrawState = keys.KeyState | RunningScaleState


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

    def zeros(leaf: Any) -> jax.Array:
        return jnp.zeros(jnp.shape(leaf), working_dtype(leaf.dtype))

    return RunningScaleState(*state, jax.tree.map(zeros, params))


class LeafDraws(NamedTuple):
    """All that is random about one leaf in one step.

    Attributes:
      noise: what workers add to their rows, or None.
      zero_keys: uint32 ``[m, 2]``, keys of the bits of workers without a sign, or None.
      tie_bits: int32 ``[d]`` of +-1, how ties end, or None.
    """

    noise: LeafNoise | None = None
    zero_keys: jax.Array | None = None
    tie_bits: jax.Array | None = None

    def of_workers(self, first: jax.Array, count: int) -> "LeafDraws":
        """Returns the draws of local workers ``first`` to ``first + count - 1``."""

        def block(per_worker: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(per_worker, first, count)

        noise, zero_keys = self.noise, self.zero_keys
        if noise is not None and noise.slots is not None:
            # Tied to the block, or XLA draws the shared words once, before the loop
            # over blocks, and keeps a word per coordinate in memory.
            key_words, _ = jax.lax.optimization_barrier((noise.key_words, first))
            noise = noise._replace(key_words=key_words, slots=block(noise.slots))
        elif noise is not None:
            noise = noise._replace(key_words=block(noise.key_words))
        zero_keys = None if zero_keys is None else block(zero_keys)
        return LeafDraws(noise, zero_keys, self.tie_bits)


def draw(
    noise: Noise | None,
    random_ties: bool,
    state: DrawState,
    tree: Any,
    population: Population,
) -> tuple[list[LeafDraws], DrawState]:
    """Draws the step at ``state`` for each leaf ``[m, ...]`` of a tree.

    Args:
      noise: what workers add, or None.
      random_ties: whether to draw the fair bits of a vote.
      state: which step of which key.
      tree: the updates, or their shapes.
      population: the workers, m of them on this device.

    Returns:
      The draws of each leaf, and the state of the next step.
    """
    leaves = jax.tree.leaves(tree)
    leaf_keys = keys.leaf_keys(state, keys.leaf_positions(tree))
    draws = [LeafDraws()] * len(leaves)
    after: DrawState = keys.next_state(state)
    if noise is not None:
        scales, after = _scales(noise, state, leaves, population)
        noises = _leaf_noises(noise, scales, leaf_keys, population)
        draws = [LeafDraws(leaf_noise) for leaf_noise in noises]
    if not random_ties:
        return draws, after
    zero_numbers = population.numbers() + keys.ZERO_BITS
    with_bits = []
    for leaf, leaf_draws, leaf_key in zip(leaves, draws, leaf_keys, strict=True):
        zero_keys = jax.random.key_data(keys.fold_in_each(leaf_key, zero_numbers))
        tie_key = jax.random.key_data(jax.random.fold_in(leaf_key, keys.TALLY_TIES))
        positions = threefry.positions(math.prod(leaf.shape[1:]))
        tie_bits = threefry.fair_bit(threefry.words(tie_key, positions))
        with_bits.append(LeafDraws(leaf_draws.noise, zero_keys, tie_bits))
    return with_bits, after


def follows_gradients(noise: Noise | None) -> bool:
    """Returns whether the scale of the noise needs the gradients of all workers."""
    return noise is not None and isinstance(noise.scale, Relative | PerCoordinate)


def add_noise(rows: jax.Array, noise: LeafNoise | None) -> jax.Array:
    """Returns g_i + b xi_i for rows ``[m, d]``, in the dtype of the noise."""
    if noise is None:
        return rows
    workers = jnp.arange(rows.shape[0])
    positions = threefry.positions(rows.shape[1])
    return jax.vmap(noise.noisy_row, in_axes=(0, 0, None))(workers, rows, positions)


def _leaf_noises(
    noise: Noise,
    scales: list[jax.Array],
    leaf_keys: jax.Array,
    population: Population,
) -> list[LeafNoise]:
    """Resolves the words of the noise of every leaf, for the local workers."""
    law = LAWS[noise.law]
    if noise.coupling == "systematic":
        slots = _slots(leaf_keys, population)
        words = jax.random.key_data(
            jax.vmap(jax.random.fold_in, (0, None))(leaf_keys, keys.SHARED_UNIFORM)
        )
        return [
            LeafNoise(law, scale, words[leaf], slots[leaf])
            for leaf, scale in enumerate(scales)
        ]
    words = jax.random.key_data(
        jax.vmap(keys.fold_in_each, (0, None))(leaf_keys, population.numbers())
    )
    return [
        LeafNoise(law, scale, words[leaf], None) for leaf, scale in enumerate(scales)
    ]


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
    if not isinstance(scale, PerCoordinate):
        value = _number("scale of the noise", scale, state.count)
        wide = [np.promote_types(leaf.dtype, np.float32) for leaf in leaves]
        return [value.astype(dtype) for dtype in wide], after
    factor = _number("factor of the noise", scale.factor, state.count)
    if not isinstance(state, RunningScaleState):
        sizes = coordinate_scales(scale.statistic, leaves, population)
        return [factor.astype(size.dtype) * size for size in sizes], after
    before, treedef = jax.tree.flatten(state.mean_squares)
    squares = running_squares(scale, state.count, before, leaves, population)
    scales = [factor.astype(x.dtype) * jnp.sqrt(x.reshape(-1)) for x in squares]
    return scales, RunningScaleState(*after, jax.tree.unflatten(treedef, squares))


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


def check_noise(transform: str, noise: Any) -> None:
    """Raises TypeError unless ``noise`` is a `Noise`."""
    if not isinstance(noise, Noise):
        raise TypeError(
            f"`{transform}` expects a `Noise`, e.g. `jaxmedian.noise.gaussian(0.01)`; "
            f"got {noise!r}."
        )


def check_key(
    transform: str, noise: Noise | None, key: Any, *, random_ties: bool
) -> jax.Array | None:
    """Returns the key of a transform that draws, None for one that does not."""
    if noise is not None:
        check_noise(transform, noise)
    if noise is None and not random_ties:
        if key is not None:
            raise ValueError(
                f"`{transform}` was given a `key` but nothing to draw: leave it out, "
                "or pass a `noise`."
            )
        return None
    if key is None:
        what = "noise" if noise is not None else '`ties="random"`'
        raise ValueError(
            f"`{transform}` needs a `key` for its {what}; pass e.g. "
            "`jax.random.key(0)`."
        )
    return keys.as_threefry_key(key)
