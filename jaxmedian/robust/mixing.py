"""Worker transforms that make the honest alike before a rule sees them.

    nearest_neighbor_mixing   each worker becomes the mean of its neighbours
    bucketing                 random buckets of workers become their means

On heterogeneous data honest workers differ, and a robust rule cannot tell that from
hostility. Mixing lowers the variance it sees at the price of spreading the hostile.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian import _keys, collectives
from jaxmedian._workers import refuse_weights
from jaxmedian.collectives import AxisName
from jaxmedian.kernels.distances import sound_rows, squared_distances
from jaxmedian.robust.minority import check_f, check_minority
from jaxmedian.robust.mixtures import Gradients, survey_gradients, whole_gradient_rule
from jaxmedian.worker_gradients import check_count

_ORDER = np.uint32(2**31 + 1)  # folded into the key of a step


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
        present = population.all_present()
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


def bucketing(
    size: int, key: _keys.Key, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Averages random buckets of workers: ``[M, ...] -> [ceil(M / size), ...]``.

    Workers are shuffled anew each step and cut into buckets of ``size``, the last one
    perhaps smaller; a bucket becomes its mean. What follows sees fewer workers, closer
    to each other by a variance `size` times smaller, of whom up to f are still spoilt
    by f hostile ones: tell the rule behind it f of ceil(M / size). NaN and infinities
    spoil their bucket.

    One pass over the gradients.

    Args:
      size: workers a bucket, at least 1.
      key: a typed key, a legacy key or an int. The order of a step is
        ``random.permutation(fold_in(fold_in(key, step), 2**31 + 1), M)``.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`; the
        number of devices must divide the number of buckets.

    Returns:
      A worker transform with state ``(count, rng_key)``.

    Raises:
      TypeError, ValueError: for a bad size or key; while tracing, for a ``worker_mask``
        (what stands behind would be given one of a wrong size) and for updates without
        a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.bucketing(2, key=0)
    >>> grads = jnp.arange(5.0)[:, None]
    >>> sent, _ = tx.update(grads, tx.init(None))
    >>> sent.shape
    (3, 1)

    References:
      Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets via
      Bucketing, ICLR 2022. https://arxiv.org/abs/2006.09365
    """
    check_count("size", size)
    rng_key = _keys.as_threefry_key(key)

    def init_fn(params: Any) -> _keys.KeyState:
        del params
        return _keys.init_state(rng_key)

    def update_fn(
        updates: Any,
        state: _keys.KeyState,
        params: Any = None,
        *,
        worker_mask: jax.Array | None = None,
        worker_weights: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[Any, _keys.KeyState]:
        del extra_args
        refuse_weights("bucketing", worker_weights)
        if worker_mask is not None:
            raise ValueError(
                "`bucketing` takes no `worker_mask`: what stands behind it sees "
                "buckets, and would be given a mask of workers. Leave absent workers "
                "out of the batch, or leave `bucketing` out."
            )
        gradients = survey_gradients("bucketing", updates, params, axis_name, None)
        num_workers = gradients.population.num_workers
        order_key = jax.random.fold_in(_keys.step_key(state), _ORDER)
        order = jax.random.permutation(order_key, num_workers)
        return gradients.leaves(_buckets(gradients, order, size)), _keys.next_state(
            state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _buckets(gradients: Gradients, order: jax.Array, size: int) -> list[jax.Array]:
    """Averages the buckets of the order: blocks ``[K, n]``, on a mesh the local K."""
    num_workers = gradients.population.num_workers
    axis_name = gradients.population.axis_name
    num_buckets, num_devices = -(-num_workers // size), collectives.size(axis_name)
    if num_buckets % num_devices:
        raise ValueError(
            f"`bucketing` makes {num_buckets} buckets of {num_workers} workers, which "
            f"{num_devices} devices cannot share evenly: choose another `size`."
        )
    num_full = num_workers // size
    means = []
    for block in gradients.blocks:
        rows = collectives.to_coordinate_slices(block, axis_name)
        rows = rows.astype(gradients.dtype)
        full = order[: num_full * size].reshape(num_full, size)
        mean = sum((rows[full[:, i]] for i in range(1, size)), rows[full[:, 0]])
        mean = mean / np.asarray(size, mean.dtype)
        if num_full < num_buckets:
            rest = rows[order[num_full * size :]]
            mean = jnp.concatenate([mean, jnp.mean(rest, axis=0, keepdims=True)])
        means.append(collectives.to_worker_blocks(mean, block.shape[1], axis_name))
    return means
