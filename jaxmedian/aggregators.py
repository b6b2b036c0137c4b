"""The three aggregators: stacked updates ``[M, ...]`` in, one update ``[...]`` out.

    majority_vote       sign(sum_i sign(g_i + b xi_i))      Algorithms 1 and 3
    coordinate_median   median_i(g_i + b xi_i)              Algorithms 2 and 4
    worker_mean         (1/M) sum_i g_i                     the mean they stand in for

Each is an optax transformation and the only one in its chain that sees the worker axis
and removes it. The arithmetic on rows is `voting`'s, `selection`'s and `averaging`'s
(votes by way of `transport`), and `aggregation` carries it to trees; here the two meet,
and options are checked.
"""

from typing import Any

import jax
import optax

from jaxmedian import _keys, collectives, perturbation
from jaxmedian import transport as transports
from jaxmedian._workers import Population
from jaxmedian.aggregation import Rule, aggregator
from jaxmedian.collectives import AxisName
from jaxmedian.draws import LeafDraws
from jaxmedian.kernels import averaging, ballots, selection, weighting
from jaxmedian.noise import Noise

TRANSPORTS = ("tally", "packed")


def majority_vote(
    noise: Noise | None = None,
    key: _keys.Key | None = None,
    *,
    ties: str = "zero",
    axis_name: AxisName | None = None,
    transport: str = "tally",
) -> optax.GradientTransformationExtraArgs:
    r"""Lets workers vote on the sign of each coordinate: ``[M, ...] -> [...]``.

    .. math:: \mathrm{sign}\Big(\sum_i \mathrm{sign}(g_i + b\, \xi_i)\Big)

    For odd M it is the sign of the coordinate's median, wherever that is not 0. On
    heterogeneous data the median is not the mean: without noise, training may stop far
    from a stationary point of the average loss. Noise of a scale b above the spread of
    the workers' gradients repairs that, at one bit a coordinate and worker.

    What a worker's entry counts, and how a tally of 0 ends:

    ====================================  ==========  ============  ============
    ``ties``                              "zero"      "random"      "positive"
    ====================================  ==========  ============  ============
    0, -0.0 or NaN of a present worker    no vote     fair bit      +1
    absent worker                         no vote     no vote       no vote
    tally 0, somebody present             0           fair bit      +1
    nobody present                        0           0             0
    ====================================  ==========  ============  ============

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
      votes each has. Integers are counted exactly, on any number of devices; sums of
      other numbers round, and so may end a tie.

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
    """
    _check_option("ties", ties, ballots.TIE_RULES)
    _check_option("transport", transport, TRANSPORTS)
    if transport == "packed" and ties == "zero":
        raise ValueError(
            '`transport="packed"` sends one bit a coordinate, which cannot say zero: '
            'choose `ties="random"` or `ties="positive"`.'
        )
    rng_key = _check_key("majority_vote", noise, key, random_ties=ties == "random")

    # On one device there is no wire, and counting needs no bits.
    packed = transport == "packed" and axis_name is not None

    def reduce(rows: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        if packed:
            return transports.vote_in_slices(rows, draws, population, ties)
        return transports.count(rows, draws, population, ties)

    def finish(x: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        return x if packed else transports.decide(x, draws, population, ties)

    def settle(rows: jax.Array, draws: LeafDraws) -> jax.Array:
        return ballots.cast(
            rows, noise=draws.noise, ties=ties, zero_keys=draws.zero_keys
        )

    return aggregator(
        "majority_vote",
        Rule(reduce, finish, settle, additive=not packed),
        noise=noise,
        rng_key=rng_key,
        random_ties=ties == "random",
        axis_name=axis_name,
    )


def coordinate_median(
    noise: Noise | None = None,
    key: _keys.Key | None = None,
    *,
    even: str = "midpoint",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the median over workers of each coordinate: ``[M, ...] -> [...]``.

    .. math:: \mathrm{median}_i(g_i + b\, \xi_i)

    Without noise up to (M - 1) / 2 arbitrary workers leave every coordinate inside the
    range of the others, but on heterogeneous data the median is not the mean. With
    noise its expectation is the mean up to O(1 / b^2), and its variance grows as b^2.

    NaN counts as +inf, so that a minority of broken workers changes nothing above. With
    an even number of workers of which the middle two are -inf and +inf the midpoint is
    NaN, as in NumPy. With nobody present the median is 0.

    Args:
      noise: law, scale and coupling, or None for the plain median. The medians are
        those of ``chain(add_worker_noise(noise, key), coordinate_median())`` with the
        same key, but rounded to the dtype of the gradients only once, at the end.
      key: a typed key, a legacy key or an int; needed for noise, refused otherwise.
      even: what ends an even number of workers: "midpoint" of the middle two (NumPy's),
        "lower" or "upper".
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation. ``update`` takes ``worker_mask``, bool ``[M]``: the median is
      taken over the workers present; and ``worker_weights``, ``[M]``: each counts as so
      many workers, which need not be whole numbers. A weighted median takes a pass over
      the rows for each bit of a float, and noise is stored.

    Raises:
      TypeError, ValueError: for a bad noise, key or option; while tracing, for updates
        without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.coordinate_median()
    >>> params = jnp.zeros(2)
    >>> grads = jnp.array([[1., jnp.nan], [2., 4.], [-9., 5.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [1.0, 5.0]

    References:
      Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.
      Chen et al., NeurIPS 2020, Algorithms 2 and 4. https://arxiv.org/abs/1906.01736
    """
    _check_option("even", even, selection.EVEN_RULES)
    rng_key = _check_key("coordinate_median", noise, key, random_ties=False)

    def reduce(rows: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        noise = draws.noise
        if axis_name is not None:  # noise belongs to workers: add it before they part
            rows, noise = settle(rows, draws), None
        weights = population.all_weights()
        if weights is not None:
            rows, noise = settle(rows, draws), None
        slices = collectives.to_coordinate_slices(rows, axis_name)
        if weights is not None:
            middle = weighting.median_of_rows(slices, weights, even)
        else:
            middle = selection.median_of_rows(
                slices, noise=noise, even=even, present=population.all_present()
            )
        return collectives.from_coordinate_slices(middle, rows.shape[1], axis_name)

    def finish(x: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        del draws, population
        return x

    def settle(rows: jax.Array, draws: LeafDraws) -> jax.Array:
        return rows if draws.noise is None else perturbation.add(rows, draws.noise)

    return aggregator(
        "coordinate_median",
        Rule(reduce, finish, settle),
        noise=noise,
        rng_key=rng_key,
        axis_name=axis_name,
    )


def worker_mean(
    *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the mean over workers: ``[M, ...] -> [...]``.

    .. math:: \frac{1}{M} \sum_i g_i

    The gradient of the average loss, which votes and medians stand in for: the
    reference to compare with, at 32 bits a coordinate and worker and with no robustness
    at all. Summed in float32 (float64 for float64) and rounded once.

    Args:
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation without state. ``update`` takes ``worker_mask``, bool ``[M]``:
      the mean is taken over the workers present, and is 0 if nobody is; and
      ``worker_weights``, ``[M]``: it is weighted by them.

    Raises:
      TypeError, ValueError: while tracing, for updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.worker_mean()
    >>> params = jnp.zeros(2)
    >>> grads = jnp.array([[1., 0.], [2., 4.], [-9., 5.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [-2.0, 3.0]
    """

    def reduce(rows: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        del draws
        return averaging.sum_of_rows(
            rows, present=population.present, weights=population.weights
        )

    def finish(x: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        del draws
        count = population.total_weight()
        return collectives.total(x, axis_name) / count.astype(x.dtype)

    def settle(rows: jax.Array, draws: LeafDraws) -> jax.Array:
        del draws
        return rows

    return aggregator(
        "worker_mean", Rule(reduce, finish, settle, additive=True), axis_name=axis_name
    )


def _check_option(name: str, value: Any, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, options))}; got {value!r}."
        )


def _check_key(
    transform: str, noise: Noise | None, key: Any, *, random_ties: bool
) -> jax.Array | None:
    """Returns the key of a transform that draws, None for one that does not."""
    if noise is not None:
        perturbation.check_noise(transform, noise)
    if noise is None and not random_ties:
        if key is not None:
            raise ValueError(
                f"`{transform}` was given a `key` but nothing to draw: leave it out, "
                "or pass a `noise`."
            )
        return None
    if key is None:
        what = "noise" if noise is not None else '`ties="random"`'
        raise ValueError(
            f"`{transform}` needs a `key` for its {what}; pass e.g. "
            "`jax.random.key(0)`."
        )
    return _keys.as_threefry_key(key)
