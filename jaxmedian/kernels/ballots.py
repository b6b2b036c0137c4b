"""Cast and count votes per worker and coordinate, and decide ties: the table of votes.

The elementwise half of a majority vote. Votes are counted as they are cast, without
ever being stored, or are arrays, for bits that travel.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels.rows import add_up
from jaxmedian.noise import threefry
from jaxmedian.noise.leaf_noise import LeafNoise

TieRule = Literal["zero", "random", "positive"]
TIE_RULES: tuple[TieRule, ...] = get_args(TieRule)
TALLY_TYPES = (np.dtype(np.int8), np.dtype(np.int32))


def cast(
    rows: jax.Array,
    *,
    noise: LeafNoise | None,
    ties: TieRule,
    zero_keys: jax.Array | None,
    starts: jax.Array | None = None,
) -> jax.Array:
    """Casts the vote of each worker on each coordinate.

    Args:
      rows: ``[m, d]``, gradients, or votes that were cast before.
      noise: b xi, or None for the plain vote.
      ties: "zero", "random" or "positive": here, what a worker without a sign counts.
      zero_keys: uint32 ``[m, 2]``, key of each worker's random bits, of joined leaves
        ``[m, lanes, 2]``; for "random", None if no entry can be without a sign any
        more.
      starts: where the rows begin in their leaves, see `threefry.positions`.

    Returns:
      int8 ``[m, d]`` of -1, 0, +1.
    """
    positions = threefry.positions(rows.shape[1], starts)
    values = rows
    if noise is not None:
        workers = jnp.arange(rows.shape[0])
        signed = jax.vmap(noise.signed_row, in_axes=(0, 0, None))
        values = signed(workers, rows, positions)
    unsigned: jax.Array | np.int8 = np.int8(ties == "positive")
    if ties == "random" and zero_keys is not None:
        words = jax.vmap(threefry.words_of_row, in_axes=(0, None))(zero_keys, positions)
        unsigned = threefry.fair_bit(words).astype(jnp.int8)
    return sign_or(values, unsigned)


def sign_or(values: jax.Array, unsigned: jax.Array | np.integer) -> jax.Array:
    """Returns +1 and -1 by the sign of the values, ``unsigned`` for 0, -0.0 and NaN.

    The votes have the integer type of ``unsigned``.
    """
    one = np.ones((), unsigned.dtype)
    return jnp.where(values > 0, one, jnp.where(values < 0, -one, unsigned))


def decide(
    tally: jax.Array,
    *,
    ties: TieRule,
    tie_bits: jax.Array | None,
    anybody: jax.Array | None,
) -> jax.Array:
    """Turns tallies into votes.

    Args:
      tally: int32, any shape.
      ties: how a tally of 0 ends: 0 ("zero"), a fair bit ("random"), +1 ("positive").
      tie_bits: int32 of +-1 and the shape of ``tally``; for "random".
      anybody: bool scalar, whether somebody was present; None if so for sure.

    Returns:
      int32 of -1, 0, +1; all 0 where nobody was present.
    """
    vote = jnp.sign(tally)
    if ties == "positive":
        vote = jnp.where(tally < 0, np.int32(-1), np.int32(1))
    elif ties == "random":
        assert tie_bits is not None
        vote = jnp.where(tally == 0, tie_bits, vote)
    return vote if anybody is None else vote * anybody.astype(jnp.int32)


# A row that draws words for its noise and for its own ties too counts for two.
_BLOCK_WITH_TIES = 4
_ABSTAINED = np.int32(2**16)  # fewer than 2^15 votes of +1 and -1 cannot hide it


def count_votes(
    rows: jax.Array,
    *,
    noise: LeafNoise | None,
    ties: TieRule,
    zero_keys: jax.Array | None,
    present: jax.Array | None,
    weights: jax.Array | None = None,
    starts: jax.Array | None = None,
) -> jax.Array:
    """Adds up the votes of the workers for each coordinate.

    Args:
      rows: floating point ``[M, d]``, M >= 1.
      noise: b xi, or None for the plain vote.
      ties: "zero", "random" or "positive": here, what a worker without a sign counts.
      zero_keys: see `cast`.
      present: bool ``[M]``, or None if everybody is.
      weights: ``[k, M]``, how many votes each has, as `kernels.limbs.addends`; None for
        one.
      starts: see `cast`.

    Returns:
      Votes for + minus votes for -: int32 ``[d]``, or with weights ``[k, d]`` of their
      type.
    """
    num_workers, size = rows.shape
    positions = threefry.positions(size, starts)
    # Drawn before the loop over workers: in it they would be drawn for every block.
    shared_words = None if noise is None else noise.shared_words(positions)

    absent = np.int32(0)

    def vote(worker: int | jax.Array, unsigned: jax.Array | np.int32) -> jax.Array:
        """Returns +1, -1, or where there is no sign ``unsigned``; 0 if absent."""
        value = rows[worker]
        if noise is not None:
            value = noise.signed_row(worker, value, positions, shared_words)
        votes = sign_or(value, unsigned)
        if weights is not None:  # 0 of the absent
            return votes.astype(weights.dtype)[None] * weights[:, worker][:, None]
        return votes if present is None else jnp.where(present[worker], votes, absent)

    if ties != "random" or zero_keys is None:
        unsigned = np.int32(ties == "positive")
        return add_up(lambda i: vote(i, unsigned), num_workers)

    def vote_or_draw(worker: int | jax.Array) -> jax.Array:
        words = threefry.words_of_row(zero_keys[worker], positions)
        return vote(worker, threefry.fair_bit(words))

    def count_with_bits() -> jax.Array:
        return add_up(vote_or_draw, num_workers, _BLOCK_WITH_TIES)

    if num_workers >= _ABSTAINED // 2 or weights is not None:
        return count_with_bits()
    # Bits cost more than votes, and most leaves need none: count those without a sign
    # along with the votes, and start again with bits if there are any.
    tally = add_up(lambda i: vote(i, _ABSTAINED), num_workers)
    somebody_abstained = jnp.any(tally > np.int32(num_workers))
    return jax.lax.cond(somebody_abstained, count_with_bits, lambda: tally)


def tally_type(num_workers: int) -> np.dtype[Any]:
    """Returns the narrow integer type that holds a tally of so many workers."""
    return TALLY_TYPES[num_workers >= 128]
