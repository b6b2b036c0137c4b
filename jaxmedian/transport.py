"""How a vote travels between devices: as sums of integers, or packed into bits.

Both count the same votes and give the same result, bit for bit. With everybody on one
device nothing travels and there is nothing to choose.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian import collectives, routes
from jaxmedian._workers import Population
from jaxmedian.draws import LeafDraws
from jaxmedian.kernels import ballots, packing, voting
from jaxmedian.kernels.row_sums import add_up


def count(
    rows: jax.Array, draws: LeafDraws, population: Population, ties: str
) -> jax.Array:
    """Counts the votes of the local workers: ``[d]``, int8 if M fits, else int32.

    With weights the count has their type.
    """
    counted = voting.count_votes(
        rows,
        noise=draws.noise,
        ties=ties,
        zero_keys=draws.zero_keys,
        present=population.present,
        weights=population.weights,
    )
    if population.weights is not None:
        return counted
    return counted.astype(routes.tally_type(population.num_workers))


def decide(
    counted: jax.Array, draws: LeafDraws, population: Population, ties: str
) -> jax.Array:
    """Ends a vote by adding the devices' counts; int32 ``[d]`` of -1, 0, +1."""
    tally = collectives.total(counted, population.axis_name)
    tally = tally if population.weights is None else jnp.sign(tally)
    tally = tally.astype(jnp.int32)
    return ballots.decide(
        tally, ties=ties, tie_bits=draws.tie_bits, anybody=_anybody(population)
    )


def vote_in_slices(
    rows: jax.Array, draws: LeafDraws, population: Population, ties: str
) -> jax.Array:
    """Votes with packed decisions; int32 ``[d]`` of -1, 0 (nobody present), +1.

    Each device gets the votes on one slice of the coordinates, by the cheaper route of
    `jaxmedian.routes`, counts them, and sends its decisions on, packed: with one worker
    a device, about 2 bits a coordinate and worker, up and down together.
    """
    axis_name, num_coordinates = population.axis_name, rows.shape[1]
    num_devices = collectives.size(axis_name)
    padded = packing.sliced_size(num_coordinates, num_devices)
    padding = padded - num_coordinates
    route = routes.choose(num_coordinates, population.num_local, num_devices)
    if route == "bits" or population.weights is not None:  # sums of weights are long
        counted = _slice_by_bits(rows, draws, population, ties, padding)
    else:
        tallies = jnp.pad(count(rows, draws, population, ties), (0, padding))
        counted = collectives.total_of_slices(
            tallies.reshape(packing.BITS, -1), axis_name
        ).astype(jnp.int32)
    tie_bits = draws.tie_bits
    if tie_bits is not None:
        tie_bits = jnp.pad(tie_bits, (0, padding)).reshape(packing.BITS, -1)
        start = collectives.position(axis_name) * np.uint32(counted.shape[1])
        tie_bits = jax.lax.dynamic_slice_in_dim(tie_bits, start, counted.shape[1], 1)
    decided = ballots.decide(counted, ties=ties, tie_bits=tie_bits, anybody=None)
    sent = packing.pack((decided > 0).reshape(-1))
    joined = collectives.from_coordinate_slices(sent, padded // packing.BITS, axis_name)
    above = packing.unpack_in_order(joined)[:num_coordinates]
    vote = jnp.where(above, np.int32(1), np.int32(-1))
    anybody = _anybody(population)
    return vote if anybody is None else vote * anybody.astype(jnp.int32)


def _slice_by_bits(
    rows: jax.Array, draws: LeafDraws, population: Population, ties: str, padding: int
) -> jax.Array:
    """Sends a bit a worker; counts this device's slice, int32 ``[8, n]``."""
    votes = ballots.cast(rows, noise=draws.noise, ties=ties, zero_keys=draws.zero_keys)
    packed_votes = packing.pack(jnp.pad(votes > 0, ((0, 0), (0, padding))))
    received = collectives.to_coordinate_slices(packed_votes, population.axis_name)
    return count_bits(received, population.all_present(), population.all_weights())


def count_bits(
    received: jax.Array, present: jax.Array | None, weights: jax.Array | None = None
) -> jax.Array:
    """Counts the bytes ``[M, n]`` of all workers; int32 tallies ``[8, n]``.

    votes for + minus votes for - = 2 votes for + minus votes

    With weights (0 of the absent) the signs of the tallies.
    """
    num_workers = received.shape[0]
    if weights is not None:
        return jnp.sign(_weigh_bits(received, weights)).astype(jnp.int32)
    narrow = routes.tally_type(num_workers)  # adds several times faster than int32

    def votes_for(worker: int | jax.Array) -> jax.Array:
        row = received[worker]
        if present is not None:
            row = jnp.where(present[worker], row, np.uint8(0))
        return packing.unpack(row).astype(narrow)

    cast = np.int32(num_workers) if present is None else jnp.sum(present, dtype="int32")
    return 2 * add_up(votes_for, num_workers).astype(jnp.int32) - cast


def _weigh_bits(received: jax.Array, weights: jax.Array) -> jax.Array:
    """Adds up the votes ``[8, n]``, each with its worker's weight."""

    def vote(worker: int | jax.Array) -> jax.Array:
        weight = weights[worker]
        return jnp.where(packing.unpack(received[worker]), weight, -weight)

    return add_up(vote, received.shape[0])


def _anybody(population: Population) -> jax.Array | None:
    return None if population.present is None else population.num_present() > 0
