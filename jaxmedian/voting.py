"""Tallies: the sum over workers of sign(g_i), counted without ever storing a vote.

    tally_j = sum_i sign(g_ij + b xi_ij)

A sign needs no sampled noise (see `LeafNoise.signed_row`), a tally needs one integer a
coordinate whatever the number of workers, and rows are added one by one: XLA reduces
over a leading axis many times slower. What a worker without a sign counts (0, -0.0 or
NaN), and how a tally ends, is the table of votes of `jaxmedian.ballots`.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian import random_bits
from jaxmedian.leaf_noise import LeafNoise

Vote = Callable[[int | jax.Array], jax.Array]  # worker -> int32 votes [d]

# Rows a loop step. In one expression, independent noise of 60 workers takes a minute to
# compile, and 101 rows of 10^6 numbers take 36 ms to add; by eights, 16 (2 CPU cores).
# Words of their own for each row are as fast by fours, and compile in half the time.
_BLOCK = 8
_BLOCK_WITH_WORDS = 4
_ABSTAINED = np.int32(2**16)  # fewer than 2^15 votes of +1 and -1 cannot hide it


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
    num_workers, size = rows.shape
    positions = random_bits.positions(size)
    # Drawn before the loop over workers: in it they would be drawn for every block.
    shared_words = None if noise is None else noise.shared_words(positions)

    def vote(worker: int | jax.Array, unsigned: jax.Array | np.int32) -> jax.Array:
        """Returns +1, -1, or where there is no sign ``unsigned``; 0 if absent."""
        value = rows[worker]
        if noise is not None:
            value = noise.signed_row(worker, value, positions, shared_words)
        one = np.int32(1)
        votes = jnp.where(value > 0, one, jnp.where(value < 0, -one, unsigned))
        return votes if present is None else jnp.where(present[worker], votes, 0 * one)

    def vote_or_draw(worker: int | jax.Array) -> jax.Array:
        assert zero_keys is not None
        words = random_bits.words(zero_keys[worker], positions)
        return vote(worker, random_bits.fair_bit(words))

    has_words = noise is not None and shared_words is None
    block_size = _BLOCK_WITH_WORDS if has_words else _BLOCK
    if ties != "random":
        unsigned = np.int32(ties == "positive")
        return _add_up(lambda i: vote(i, unsigned), num_workers, block_size)

    def count_with_bits() -> jax.Array:
        return _add_up(vote_or_draw, num_workers, _BLOCK_WITH_WORDS)

    if num_workers >= _ABSTAINED // 2:
        return count_with_bits()
    # Bits cost more than votes, and most leaves need none: count those without a sign
    # along with the votes, and start again with bits if there are any.
    tally = _add_up(lambda i: vote(i, _ABSTAINED), num_workers, block_size)
    somebody_abstained = jnp.any(tally > np.int32(num_workers))
    return jax.lax.cond(somebody_abstained, count_with_bits, lambda: tally)


def _add_up(vote: Vote, num_workers: int, block_size: int) -> jax.Array:
    """Adds the votes of all workers, a block of them a loop step."""

    def add(workers: Sequence[int | jax.Array], tally: jax.Array) -> jax.Array:
        return reduce(jnp.add, (vote(worker) for worker in workers), tally)

    def add_block(block: jax.Array, tally: jax.Array) -> jax.Array:
        start = first + block * block_size
        return add([start + i for i in range(block_size)], tally)

    first = num_workers % block_size or min(block_size, num_workers)
    tally = add(range(1, first), vote(0))
    num_blocks = (num_workers - first) // block_size
    return jax.lax.fori_loop(0, num_blocks, add_block, tally) if num_blocks else tally
