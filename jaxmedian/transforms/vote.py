"""The majority vote: sign(sum_i sign(g_i + b xi_i)), Algorithms 1 and 3.

On one device votes are counted and decided. Over a mesh they travel as sums of integers
(`transport="tally"`) or packed into bits (`"packed"`), with the same result to the bit:
each device then decides the votes on one slice of the coordinates.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels import ballots, limbs, packing
from jaxmedian.kernels.rows import add_up
from jaxmedian.noise import Noise, keys
from jaxmedian.transforms.build import Rule, aggregator
from jaxmedian.transforms.draws import LeafDraws, check_key
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import check_option
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import Population

Transport = Literal["tally", "packed"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)


def majority_vote(
    noise: Noise | None = None,
    key: keys.Key | None = None,
    *,
    ties: ballots.TieRule = "zero",
    axis_name: AxisName | None = None,
    transport: Transport = "tally",
) -> optax.GradientTransformationExtraArgs:
    r"""Lets workers vote on the sign of each coordinate: ``[M, ...] -> [...]``.

    .. math:: \mathrm{sign}\Big(\sum_i \mathrm{sign}(g_i + b\, \xi_i)\Big)

    For odd M it is the sign of the coordinate's median, wherever that is not 0. On
    heterogeneous data the median is not the mean: without noise, training may stop far
    from a stationary point of the average loss. Noise of a scale b above the spread of
    the workers' gradients repairs that, at one bit a coordinate and worker.

    Noise moves every coordinate, also one without any gradient: frozen layers,
    statistics, rows of an embedding that no batch has seen. Keep those out of the
    parameters, or zero them *behind* the aggregator, ``chain(majority_vote(noise, key),
    masked(set_to_zero(), frozen))``: in front, a mask would leave their worker axis.
    The same happens to all coordinates where `optax.MultiSteps` within `per_worker`
    accumulates before the vote.

    What a worker's entry counts, and how a tally of 0 ends:

    | ``ties`` | "zero" | "random" | "positive" |
    |---|---|---|---|
    | 0, -0.0 or NaN of a present worker | no vote | fair bit | +1 |
    | absent worker | no vote | no vote | no vote |
    | tally 0, somebody present | 0 | fair bit | +1 |
    | nobody present | 0 | 0 | 0 |

    Args:
      noise: law, scale and coupling, or None for the plain vote. The votes are those of
        ``chain(add_worker_noise(noise, key), majority_vote())`` with the same key, up
        to values within rounding of 0, but no noisy gradient is ever stored.
      key: a typed key, a legacy key or an int; needed for noise and ``ties="random"``.
      ties: "zero", "random" or "positive", see the table.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
      transport: what crosses the mesh: "tally", sums of integers, or "packed", bits:
        about 2 a coordinate and worker, up and down together, with one worker a device;
        with many it sends tallies where they are cheaper and packs the decisions alone
        (`jaxmedian.sharding.packed_routes` says where). The votes are the same. One bit
        cannot say zero: "packed" needs ``ties`` "random" or "positive".

    Returns:
      A transformation whose updates are -1, 0 or +1 in the dtype of the gradients; put
      `optax.scale_by_learning_rate` behind it. ``update`` takes ``worker_mask``, bool
      ``[M]``: absent workers do not count; and ``worker_weights``, ``[M]``: how many
      votes each has. Integers (of 32 bits, whatever their sum) are counted exactly, on
      any number of devices; sums of other numbers round, and so may end a tie. The
      derivative of a vote is 0.

    Raises:
      TypeError, ValueError: for a bad noise, key or option; for a key without use;
        while tracing, for updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.majority_vote()
    >>> params = jnp.zeros(3)
    >>> grads = jnp.array([[1., -1., 0.], [2., -3., 5.], [-9., -1., -5.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [1.0, -1.0, 0.0]

    References:
      Bernstein et al., signSGD with Majority Vote, ICLR 2019.
      Chen et al., NeurIPS 2020, Algorithms 1 and 3. https://arxiv.org/abs/1906.01736
      Noise on signs elsewhere: Wen et al., TernGrad, NeurIPS 2017
      (https://arxiv.org/abs/1705.07878); Suresh et al., Correlated Quantization, ICML
      2022, whose coupling the systematic one is; Tang et al., z-SignFedAvg, AAAI 2024
      (https://arxiv.org/abs/2302.02589); Jin and Dai, ICML 2025.
    """
    check_option("ties", ties, ballots.TIE_RULES)
    check_option("transport", transport, TRANSPORTS)
    if transport == "packed" and ties == "zero":
        raise ValueError(
            '`transport="packed"` sends one bit a coordinate, which cannot say zero: '
            'choose `ties="random"` or `ties="positive"`.'
        )
    rng_key = check_key(
        "majority_vote",
        noise,
        key,
        random_ties=ties == "random",
        draws='a `noise` or `ties="random"`',
    )

    # On one device there is no wire, and counting needs no bits.
    packed = transport == "packed" and axis_name is not None

    def count(rows: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        return count_locally(rows, draws, population, ties)

    def decide(
        x: jax.Array, draws: LeafDraws, population: Population, size: int
    ) -> jax.Array:
        tally = collectives.total(x, population.axis_name)
        if population.weights is not None:
            tally = limbs.sign_of_sums(
                tally, population.weights, population.num_workers
            )
        return ballots.decide(
            tally.astype(jnp.int32),
            ties=ties,
            tie_bits=draws.tie_bits(size) if ties == "random" else None,
            anybody=population.is_anybody_present(),
        )

    def count_or_pack(
        rows: jax.Array, draws: LeafDraws, population: Population
    ) -> jax.Array:
        if _goes_by_bits(rows.shape[1], population):
            return _pack_votes(rows, draws, population, ties)
        return count_locally(rows, draws, population, ties)

    def decide_in_slices(
        x: jax.Array, draws: LeafDraws, population: Population, size: int
    ) -> jax.Array:
        return _decide_in_slices(x, draws, population, size, ties)

    rule = (
        Rule(count_or_pack, decide_in_slices, additive=True, in_rows=_goes_by_bits)
        if packed
        else Rule(count, decide, additive=True, tiled=axis_name is None)
    )
    return aggregator(
        "majority_vote",
        rule,
        noise=noise,
        rng_key=rng_key,
        random_ties=ties == "random",
        axis_name=axis_name,
        in_lanes=packed,  # so that what travels does not depend on what is drawn
    )


def count_locally(
    rows: jax.Array, draws: LeafDraws, population: Population, ties: ballots.TieRule
) -> jax.Array:
    """Counts the votes of the local workers: ``[d]``, int8 if M fits, else int32.

    With weights the sums of their addends, ``[k, d]``.
    """
    weights = population.weights
    if weights is not None:
        weights = limbs.addends(weights, population.num_workers)
    counted = ballots.count_votes(
        rows,
        noise=draws.noise,
        ties=ties,
        zero_keys=draws.zero_keys,
        present=population.present,
        weights=weights,
        starts=draws.starts,
    )
    if weights is not None:
        return counted
    return counted.astype(ballots.tally_type(population.num_workers))


def _goes_by_bits(num_coordinates: int, population: Population) -> bool:
    """Returns whether a packed vote sends bits, not tallies; weighted ones are long."""
    num_devices = collectives.size(population.axis_name)
    num_local = population.num_workers // num_devices
    route = packing.choose(num_coordinates, num_local, num_devices)
    return route == "bits" or population.weights is not None


def _pack_votes(
    rows: jax.Array, draws: LeafDraws, population: Population, ties: ballots.TieRule
) -> jax.Array:
    """Packs the votes of workers: bytes ``[m, n]``, filled up to equal slices."""
    votes = ballots.cast(
        rows,
        noise=draws.noise,
        ties=ties,
        zero_keys=draws.zero_keys,
        starts=draws.starts,
    )
    num_slices, _ = collectives.slices(population.axis_name)
    padding = packing.sliced_size(rows.shape[1], num_slices) - rows.shape[1]
    return packing.pack(jnp.pad(votes > 0, ((0, 0), (0, padding))))


def _decide_in_slices(
    x: jax.Array,
    draws: LeafDraws,
    population: Population,
    num_coordinates: int,
    ties: ballots.TieRule,
) -> jax.Array:
    """Sends votes, and packed decisions back; int32 of -1, 0 (nobody present), +1.

    Each device gets the votes on one slice of the coordinates, as bytes or as tallies,
    whichever are shorter, counts them, and sends its decisions on, packed: with one
    worker a device, about 2 bits a coordinate and worker, up and down together.

    Args:
      x: of the local workers, bytes ``[m, n]`` or tallies ``[d]``.
      draws: how ties end.
      population: the workers.
      num_coordinates: d; what fills up the slices comes behind.
      ties: see `ballots.decide`.
    """
    axis_name = population.axis_name
    num_slices, own_slice = collectives.slices(axis_name)
    padded = packing.sliced_size(num_coordinates, num_slices)
    padding = padded - num_coordinates
    if _goes_by_bits(num_coordinates, population):
        received = collectives.to_coordinate_slices(x, axis_name)
        counted = count_bits(
            received, population.present_mask(), population.weights_of_all()
        )
    else:
        tallies = jnp.pad(x, (0, padding)).reshape(packing.BITS, -1)
        counted = collectives.total_of_slices(tallies, axis_name).astype(jnp.int32)
    tie_bits = draws.tie_bits(num_coordinates)
    if tie_bits is not None:
        tie_bits = jnp.pad(tie_bits, (0, padding)).reshape(packing.BITS, -1)
        start = own_slice * np.uint32(counted.shape[1])
        tie_bits = jax.lax.dynamic_slice_in_dim(tie_bits, start, counted.shape[1], 1)
    decided = ballots.decide(counted, ties=ties, tie_bits=tie_bits, anybody=None)
    sent = packing.pack((decided > 0).reshape(-1))
    joined = collectives.from_coordinate_slices(sent, padded // packing.BITS, axis_name)
    above = packing.unpack_in_order(joined)
    vote = jnp.where(above, np.int32(1), np.int32(-1))
    anybody = population.is_anybody_present()
    return vote if anybody is None else vote * anybody.astype(jnp.int32)


def count_bits(
    received: jax.Array, present: jax.Array | None, weights: jax.Array | None = None
) -> jax.Array:
    """Counts the bytes ``[M, n]`` of all workers; int32 tallies ``[8, n]``.

    votes for + minus votes for - = 2 votes for + minus votes

    With weights (0 of the absent) the signs of the tallies.
    """
    num_workers = received.shape[0]
    if weights is not None:
        sums = _weigh_bits(received, limbs.addends(weights, num_workers))
        return limbs.sign_of_sums(sums, weights, num_workers)
    narrow = ballots.tally_type(num_workers)  # adds several times faster than int32

    def votes_for(worker: int | jax.Array) -> jax.Array:
        row = received[worker]
        if present is not None:
            row = jnp.where(present[worker], row, np.uint8(0))
        return packing.unpack(row).astype(narrow)

    cast = np.int32(num_workers) if present is None else jnp.sum(present, dtype="int32")
    return 2 * add_up(votes_for, num_workers).astype(jnp.int32) - cast


def _weigh_bits(received: jax.Array, weights: jax.Array) -> jax.Array:
    """Adds up the votes, each with its worker's weight: ``[k, M] -> [k, 8, n]``."""

    def vote(worker: int | jax.Array) -> jax.Array:
        weight = weights[:, worker][:, None, None]
        return jnp.where(packing.unpack(received[worker])[None], weight, -weight)

    return add_up(vote, received.shape[0])
