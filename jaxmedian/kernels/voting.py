"""Tallies: the sum over workers of sign(g_i), counted without ever storing a vote.

    tally_j = sum_i sign(g_ij + b xi_ij)

A sign needs no sampled noise (see `LeafNoise.signed_row`), a tally needs one integer a
coordinate whatever the number of workers, and votes are added row by row
(`kernels.row_sums`). What a worker without a sign counts (0, -0.0 or
NaN), and how a tally ends, is the table of votes of `kernels.ballots`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels import ballots, random_bits
from jaxmedian.kernels.leaf_noise import LeafNoise
from jaxmedian.kernels.row_sums import add_up

# A row that draws words for its noise and for its own ties too counts for two.
_BLOCK_WITH_TIES = 4
_ABSTAINED = np.int32(2**16)  # fewer than 2^15 votes of +1 and -1 cannot hide it


def count_votes(
    rows: jax.Array,
    *,
    noise: LeafNoise | None,
    ties: str,
    zero_keys: jax.Array | None,
    present: jax.Array | None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Adds up the votes of the workers for each coordinate.

    Args:
      rows: floating point ``[M, d]``, M >= 1.
      noise: b xi, or None for the plain vote.
      ties: "zero", "random" or "positive": here, what a worker without a sign counts.
      zero_keys: uint32 ``[M, 2]``, key of each worker's random bits; for "random",
        None if no entry can be without a sign any more.
      present: bool ``[M]``, or None if everybody is.
      weights: int32 or floating ``[M]``, how many votes each has, or None for one.

    Returns:
      ``[d]``: votes for + minus votes for -, int32 or of the type of the weights.
    """
    num_workers, size = rows.shape
    positions = random_bits.positions(size)
    # Drawn before the loop over workers: in it they would be drawn for every block.
    shared_words = None if noise is None else noise.shared_words(positions)

    absent = np.int32(0)

    def vote(worker: int | jax.Array, unsigned: jax.Array | np.int32) -> jax.Array:
        """Returns +1, -1, or where there is no sign ``unsigned``; 0 if absent."""
        value = rows[worker]
        if noise is not None:
            value = noise.signed_row(worker, value, positions, shared_words)
        votes = ballots.sign_or(value, unsigned)
        if weights is not None:  # 0 of the absent
            return votes.astype(weights.dtype) * weights[worker]
        return votes if present is None else jnp.where(present[worker], votes, absent)

    if ties != "random" or zero_keys is None:
        unsigned = np.int32(ties == "positive")
        return add_up(lambda i: vote(i, unsigned), num_workers)

    def vote_or_draw(worker: int | jax.Array) -> jax.Array:
        words = random_bits.words(zero_keys[worker], positions)
        return vote(worker, random_bits.fair_bit(words))

    def count_with_bits() -> jax.Array:
        return add_up(vote_or_draw, num_workers, _BLOCK_WITH_TIES)

    if num_workers >= _ABSTAINED // 2 or weights is not None:
        return count_with_bits()
    # Bits cost more than votes, and most leaves need none: count those without a sign
    # along with the votes, and start again with bits if there are any.
    tally = add_up(lambda i: vote(i, _ABSTAINED), num_workers)
    somebody_abstained = jnp.any(tally > np.int32(num_workers))
    return jax.lax.cond(somebody_abstained, count_with_bits, lambda: tally)
