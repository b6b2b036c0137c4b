"""All that is random about one step, dealt out leaf by leaf.

Noise, the fair bits of workers without a sign and the fair bits of tied tallies come
from branches of the same key tree (`jaxmedian._keys`).
"""

import math
from typing import Any, NamedTuple

import jax

from jaxmedian import _keys, perturbation
from jaxmedian._workers import Population
from jaxmedian.kernels import random_bits
from jaxmedian.kernels.leaf_noise import LeafNoise
from jaxmedian.noise import Noise


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
            # over blocks, and keeps a word a coordinate in memory.
            key_words, _ = jax.lax.optimization_barrier((noise.key_words, first))
            noise = noise._replace(key_words=key_words, slots=block(noise.slots))
        elif noise is not None:
            noise = noise._replace(key_words=block(noise.key_words))
        zero_keys = None if zero_keys is None else block(zero_keys)
        return LeafDraws(noise, zero_keys, self.tie_bits)


def draw(
    noise: Noise | None,
    random_ties: bool,
    state: _keys.KeyState,
    leaves: list[jax.Array],
    population: Population,
) -> list[LeafDraws]:
    """Deals the draws of the step at ``state`` to leaves ``[m, ...]``."""
    noises: list[Any] = [None] * len(leaves)
    if noise is not None:
        noises = perturbation.resolve(noise, state, leaves, population)
    if not random_ties:
        return [LeafDraws(leaf_noise) for leaf_noise in noises]
    leaf_keys = _keys.leaf_keys(state, len(leaves))
    zero_numbers = population.numbers() + _keys.ZERO_BITS
    draws = []
    for leaf, leaf_noise, leaf_key in zip(leaves, noises, leaf_keys, strict=True):
        zero_keys = jax.random.key_data(_keys.fold_in_each(leaf_key, zero_numbers))
        tie_key = jax.random.key_data(jax.random.fold_in(leaf_key, _keys.TALLY_TIES))
        positions = random_bits.positions(math.prod(leaf.shape[1:]))
        tie_bits = random_bits.fair_bit(random_bits.words(tie_key, positions))
        draws.append(LeafDraws(leaf_noise, zero_keys, tie_bits))
    return draws
