"""Bulyan and the minimum-diameter mean: robust aggregators of a subset of workers.

    bulyan                  Krum's choice again and again, then coordinate by coordinate
    minimum_diameter_mean   the mean of the workers who are least far from each other

Whom to choose is decided by M x M distances, in `kernels.combinations`. Workers who are
not finite are infinitely far from everybody, and are never chosen. Float32 gradients
that differ by less than 1e-19 are all equally near: scale the loss up for these.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels import combinations, trimming
from jaxmedian.kernels.distances import sound_rows, squared_distances
from jaxmedian.transforms.whole_gradients import Gradients, whole_gradient_rule
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import check_f, check_minority
from jaxmedian.workers.collectives import AxisName

# Pairs of workers over all branches: what the search holds at a time.
_MOST_PAIRS = 2**22


def bulyan(
    f: int, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the middle of M - 2f workers whom Krum chose: ``[M, ...] -> [...]``.

    .. math:: \frac{1}{M - 4f} \sum_{i \in N_j} g_{ij}

    First M - 2f workers are chosen, one after the other: each is `krum`'s choice of the
    r who are left, whose r - f - 2 nearest others (at least one) score. Then N_j are,
    in each coordinate j, the M - 4f of them nearest to their median, as in
    `mean_around_median`. Krum alone lets a hostile worker stray far in a few of many
    coordinates, since its distance is over all of them; here every value that counts is
    no farther from the median of the chosen than an honest one.

    Up to f arbitrary workers leave the error below kappa times the variance of the
    honest, for f >= 1 kappa = (M - f) (2 / sqrt(M/2 - 2f) + 1 / sqrt(f))^2, by the
    second step alone.

    Krum's Gram matrix, M^3 operations on its numbers, and a `mean_around_median`.

    Args:
      f: hostile workers to withstand, 4 f + 3 <= M.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`; see
        `krum` for ties.

    Returns:
      A transformation without state. ``update`` takes ``worker_mask``, bool ``[M]``: of
      n workers present n - 2f are chosen (at least one); where at most 2f are chosen
      the result is their median, and 0 of nobody. Rows that are not finite, or overflow
      when squared, are not chosen.

    Raises:
      TypeError, ValueError: for a bad f; while tracing, for fewer than 4 f + 3 workers
        and for updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.bulyan(1)
    >>> params = jnp.zeros(1)
    >>> grads = jnp.array([[1.], [2.], [3.], [4.], [5.], [6.], [99.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [3.0]

    References:
      El Mhamdi et al., The Hidden Vulnerability of Distributed Learning in Byzantium,
      ICML 2018. https://arxiv.org/abs/1802.07927
    """
    f = check_f("bulyan", f)

    def rule(gradients: Gradients) -> list[jax.Array]:
        population = gradients.population
        _check_quarter(f, population.num_workers)
        gram = gradients.gram()
        present = population.present_mask()
        sound = sound_rows(gram, present)
        left = jnp.ones_like(sound) if present is None else present
        wanted = jnp.maximum(population.num_present() - np.int32(2 * f), 1)
        distances = squared_distances(gram, sound)
        chosen = combinations.peel(distances, left, sound, wanted, cut=f + 2)
        return [
            _middle(block, f, chosen, population.axis_name)
            for block in gradients.blocks
        ]

    return whole_gradient_rule("bulyan", rule, axis_name)


def _middle(
    block: jax.Array, f: int, chosen: jax.Array, axis_name: AxisName | None
) -> jax.Array:
    """Averages, of the chosen, the values nearest to the median but for 2 f."""
    rows = collectives.to_coordinate_slices(block, axis_name)
    cut, most = 2 * f, len(rows) - 2 * f
    first = jnp.argsort(~chosen, stable=True)[:most]

    def of_all(rows: jax.Array) -> jax.Array:
        return trimming.mean_around_median_of_some(rows, first, cut)

    def of_fewer(rows: jax.Array) -> jax.Array:
        return trimming.mean_around_median_of_rows(rows, cut, chosen, least=cut + 1)

    # Without absent rows there is less to select from: half the time.
    as_planned = jnp.sum(chosen, dtype=jnp.int32) == most
    mean = jax.lax.cond(as_planned, of_all, of_fewer, rows)
    return collectives.from_coordinate_slices(mean, block.shape[1], axis_name)


def minimum_diameter_mean(
    f: int, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the M - f workers least far from each other: ``[M, ...] -> [...]``.

    .. math:: \frac{1}{M - f} \sum_{i \in S^*} g_i, \quad
        S^* = \arg\min_{|S| = M - f} \max_{i, j \in S} \|g_i - g_j\|

    Of subsets of the same diameter the one whose sorted numbers come first. Up to f
    arbitrary workers leave the error below 2 f / (M - f) times the diameter of the
    honest, and below kappa = 8 f^2 / (M - f) times their variance: good for few hostile
    workers, and not of the best order for many.

    Krum's Gram matrix, and a search of 2^f branches for the subset, in place of all
    M over f subsets: for small f.

    Args:
      f: hostile workers to withstand, 2 f < M, and M (M - 1) 2^f <= 2^23: any f up to
        M = 28, f <= 12 for M = 41 and f <= 9 for M = 101.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`; see
        `krum` for ties.

    Returns:
      A transformation without state. ``update`` takes ``worker_mask``, bool ``[M]``: of
      n workers present n - f (at least one) are averaged, and the result is 0 if nobody
      is. Rows that are not finite, or overflow when squared, are dropped first, be they
      more than f or not.

    Raises:
      TypeError, ValueError: for a bad f; while tracing, for an f that is no minority or
        too large to search, and for updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.minimum_diameter_mean(2)
    >>> params = jnp.zeros(1)
    >>> grads = jnp.array([[1.], [2.], [6.], [98.], [jnp.nan]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [3.0]

    References:
      El Mhamdi et al., Genuinely Distributed Byzantine Machine Learning, PODC 2020.
      https://arxiv.org/abs/1905.03853
    """
    f = check_f("minimum_diameter_mean", f)

    def rule(gradients: Gradients) -> list[jax.Array]:
        population = gradients.population
        check_minority("minimum_diameter_mean", f, population.num_workers)
        _check_branches(f, population.num_workers)
        gram = gradients.gram()
        sound = sound_rows(gram, population.present_mask())
        num_kept = jnp.maximum(population.num_present() - np.int32(f), 1)
        distances = squared_distances(gram, sound)
        kept = combinations.least_diameter(distances, sound, num_kept, num_dropped=f)
        count = jnp.maximum(jnp.sum(kept, dtype=jnp.int32), 1)
        weights = kept.astype(gradients.dtype) / count.astype(gradients.dtype)
        return gradients.weighted_sum(weights)

    return whole_gradient_rule("minimum_diameter_mean", rule, axis_name)


def _check_quarter(f: int, num_workers: int) -> None:
    if num_workers < 4 * f + 3:
        raise ValueError(
            f"`bulyan` needs 4 f + 3 workers to withstand f: {4 * f + 3} for `f` {f}; "
            f"got {num_workers}. Take a smaller f, or `multi_krum` behind "
            "`nearest_neighbor_mixing`, for which 2 f + 3 are enough."
        )


def _check_branches(f: int, num_workers: int) -> None:
    num_pairs = num_workers * (num_workers - 1) // 2
    if num_pairs << f > _MOST_PAIRS:
        most = (_MOST_PAIRS // num_pairs).bit_length() - 1
        raise ValueError(
            f"`minimum_diameter_mean` searches 2^f branches of {num_pairs} pairs of "
            f"{num_workers} workers: too many for `f` {f}. Take f <= {most}, or "
            "`multi_krum`, whose cost does not grow with f."
        )
