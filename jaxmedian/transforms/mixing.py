"""Bucketing and nearest-neighbor mixing: average workers before a robust rule.

    nearest_neighbor_mixing   each worker becomes the mean of its neighbours
    bucketing                 random buckets of workers become their means

On heterogeneous data honest workers differ, and a robust rule cannot tell that from
hostility. Mixing lowers the variance it sees at the price of spreading the hostile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels.distances import sound_rows, squared_distances
from jaxmedian.noise import keys
from jaxmedian.transforms.build import Step, transformation
from jaxmedian.transforms.whole_gradients import (
    Gradients,
    whole_gradient_rule,
)
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import as_transform, check_count, check_f, check_minority
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import Population, check_aggregated


def nearest_neighbor_mixing(
    f: int, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces each worker by the mean of its M - f nearest: ``[M, ...] -> [M, ...]``.

    .. math:: g_i \leftarrow \frac{1}{M - f} \sum_{j \in N_i} g_j

    with N_i the M - f nearest workers, oneself included, over all leaves; of equal
    distances the lowest numbers. Before a rule of coefficient kappa the two together
    have at most 8 f / (M - f) (kappa + 1), of the best order in f / M, whatever the
    heterogeneity of the data.

    One Gram matrix and one matrix product, 2 M^2 d multiplications together.

    Args:
      f: hostile workers to withstand, 2 f < M.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform without state. Rows that are not finite, or overflow when
      squared, are nobody's neighbours, and become the mean of the rows nearest to the
      coordinate-wise median. ``update`` takes ``worker_mask``, bool ``[M]``: of n
      workers present, n - f (at least one) are mixed; absent rows become 0.

    Raises:
      TypeError, ValueError: for a bad f; while tracing, for an f that is no minority
        and for updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.nearest_neighbor_mixing(1)
    >>> grads = jnp.array([[1.], [2.], [6.], [99.]])
    >>> tx.update(grads, tx.init(None))[0].ravel().tolist()
    [3.0, 3.0, 3.0, 35.66666793823242]

    References:
      Allouah et al., Fixing by Mixing: A Recipe for Optimal Byzantine ML under
      Heterogeneity, AISTATS 2023. https://arxiv.org/abs/2302.01772
    """
    f = check_f("nearest_neighbor_mixing", f)

    def rule(gradients: Gradients) -> list[jax.Array]:
        population = gradients.population
        check_minority("nearest_neighbor_mixing", f, population.num_workers)
        gram = gradients.gram()
        present = population.present_mask()
        sound = sound_rows(gram, present)
        infinite = np.asarray(np.inf, gram.dtype)
        from_median = jnp.where(sound, jnp.diagonal(gram), infinite)
        distances = jnp.where(
            sound[:, None], squared_distances(gram, sound), from_median[None, :]
        )
        nearest = jnp.argsort(distances, axis=1, stable=True)
        rank = jnp.argsort(nearest, axis=1).astype(jnp.int32)
        kept = jnp.maximum(population.num_present() - np.int32(f), 1)
        mixed = (rank < kept) & sound[None, :]
        if present is not None:
            mixed = mixed & present[:, None]
        count = jnp.maximum(jnp.sum(mixed, axis=1, dtype=jnp.int32), 1)
        share = 1 / count.astype(gram.dtype)
        return gradients.mix(mixed.astype(gram.dtype) * share[:, None])

    return whole_gradient_rule("nearest_neighbor_mixing", rule, axis_name)


class BucketingState(NamedTuple):
    """State of buckets that know what stands behind them.

    Attributes:
      buckets: the step they are at, and their key.
      aggregator: the state of what stands behind.
    """

    buckets: keys.KeyState
    aggregator: Any


def bucketing(
    size: int,
    key: keys.Key,
    aggregator: optax.GradientTransformation | None = None,
    *,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages random buckets of workers: ``[M, ...] -> [ceil(M / size), ...]``.

    Workers are shuffled anew each step and cut into buckets of ``size``, the last one
    perhaps smaller; a bucket becomes its mean. What follows sees fewer workers, closer
    to each other by a variance `size` times smaller, of whom up to f are still spoilt
    by f hostile ones: tell the rule behind it f of ceil(M / size). NaN and infinities
    spoil their bucket.

    Where workers may be absent, pass the aggregator: a bucket is then the mean of those
    of its workers who are present, and one without anybody is absent to the aggregator.
    In a chain it would be given a mask of workers, and see buckets.

    One pass over the gradients.

    Args:
      size: workers a bucket, at least 1.
      key: a typed key, a legacy key or an int. The order of a step is
        ``random.permutation(fold_in(fold_in(key, step), branch), M)``, with
        `noise.keys.BUCKET_ORDER` as ``branch``.
      aggregator: what stands behind, with any worker transforms before it; None in a
        chain, which then takes no ``worker_mask``.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`; the
        number of devices must divide the number of buckets.

    Returns:
      A worker transform with state ``(count, rng_key)``. With an aggregator, that
      aggregator over buckets, with state ``(buckets, aggregator)``: ``update`` takes
      ``worker_mask``, bool ``[M]``, and hands other extra arguments on.

    Raises:
      TypeError, ValueError: for a bad size, key or aggregator; while tracing, for a
        ``worker_mask`` without an aggregator to tell of it, and for updates without a
        worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.bucketing(2, key=0)
    >>> grads = jnp.arange(5.0)[:, None]
    >>> sent, _ = tx.update(grads, tx.init(None))
    >>> sent.shape
    (3, 1)
    >>> tx = jm.bucketing(2, 0, jm.coordinate_median())
    >>> mask = jnp.arange(5) == 3  # one bucket of one worker
    >>> tx.update(grads, tx.init(None), worker_mask=mask)[0].tolist()
    [3.0]

    References:
      Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets via
      Bucketing, ICLR 2022. https://arxiv.org/abs/2006.09365
    """
    check_count("size", size)
    rng_key = keys.as_threefry_key(key)
    if aggregator is not None:
        aggregator = as_transform("aggregator", aggregator)

    def init(params: optax.Params) -> keys.KeyState | BucketingState:
        buckets = keys.init_state(rng_key)
        if aggregator is None:
            return buckets
        return BucketingState(buckets, aggregator.init(params))

    def apply(step: Step) -> tuple[optax.Updates, optax.OptState]:
        present = step.population.present
        if present is not None and aggregator is None:
            raise ValueError(
                "`bucketing` in a chain takes no `worker_mask`: what stands behind it "
                "sees buckets, and would be given a mask of workers. Pass what stands "
                "behind: `bucketing(size, key, aggregator)`."
            )
        gradients = Gradients(step.updates, step.population)
        own = step.state if aggregator is None else step.state.buckets
        buckets = _deal(step.population, keys.step_key(own), size)
        means = gradients.leaves(_means(gradients, buckets))
        own = keys.next_state(own)
        if aggregator is None:
            return means, own
        bucket_mask = None
        if present is not None:
            somebody = jnp.any(buckets.counted, axis=1)
            bucket_mask = collectives.own_block(somebody, axis_name)
        result, inner = aggregator.update(
            means,
            step.state.aggregator,
            step.params,
            worker_mask=bucket_mask,
            **step.extra_args,
        )
        if step.params is not None:
            check_aggregated("bucketing", result, step.params)
        return result, BucketingState(own, inner)

    return transformation("bucketing", apply, init=init, axis_name=axis_name)


class _Buckets(NamedTuple):
    """Who is in which of K buckets: numbers of workers ``[K, size]``, and who counts.

    The last bucket is filled up with workers who do not count.
    """

    workers: jax.Array
    counted: jax.Array


def _deal(population: Population, key: jax.Array, size: int) -> _Buckets:
    """Deals the workers of a step to the buckets."""
    num_workers = population.num_workers
    num_buckets = -(-num_workers // size)
    num_devices = collectives.size(population.axis_name)
    if num_buckets % num_devices:
        raise ValueError(
            f"`bucketing` makes {num_buckets} buckets of {num_workers} workers, which "
            f"{num_devices} devices cannot share evenly: choose another `size`."
        )
    order = jax.random.permutation(
        jax.random.fold_in(key, keys.BUCKET_ORDER), num_workers
    )
    present = population.present_mask()
    counted = jnp.ones(num_workers, bool) if present is None else present[order]
    padding = (0, num_buckets * size - num_workers)
    return _Buckets(
        jnp.pad(order, padding).reshape(num_buckets, size),
        jnp.pad(counted, padding).reshape(num_buckets, size),
    )


def _means(gradients: Gradients, buckets: _Buckets) -> list[jax.Array]:
    """Averages the buckets: blocks ``[K, n]``, on a mesh the local K / D."""
    axis_name = gradients.population.axis_name
    number = jnp.maximum(jnp.sum(buckets.counted, axis=1, dtype=jnp.int32), 1)
    means = []
    for block in gradients.blocks:
        rows = collectives.to_coordinate_slices(block, axis_name)
        rows = rows.astype(gradients.dtype)
        zero = np.asarray(0, rows.dtype)
        members = [
            jnp.where(counted[:, None], rows[workers], zero)
            for workers, counted in zip(
                buckets.workers.T, buckets.counted.T, strict=True
            )
        ]
        mean = sum(members[1:], members[0]) / number.astype(rows.dtype)[:, None]
        means.append(collectives.to_worker_blocks(mean, block.shape[1], axis_name))
    return means
