"""The two routes of a packed vote, and which of them sends fewer bytes.

Each device ends up with the tallies of its slice of the coordinates, decides them, and
sends every decision on as one bit. Up to there a coordinate costs

    bits      1 bit a worker of the device           m / 8 bytes
    tallies   one integer, the device's own count    1 byte if M < 128, else 4

each times (D - 1) / D, since a device keeps its own slice; the decisions add 1 / 8. So
bits win with fewer than 8 workers a device (32 if M >= 128). Both give the same votes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmedian.kernels.packing import bytes_sent, cheaper
from jaxmedian.kernels.rows import groups_of


class Route(NamedTuple):
    """How the votes on some leaves travel.

    Attributes:
      leaves: names of the leaves; small ones of one dtype travel together.
      num_coordinates: d, of all of them; leaves that travel together are filled up to
        multiples of 128.
      chosen: "bits" or "tallies", whichever sends fewer bytes.
      bytes_as_bits: bytes each device sends in one vote by bits, decisions included.
      bytes_as_tallies: the same by tallies.

    >>> import jax.numpy as jnp
    >>> route = packed_routes({"w": jnp.zeros(800)}, num_workers=4, num_devices=4)[0]
    >>> route.leaves, route.chosen, route.bytes_as_bits
    (("['w']",), 'bits', 150)
    """

    leaves: tuple[str, ...]
    num_coordinates: int
    chosen: str
    bytes_as_bits: int
    bytes_as_tallies: int


def packed_routes(
    params: optax.Params, num_workers: int, num_devices: int
) -> tuple[Route, ...]:
    """Says how ``majority_vote(transport="packed")`` sends its votes, leaf by leaf.

    Args:
      params: the parameters, or their shapes.
      num_workers: M, over all devices.
      num_devices: D, along the mesh axis of the workers.

    Returns:
      A `Route` for each large leaf and each group of small ones.

    Raises:
      ValueError: if M is no multiple of D.

    >>> import jax.numpy as jnp
    >>> params = {"matrix": jnp.zeros((1000, 1000)), "row": jnp.zeros(10)}
    >>> [route.chosen for route in packed_routes(params, 8, 8)]
    ['bits', 'bits']
    >>> matrix, _ = packed_routes(params, num_workers=80, num_devices=8)
    >>> matrix.chosen, matrix.bytes_as_bits, matrix.bytes_as_tallies
    ('tallies', 1212288, 991872)
    """
    if num_devices < 1 or num_workers < 1 or num_workers % num_devices:
        raise ValueError(
            "`num_workers` must be a multiple of `num_devices`; got "
            f"{num_workers} and {num_devices}."
        )
    named = jax.tree_util.tree_leaves_with_path(params)
    rows = [
        jax.ShapeDtypeStruct((1, *jnp.shape(leaf)), jnp.result_type(leaf))
        for _, leaf in named
    ]
    routes = []
    for group in groups_of(rows, in_lanes=True):
        size = group.num_coordinates
        bits, tallies = bytes_sent(size, num_workers // num_devices, num_devices)
        names = tuple(jax.tree_util.keystr(named[i][0]) for i in group.members)
        routes.append(Route(names, size, cheaper(bits, tallies), bits, tallies))
    return tuple(routes)
