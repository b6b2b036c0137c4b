"""Votes and tallies: the sum over workers of sign(g_i), and how it ends.

    tally_j = sum_i sign(g_ij + b xi_ij),      vote_j = sign(tally_j)

A sign needs no sampled noise (see `LeafNoise.signed_row`), a tally needs one int32 a
coordinate whatever the number of workers, and rows are added one by one: XLA reduces
over a leading axis many times slower. What a worker without a sign counts (0, -0.0 or
NaN) and how a tally of 0 ends is the table of votes in the README.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian import random_bits
from jaxmedian.leaf_noise import LeafNoise

TIE_RULES = ("zero", "random", "positive")
_BLOCK = 8  # rows a loop step; unrolled further, noise takes minutes to compile


def count_votes(
    rows: jax.Array,
    *,
    noise: LeafNoise | None,
    ties: str,
    zero_keys: jax.Array | None,
    present: jax.Array | None,
) -> jax.Array:
    """Adds up the votes of the workers for each coordinate.

    Args:
      rows: floating point ``[M, d]``, M >= 1.
      noise: b xi, or None for the plain vote.
      ties: "zero", "random" or "positive": here, what a worker without a sign counts.
      zero_keys: uint32 ``[M, 2]``, key of each worker's random bits; for "random".
      present: bool ``[M]``, or None if everybody is.

    Returns:
      int32 ``[d]``: votes for + minus votes for -.
    """
    positions = random_bits.positions(rows.shape[1])

    def vote(worker: int | jax.Array) -> jax.Array:
        row = rows[worker]
        value = row if noise is None else noise.signed_row(worker, row, positions)
        above, below = value > 0, value < 0
        vote = above.astype(jnp.int32) - below.astype(jnp.int32)
        if ties == "positive":
            vote = jnp.where(below, np.int32(-1), np.int32(1))
        elif ties == "random":
            assert zero_keys is not None
            bit = random_bits.fair_bit(random_bits.words(zero_keys[worker], positions))
            vote = jnp.where(above | below, vote, bit)
        if present is not None:
            vote = vote * present[worker].astype(jnp.int32)
        return vote

    num_workers = rows.shape[0]
    first = num_workers % _BLOCK or _BLOCK
    tally = sum((vote(i) for i in range(1, min(first, num_workers))), vote(0))

    def add_block(block: jax.Array, tally: jax.Array) -> jax.Array:
        start = first + block * _BLOCK
        return sum((vote(start + i) for i in range(_BLOCK)), tally)

    num_blocks = (num_workers - first) // _BLOCK
    return jax.lax.fori_loop(0, num_blocks, add_block, tally) if num_blocks else tally


def decide(
    tally: jax.Array,
    *,
    ties: str,
    tie_key: jax.Array | None,
    anybody: jax.Array | None,
) -> jax.Array:
    """Turns tallies into votes.

    Args:
      tally: int32 ``[d]``.
      ties: how a tally of 0 ends: 0 ("zero"), a fair bit ("random"), +1 ("positive").
      tie_key: uint32 ``[2]``, key of the fair bits; for "random".
      anybody: bool scalar, whether somebody was present; None if so for sure.

    Returns:
      int32 ``[d]`` of -1, 0, +1; all 0 where nobody was present.
    """
    vote = jnp.sign(tally)
    if ties == "positive":
        vote = jnp.where(tally < 0, np.int32(-1), np.int32(1))
    elif ties == "random":
        assert tie_key is not None
        positions = random_bits.positions(tally.shape[0])
        bit = random_bits.fair_bit(random_bits.words(tie_key, positions))
        vote = jnp.where(tally == 0, bit, vote)
    return vote if anybody is None else vote * anybody.astype(jnp.int32)
