"""Krum and multi-Krum: Byzantine-robust aggregators by distances to near neighbours.

A worker's score is the sum of its squared distances to its nearest neighbours. f
hostile workers cannot be near enough others without being near the honest. Distances
come from `kernels.distances`: whoever is not finite is infinitely far from everybody,
and is never chosen while others are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels.distances import scores, sound_rows, squared_distances
from jaxmedian.transforms.whole_gradients import Gradients, whole_gradient_rule
from jaxmedian.workers.checks import check_f, check_minority, static_hint
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import Population


def krum(
    f: int, neighbors: int | None = None, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Selects the worker with the closest neighbours: ``[M, ...] -> [...]``.

    .. math:: g_{i^*}, \quad i^* = \arg\min_i \sum_{j \in N_i} \|g_i - g_j\|^2

    with N_i the M - f - 2 nearest of the others. The distance is over all leaves; of
    equal scores the lowest number wins. Up to f arbitrary workers leave the error below
    kappa = 6 (1 + f / (M - 2f)) times the variance of the honest. The update is one
    worker's gradient: on heterogeneous data it follows one worker's data.

    One Gram matrix, M^2 d multiplications, and no M x M x d numbers. Distances are
    right to about 1e-6 of the squared distance from the median in float32.

    Args:
      f: hostile workers to withstand, 2 f + 3 <= M.
      neighbors: how many neighbours score, 1 to M - 1, in place of M - f - 2; then
        2 f < M is enough.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
        Distances are then sums of the devices', so scores that tie within rounding may
        choose another worker; the row of the worker chosen is the same to the bit.

    Returns:
      A transformation without state. ``update`` takes ``worker_mask``, bool ``[M]``:
      neighbours are counted among the workers present (at least one), and the result is
      0 if nobody is. Rows that are not finite, or overflow when squared, are
      infinitely far away.

    Raises:
      TypeError, ValueError: for a bad f or number of neighbours; while tracing, for
        fewer than 2 f + 3 workers and for updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.krum(1)
    >>> params = jnp.zeros(1)
    >>> grads = jnp.array([[1.], [2.], [2.5], [jnp.nan], [4.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [2.0]

    References:
      Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient
      Descent, NeurIPS 2017. https://arxiv.org/abs/1703.02757
      Allouah et al., Fixing by Mixing, AISTATS 2023 (kappa).
    """
    f = check_f("krum", f)
    _check_neighbors("krum", neighbors)

    def rule(gradients: Gradients) -> list[jax.Array]:
        population = gradients.population
        _check_size("krum", f, neighbors, population.num_workers)
        order, _ = _by_score(gradients, f, neighbors)
        chosen = gradients.pick(order[0])
        if population.present is None:
            return chosen
        anybody = population.num_present() > 0
        return [jnp.where(anybody, row, np.asarray(0, row.dtype)) for row in chosen]

    return whole_gradient_rule("krum", rule, axis_name)


def multi_krum(
    f: int, neighbors: int | None = None, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the M - f workers with the closest neighbours: ``[M, ...] -> [...]``.

    .. math:: \frac{1}{M - f} \sum_{i \in S} g_i

    with S the M - f workers of the smallest `krum` scores. Less variance than Krum, and
    as many hostile workers as hide among the honest are averaged in. Rows that are not
    finite are never averaged, and do not count.

    Krum's cost, and one more pass over the gradients.

    Args:
      f: hostile workers to withstand, 2 f + 3 <= M.
      neighbors: how many neighbours score, in place of M - f - 2; see `krum`.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation without state; see `krum` for masks, of n workers present n - f
      (at least one) are averaged.

    Raises:
      TypeError, ValueError: as `krum`.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.multi_krum(1)
    >>> params = jnp.zeros(1)
    >>> grads = jnp.array([[1.], [2.], [2.5], [jnp.nan], [4.5]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [2.5]

    References:
      Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient
      Descent, NeurIPS 2017. https://arxiv.org/abs/1703.02757
    """
    f = check_f("multi_krum", f)
    _check_neighbors("multi_krum", neighbors)

    def rule(gradients: Gradients) -> list[jax.Array]:
        population = gradients.population
        _check_size("multi_krum", f, neighbors, population.num_workers)
        order, sound = _by_score(gradients, f, neighbors)
        rank = jnp.argsort(order).astype(jnp.int32)
        kept = jnp.maximum(population.num_present() - np.int32(f), 1)
        chosen = (rank < kept) & sound
        count = jnp.maximum(jnp.sum(chosen, dtype=jnp.int32), 1)
        weights = chosen.astype(gradients.dtype) / count.astype(gradients.dtype)
        return gradients.weighted_sum(weights)

    return whole_gradient_rule("multi_krum", rule, axis_name)


def _by_score(
    gradients: Gradients, f: int, neighbors: int | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the workers ``[M]`` from the best score on, and who is sound."""
    gram = gradients.gram()
    population = gradients.population
    present = population.present_mask()
    sound = sound_rows(gram, present)
    ascending = jnp.sort(squared_distances(gram, sound), axis=1)[:, 1:]
    scoring = _num_neighbors(population, f, neighbors)
    counted = (jnp.arange(ascending.shape[1], dtype=jnp.int32) < scoring)[None, :]
    num_far, score = scores(ascending, counted)
    # The last key is the first to be compared; sorting is stable.
    keys = [score, num_far, ~sound]
    if present is not None:
        keys.append(~present)
    return jnp.lexsort(keys).astype(jnp.int32), sound


def _num_neighbors(
    population: Population, f: int, neighbors: int | None
) -> jax.Array | int:
    if neighbors is not None:
        return neighbors
    if population.present is None:
        return population.num_workers - f - 2
    return jnp.maximum(population.num_present() - np.int32(f + 2), 1)


def _check_neighbors(rule: str, neighbors: int | None) -> None:
    if neighbors is None:
        return
    if isinstance(neighbors, bool) or not isinstance(neighbors, int | np.integer):
        hint = static_hint("neighbors", neighbors)
        raise TypeError(
            f"`{rule}`: `neighbors` must be an int; got {neighbors!r}.{hint}"
        )
    if neighbors < 1:
        raise ValueError(f"`{rule}`: `neighbors` must be >= 1; got {neighbors}.")


def _check_size(rule: str, f: int, neighbors: int | None, num_workers: int) -> None:
    if neighbors is not None:
        check_minority(rule, f, num_workers)
        if neighbors >= num_workers:
            raise ValueError(
                f"`{rule}`: {num_workers} workers have at most {num_workers - 1} "
                f"neighbours each; `neighbors` is {neighbors}."
            )
    elif num_workers < 2 * f + 3:
        raise ValueError(
            f"`{rule}` needs 2 f + 3 workers to withstand f: {2 * f + 3} for `f` {f}; "
            f"got {num_workers}. Take a smaller f or pass `neighbors`, for which "
            "2 f < M is enough."
        )
