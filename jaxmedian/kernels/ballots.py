"""One vote a worker and coordinate, and how a tally of them ends: the table of votes.

The elementwise half of a majority vote. `kernels.voting` counts votes without ever
storing them; here they are arrays, for bits that travel and for leaves too small to be
worth a kernel of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels import random_bits
from jaxmedian.kernels.leaf_noise import LeafNoise

TIE_RULES = ("zero", "random", "positive")


def cast(
    rows: jax.Array,
    *,
    noise: LeafNoise | None,
    ties: str,
    zero_keys: jax.Array | None,
) -> jax.Array:
    """Casts the vote of each worker on each coordinate.

    Args:
      rows: ``[m, d]``, gradients, or votes that were cast before.
      noise: b xi, or None for the plain vote.
      ties: "zero", "random" or "positive": here, what a worker without a sign counts.
      zero_keys: uint32 ``[m, 2]``, key of each worker's random bits; for "random",
        None if no entry can be without a sign any more.

    Returns:
      int8 ``[m, d]`` of -1, 0, +1.
    """
    positions = random_bits.positions(rows.shape[1])
    values = rows
    if noise is not None:
        workers = jnp.arange(rows.shape[0])
        signed = jax.vmap(noise.signed_row, in_axes=(0, 0, None))
        values = signed(workers, rows, positions)
    unsigned: jax.Array | np.int8 = np.int8(ties == "positive")
    if ties == "random" and zero_keys is not None:
        words = jax.vmap(random_bits.words, in_axes=(0, None))(zero_keys, positions)
        unsigned = random_bits.fair_bit(words).astype(jnp.int8)
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
    ties: str,
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
