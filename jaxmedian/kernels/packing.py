"""Pack one-bit votes, eight a byte, and unpack them: the message on the wire.

Bits are packed along a *leading* axis: the coordinates ``[d]`` are read as ``[8, d /
8]`` and bit k of byte j is coordinate k d/8 + j. Shifts and adds of whole rows then do
it; packing neighbours along the minor axis, as `jnp.packbits` does, costs 16 times the
memory on a TPU, whose vectors run along that axis.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels import ballots

BITS = 8
_LANES = 128


def padded_size(num_coordinates: int, multiple: int = 1) -> int:
    """Returns the number of coordinates after padding to ``multiple`` whole bytes.

    >>> padded_size(10), padded_size(10, multiple=4)
    (16, 32)
    """
    return num_coordinates + -num_coordinates % (BITS * multiple)


def sliced_size(num_coordinates: int, num_slices: int) -> int:
    """Returns the number of coordinates after padding to equal slices of whole bytes.

    Where it adds less than a sixty-fourth, slices get a multiple of 128 bytes, the
    width of a TPU's vectors: a TPU gathers others by a sum of twice the bytes.

    >>> sliced_size(10, num_slices=4), sliced_size(1_000_000, num_slices=8)
    (32, 1007616)
    """
    aligned = padded_size(num_coordinates, num_slices * _LANES)
    if 64 * (aligned - num_coordinates) <= num_coordinates:
        return aligned
    return padded_size(num_coordinates, num_slices)


def pack(bits: jax.Array) -> jax.Array:
    """Packs booleans ``[..., 8 n]`` into bytes, uint8 ``[..., n]``.

    >>> import jax.numpy as jnp
    >>> pack(jnp.arange(8) == 3).tolist()
    [8]
    """
    rows = bits.reshape(*bits.shape[:-1], BITS, -1).astype(jnp.uint8)
    return sum(
        (rows[..., k, :] << np.uint8(k) for k in range(1, BITS)), rows[..., 0, :]
    )


def unpack(packed: jax.Array) -> jax.Array:
    """Unpacks bytes, uint8 ``[..., n]``, into booleans ``[..., 8, n]``.

    The bits keep their axis, which suits counting them; see `unpack_in_order`.

    >>> import jax.numpy as jnp
    >>> unpack(jnp.uint8([8])).ravel().tolist().index(True)
    3
    """
    shifts = np.arange(BITS, dtype=np.uint8).reshape((1,) * (packed.ndim - 1) + (-1, 1))
    return (packed[..., None, :] >> shifts) & np.uint8(1) == 1


def unpack_in_order(packed: jax.Array) -> jax.Array:
    """Unpacks bytes, uint8 ``[n]``, into the booleans ``[8 n]`` that were packed.

    Row by row: reshaping `unpack` gives the same five times slower on a CPU.

    >>> import jax.numpy as jnp
    >>> unpack_in_order(jnp.uint8([8])).tolist().index(True)
    3
    """
    one = np.uint8(1)
    return jnp.concatenate([packed >> np.uint8(k) & one == 1 for k in range(BITS)])


def choose(num_coordinates: int, num_local: int, num_devices: int) -> str:
    """Returns the route, "bits" or "tallies", that sends fewer bytes."""
    return cheaper(*bytes_sent(num_coordinates, num_local, num_devices))


def cheaper(bytes_as_bits: int, bytes_as_tallies: int) -> str:
    """Returns which route sends fewer bytes, "bits" or "tallies"."""
    return "bits" if bytes_as_bits < bytes_as_tallies else "tallies"


def bytes_sent(
    num_coordinates: int, num_local: int, num_devices: int
) -> tuple[int, int]:
    """Computes what each device sends, by bits and by tallies, decisions included."""
    num_bytes = sliced_size(num_coordinates, num_devices) // BITS
    others = num_bytes // num_devices * (num_devices - 1)  # a bit for each elsewhere
    itemsize = ballots.tally_type(num_local * num_devices).itemsize
    return others * (num_local + 1), others * (BITS * itemsize + 1)
