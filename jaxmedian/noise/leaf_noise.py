"""The noise of one leaf, resolved: what a kernel needs to draw any worker's row.

The words follow the key tree of `noise.keys`. With independent coupling worker i
has a key of its own. With systematic coupling one word V a coordinate is shared, and
worker i reads V + slot_i: slots are multiples of 2^32 / M in an order drawn once a
step, and the wrap-around of unsigned addition is the frac() of
xi_i = H^{-1}(frac(V + pi(i) / M)).

Leaves that are joined end to end are one leaf here, whose lanes have keys and slots of
their own (`noise.lanes`).

Scale and words are known here; kernels choose between adding samples to gradients
(`noisy_row`) and comparing with the law's tail (`signed_row`), which needs no sample.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.noise import threefry
from jaxmedian.noise.laws import UNIFORM, Law

_LEAST_NORMAL = np.int32(1 << 23)  # bits of the least float32 that is not subnormal


class LeafNoise(NamedTuple):
    """The noise that M workers add to one leaf in one step.

    Attributes:
      law: law of xi.
      scale: b in the dtype in which noise is computed, of shape () or, with a scale for
        every coordinate, ``[d]``.
      key_words: uint32; ``[M, 2]`` worker keys if independent, ``[2]`` if shared; of
        joined leaves ``[M, lanes, 2]`` and ``[lanes, 2]``.
      slots: uint32 ``[M]``, of joined leaves ``[M, lanes]``, if systematic; else None.
      starts: uint32, the positions in their leaves where the rows begin, see
        `threefry.positions`; None if at the beginning of one leaf.
    """

    law: Law
    scale: jax.Array
    key_words: jax.Array
    slots: jax.Array | None
    starts: jax.Array | None = None

    def of_tile(self, start: jax.Array, size: int) -> "LeafNoise":
        """Returns the noise of rows ``[M, size]`` from coordinate ``start`` on.

        Of joined leaves both are whole lanes.
        """
        tile = self
        if self.scale.ndim == 1:
            scale = jax.lax.dynamic_slice_in_dim(self.scale, start, size)
            tile = tile._replace(scale=scale)
        if self.starts is None or self.starts.ndim == 0:
            begin = start if self.starts is None else self.starts + start
            return tile._replace(starts=begin)
        first, count = start // np.uint32(threefry.LANE), size // threefry.LANE

        def cut(x: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, first, count, axis)

        return tile._replace(
            key_words=cut(self.key_words, -2),
            slots=None if self.slots is None else cut(self.slots, -1),
            starts=cut(self.starts, 0),
        )

    def positions(self, size: int) -> jax.Array:
        """Returns the positions of ``size`` coordinates in the leaf, or its leaves."""
        return threefry.positions(size, self.starts)

    def words(
        self,
        worker: int | jax.Array,
        positions: jax.Array,
        shared: jax.Array | None = None,
    ) -> jax.Array:
        """Draws the words of one worker (a local row number) at ``positions [d]``.

        ``shared`` is `shared_words` of the positions, where a loop over workers has
        drawn them before it began.
        """
        if self.slots is None:
            return threefry.words_of_row(self.key_words[worker], positions)
        if shared is None:
            shared = threefry.words_of_row(self.key_words, positions)
        slot = self.slots[worker]
        return shared + (slot if slot.ndim == 0 else threefry.spread(slot))

    def shared_words(self, positions: jax.Array) -> jax.Array | None:
        """Draws V, which all workers share; None if they share none."""
        if self.slots is None:
            return None
        return threefry.words_of_row(self.key_words, positions)

    def noisy_row(
        self,
        worker: int | jax.Array,
        row: jax.Array,
        positions: jax.Array,
        shared: jax.Array | None = None,
    ) -> jax.Array:
        """Returns g + b xi for one worker's row g ``[d]``, in the noise's dtype."""
        return _noisy(self.law, row, self.words(worker, positions, shared), self.scale)

    def noisy_rows(self, rows: jax.Array) -> jax.Array:
        """Returns g + b xi for all rows ``[M, d]``, in the noise's dtype."""
        positions = self.positions(rows.shape[1])
        each = jax.vmap(self.noisy_row, in_axes=(0, 0, None))
        return each(jnp.arange(len(rows)), rows, positions)

    def signed_row(
        self,
        worker: int | jax.Array,
        row: jax.Array,
        positions: jax.Array,
        shared: jax.Array | None = None,
    ) -> jax.Array:
        """Returns some number with the sign of g + b xi, at the price of one CDF.

        With xi = H^{-1}(u), g + b xi > 0 exactly when u > H(-g / b). Written for the
        magnitude a = |g| / b and t turned towards the sign of g, the sum has the sign
        of g unless 1 + t < P(|xi| > a): both sides keep their *relative* precision in
        the tail, where a CDF near 1 would not. NaN and 0 stand for "no sign": where g
        is NaN, and where g and b are both 0.
        """
        words = self.words(worker, positions, shared)
        if self.law is UNIFORM or self.scale.dtype == jnp.float64:
            return _noisy(self.law, row, words, self.scale)  # as cheap
        return _signed(self.law, row, words, self.scale)


# Functions of their own, so that JAX traces and lowers each once a shape, not once a
# worker and leaf.
@partial(jax.jit, static_argnums=0)
def _noisy(law: Law, row: jax.Array, words: jax.Array, scale: jax.Array) -> jax.Array:
    t = threefry.centred_uniform(words, scale.dtype)
    xi = law.sample(t)
    if scale.ndim:
        xi = _hidden_from_scales(xi)
    return row.astype(scale.dtype) + _hidden(scale) * xi


@partial(jax.jit, static_argnums=0)
def _signed(law: Law, row: jax.Array, words: jax.Array, scale: jax.Array) -> jax.Array:
    g = row.astype(scale.dtype)
    # On bits, in place of comparisons and choices: a tenth of the time of a vote.
    bits = jax.lax.bitcast_convert_type(g, jnp.int32)
    all_if_negative = jax.lax.bitcast_convert_type(bits >> np.int32(31), jnp.uint32)
    is_silent = scale == 0  # then g itself has the sign: 0 times inf is NaN
    b = jnp.where(is_silent, 1, _hidden(scale))
    tail = law.tail(jnp.abs(g) * (1 / b))
    surplus = threefry.rising_uniform(words ^ all_if_negative, scale.dtype) - tail
    sign_bit = bits & np.int32(-(2**31))
    signed = jax.lax.bitcast_convert_type(surplus, jnp.int32) ^ sign_bit
    signed |= _LEAST_NORMAL  # a surplus rounded to 0 has a sign too; NaN stays NaN
    return jnp.where(is_silent, g, jax.lax.bitcast_convert_type(signed, scale.dtype))


def _hidden_from_scales(xi: jax.Array) -> jax.Array:
    """Keeps XLA from seeing how xi is made, where every coordinate has a scale.

    In arrays ``[M, d]``, but not in rows ``[d]``, it would multiply the scales with the
    constant of a law first: other last bits. A zero that it does not know is not
    simplified away, and costs one operation on bits.
    """
    integer = jnp.int64 if xi.dtype == jnp.float64 else jnp.int32
    zero = jax.lax.optimization_barrier(jnp.zeros((), integer))
    bits = jax.lax.bitcast_convert_type(xi, integer) ^ zero
    return jax.lax.bitcast_convert_type(bits, xi.dtype)


def _hidden(scale: jax.Array) -> jax.Array:
    """Keeps XLA from seeing a constant scale.

    It would multiply it with the constants of some laws, in some programs and not in
    others, and the last bits would differ between one device and a mesh.
    """
    return jax.lax.optimization_barrier(scale)


def systematic_slots(ranks: jax.Array, num_slots: jax.Array) -> jax.Array:
    """Returns floor(rank 2^32 / num_slots), the offsets of workers by their rank.

    Args:
      ranks: uint32 ``[M]``, each below ``num_slots``.
      num_slots: uint32 scalar n, 1 to 65,535: then rank * (2^32 mod n) < 2^32.

    Returns:
      uint32 ``[M]``.
    """
    # 2^32 itself does not fit: divide 2^32 - 1 and carry the missing 1.
    quotient = np.uint32(2**32 - 1) // num_slots
    remainder = np.uint32(2**32 - 1) % num_slots + np.uint32(1)
    return ranks * quotient + (ranks * remainder) // num_slots
