"""How a vote travels between devices: as sums of integers, or as one bit each.

Both count the same votes and give the same result, bit for bit. With everybody on one
device nothing travels and there is nothing to choose.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian import ballots, collectives, packing, voting
from jaxmedian._workers import Population
from jaxmedian.draws import LeafDraws
from jaxmedian.row_sums import add_up


def count(
    rows: jax.Array, draws: LeafDraws, population: Population, ties: str
) -> jax.Array:
    """Counts the votes of the local workers: ``[d]``, int8 if M fits, else int32."""
    counted = voting.count_votes(
        rows,
        noise=draws.noise,
        ties=ties,
        zero_keys=draws.zero_keys,
        present=population.present,
    )
    return counted.astype(jnp.int8 if population.num_workers < 128 else jnp.int32)


def decide(
    counted: jax.Array, draws: LeafDraws, population: Population, ties: str
) -> jax.Array:
    """Ends a vote by adding the devices' counts; int32 ``[d]`` of -1, 0, +1."""
    tally = collectives.total(counted, population.axis_name).astype(jnp.int32)
    return ballots.decide(
        tally, ties=ties, tie_bits=draws.tie_bits, anybody=_anybody(population)
    )


def vote_by_bits(
    rows: jax.Array, draws: LeafDraws, population: Population, ties: str
) -> jax.Array:
    """Votes by packed bits; int32 ``[d]`` of -1, 0 (nobody present), +1.

    Each device packs its workers' votes, sends every device one slice of their
    coordinates, counts the slice it receives, and sends the decision on, packed again:
    with one worker a device, about 2 bits a coordinate and worker, up and down
    together.
    """
    axis_name, num_coordinates = population.axis_name, rows.shape[1]
    votes = ballots.cast(rows, noise=draws.noise, ties=ties, zero_keys=draws.zero_keys)
    padded = packing.padded_size(num_coordinates, collectives.size(axis_name))
    padding = padded - num_coordinates
    packed_votes = packing.pack(jnp.pad(votes > 0, ((0, 0), (0, padding))))
    received = collectives.to_coordinate_slices(packed_votes, axis_name)
    counted = _count_bits(received, population.all_present())
    tie_bits = draws.tie_bits
    if tie_bits is not None:
        tie_bits = jnp.pad(tie_bits, (0, padding)).reshape(packing.BITS, -1)
        start = collectives.position(axis_name) * np.uint32(counted.shape[1])
        tie_bits = jax.lax.dynamic_slice_in_dim(tie_bits, start, counted.shape[1], 1)
    decided = ballots.decide(counted, ties=ties, tie_bits=tie_bits, anybody=None)
    sent = packing.pack((decided > 0).reshape(-1))
    joined = collectives.from_coordinate_slices(sent, padded // packing.BITS, axis_name)
    above = packing.unpack(joined).reshape(-1)[:num_coordinates]
    vote = jnp.where(above, np.int32(1), np.int32(-1))
    anybody = _anybody(population)
    return vote if anybody is None else vote * anybody.astype(jnp.int32)


def _count_bits(received: jax.Array, present: jax.Array | None) -> jax.Array:
    """Counts the bytes ``[M, n]`` of all workers; int32 tallies ``[8, n]``."""

    def vote(worker: int | jax.Array) -> jax.Array:
        above = packing.unpack(received[worker])
        vote = jnp.where(above, np.int32(1), np.int32(-1))
        return vote if present is None else vote * present[worker].astype(jnp.int32)

    return add_up(vote, received.shape[0])


def _anybody(population: Population) -> jax.Array | None:
    return None if population.present is None else population.num_present() > 0
