"""The three aggregators: stacked updates ``[M, ...]`` in, one update ``[...]`` out.

    majority_vote       sign(sum_i sign(g_i + b xi_i))      Algorithms 1 and 3
    coordinate_median   median_i(g_i + b xi_i)              Algorithms 2 and 4
    worker_mean         (1/M) sum_i g_i                     the mean they stand in for

Each is an optax transformation and the only one in its chain that sees the worker axis
and removes it. The arithmetic is `voting`'s, `selection`'s and `averaging`'s; here
leaves become rows, keys are dealt out, and devices are joined.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmedian import _keys, averaging, collectives, perturbation, selection, voting
from jaxmedian._workers import Population, check_mask, survey
from jaxmedian.collectives import AxisName
from jaxmedian.leaf_noise import LeafNoise
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
      transport: what crosses the mesh: "tally", sums of integers. One bit cannot say
        zero: "packed" needs ``ties`` "random" or "positive".

    Returns:
      A transformation whose updates are -1, 0 or +1 in the dtype of the gradients; put
      `optax.scale_by_learning_rate` behind it. ``update`` takes ``worker_mask``, bool
      ``[M]``: absent workers do not count.

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
    _check_option("ties", ties, voting.TIE_RULES)
    _check_option("transport", transport, TRANSPORTS)
    if transport == "packed" and ties == "zero":
        raise ValueError(
            '`transport="packed"` sends one bit a coordinate, which cannot say zero: '
            'choose `ties="random"` or `ties="positive"`.'
        )
    rng_key = _check_key("majority_vote", noise, key, random_ties=ties == "random")

    def vote(
        rows: jax.Array, draws: _LeafDraws, population: Population, present: _Mask
    ) -> jax.Array:
        tally = voting.count_votes(
            rows,
            noise=draws.noise,
            ties=ties,
            zero_keys=draws.zero_keys,
            present=present,
        )
        votes = voting.decide(
            collectives.total(tally, axis_name),
            ties=ties,
            tie_key=draws.tie_key,
            anybody=_anybody(population, present),
        )
        return votes.astype(rows.dtype)

    return _aggregator(
        "majority_vote", vote, noise, rng_key, axis_name, random_ties=ties == "random"
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
      taken over the workers present.

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

    def median(
        rows: jax.Array, draws: _LeafDraws, population: Population, present: _Mask
    ) -> jax.Array:
        if axis_name is None:
            middle = selection.median_of_rows(
                rows, noise=draws.noise, even=even, present=present
            )
            return middle.astype(rows.dtype)
        del population
        sent = rows if draws.noise is None else perturbation.add(rows, draws.noise)
        middle = selection.median_of_rows(
            collectives.to_coordinate_slices(sent, axis_name),
            noise=None,
            even=even,
            present=_gather_mask(present, axis_name),
        )
        joined = collectives.from_coordinate_slices(middle, rows.shape[1], axis_name)
        return joined.astype(rows.dtype)

    return _aggregator("coordinate_median", median, noise, rng_key, axis_name)


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
      the mean is taken over the workers present, and is 0 if nobody is.

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

    def mean(
        rows: jax.Array, draws: _LeafDraws, population: Population, present: _Mask
    ) -> jax.Array:
        del draws
        total = collectives.total(
            averaging.sum_of_rows(rows, present=present), axis_name
        )
        count = jnp.maximum(_num_present(population, present), 1)
        return (total / count.astype(total.dtype)).astype(rows.dtype)

    return _aggregator("worker_mean", mean, None, None, axis_name)


# --- what the three share -------------------------------------------------------------

_Mask = jax.Array | None


class _LeafDraws(NamedTuple):
    """All that is random about one leaf in one step."""

    noise: LeafNoise | None = None
    zero_keys: jax.Array | None = None  # uint32 [m, 2]
    tie_key: jax.Array | None = None  # uint32 [2]


_Aggregate = Callable[[jax.Array, _LeafDraws, Population, _Mask], jax.Array]


def _aggregator(
    name: str,
    aggregate: _Aggregate,
    noise: Noise | None,
    rng_key: jax.Array | None,
    axis_name: AxisName | None,
    *,
    random_ties: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Lifts a function of rows ``[m, d] -> [d]`` to trees, steps and keys."""

    def init_fn(params: Any) -> Any:
        del params
        return optax.EmptyState() if rng_key is None else _keys.init_state(rng_key)

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        worker_mask: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args
        population = survey(name, updates, params, axis_name)
        present = check_mask(name, worker_mask, population)
        leaves, treedef = jax.tree.flatten(updates)
        draws = [_LeafDraws()] * len(leaves)
        if rng_key is not None:
            draws = _draw(noise, random_ties, state, leaves, population, present)
            state = _keys.next_state(state)
        aggregated = [
            aggregate(
                leaf.reshape(leaf.shape[0], -1), leaf_draws, population, present
            ).reshape(leaf.shape[1:])
            for leaf, leaf_draws in zip(leaves, draws, strict=True)
        ]
        return jax.tree.unflatten(treedef, aggregated), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _draw(
    noise: Noise | None,
    random_ties: bool,
    state: _keys.KeyState,
    leaves: list[jax.Array],
    population: Population,
    present: _Mask,
) -> list[_LeafDraws]:
    """Deals noise and fair bits to every leaf for the step at ``state``."""
    noises: list[Any] = [None] * len(leaves)
    if noise is not None:
        noises = perturbation.resolve(noise, state, leaves, population, present)
    if not random_ties:
        return [_LeafDraws(leaf_noise) for leaf_noise in noises]
    leaf_keys = _keys.leaf_keys(state, len(leaves))
    zero_numbers = population.numbers() + _keys.ZERO_BITS
    return [
        _LeafDraws(
            leaf_noise,
            jax.random.key_data(_keys.fold_in_each(leaf_keys[i], zero_numbers)),
            jax.random.key_data(jax.random.fold_in(leaf_keys[i], _keys.TALLY_TIES)),
        )
        for i, leaf_noise in enumerate(noises)
    ]


def _num_present(population: Population, present: _Mask) -> jax.Array:
    if present is None:
        return jnp.asarray(population.num_workers, jnp.int32)
    return collectives.total(jnp.sum(present, dtype=jnp.int32), population.axis_name)


def _anybody(population: Population, present: _Mask) -> _Mask:
    return None if present is None else _num_present(population, present) > 0


def _gather_mask(present: _Mask, axis_name: AxisName | None) -> _Mask:
    return None if present is None else collectives.gather(present, axis_name)


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
