"""Coordinate-wise rules that average the middle: ``[M, ...] -> [...]``.

Between the median and the mean: each coordinate by itself, all but the values of f
workers averaged. The arithmetic on rows is `kernels.trimming`'s.
"""

from collections.abc import Callable

import jax
import optax

from jaxmedian.kernels import trimming, weighting
from jaxmedian.transforms.build import Rule, aggregator
from jaxmedian.transforms.draws import LeafDraws
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import check_f, check_minority
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import Population

_MeanOfRows = Callable[[jax.Array, int, jax.Array | None], jax.Array]


def trimmed_mean(
    f: int, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Averages each coordinate without its f smallest and f largest values.

    .. math:: \frac{1}{M - 2f} \sum_{r = f}^{M - f - 1} g_{(r)j}

    with the values of coordinate j in ascending order. 0 is the mean, (M - 1) / 2 the
    median. Up to f arbitrary workers leave every coordinate inside the range of the
    others, and the error is at most kappa times the variance of the honest with
    kappa = 6 f / (M - 2f) (1 + f / (M - 2f)), the best order there is. NaN counts as
    +inf. Heterogeneous data bias it like a median, by less.

    One selection of two ranks and one sum, both in one pass over the gradients.

    Args:
      f: hostile workers to withstand, 2 f < M.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation without state; sums are in float32 (float64 for float64) and
      rounded once. ``update`` takes ``worker_mask``, bool ``[M]``: where at most 2 f
      workers are present the result is their median, and 0 of nobody; and
      ``worker_weights``, ``[M]``: each counts as so many workers, and f is cut off the
      sum of the weights at each end.

    Raises:
      TypeError, ValueError: for an f that is no int or negative; while tracing, for f
        that is no minority and for updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.trimmed_mean(1)
    >>> params = jnp.zeros(1)
    >>> grads = jnp.array([[1.], [2.], [6.], [jnp.nan], [-99.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [3.0]

    References:
      Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.
      Allouah et al., Fixing by Mixing, AISTATS 2023 (kappa).
      https://arxiv.org/abs/2302.01772
    """
    return _coordinate_wise(
        "trimmed_mean",
        check_f("trimmed_mean", f),
        trimming.trimmed_mean_of_rows,
        axis_name,
    )


def mean_around_median(
    f: int, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Averages in each coordinate the M - f values nearest to the median.

    .. math:: \frac{1}{M - f} \sum_{i \in N_j} g_{ij}

    with N_j the M - f workers of the smallest \|g_ij - median_i g_ij\|; of two at the
    same distance on both sides the smaller value. Unlike a trimmed mean it cuts f
    values in all, from whichever side they stray. Up to f arbitrary workers leave it
    finite: what it keeps of them is no farther from the median than an honest value.
    NaN counts as +inf; with more than f values that are not finite the result is NaN.

    Two selections and one sum in one pass over the gradients, up to 32 workers; beyond,
    three passes.

    Args:
      f: hostile workers to withstand, 2 f < M.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation without state; see `trimmed_mean` for dtypes and masks.

    Raises:
      TypeError, ValueError: as `trimmed_mean`.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.mean_around_median(2)
    >>> params = jnp.zeros(1)
    >>> grads = jnp.array([[1.], [2.], [6.], [98.], [99.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [3.0]

    References:
      Xie et al., Generalized Byzantine-tolerant SGD, 2018 ("mean around median").
      https://arxiv.org/abs/1802.10116
    """
    return _coordinate_wise(
        "mean_around_median",
        check_f("mean_around_median", f),
        trimming.mean_around_median_of_rows,
        axis_name,
    )


def _coordinate_wise(
    name: str, f: int, mean_of_rows: _MeanOfRows, axis_name: AxisName | None
) -> optax.GradientTransformationExtraArgs:
    def reduce(rows: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        del draws
        check_minority(name, f, population.num_workers)
        slices = collectives.to_coordinate_slices(rows, axis_name)
        if (weights := population.weights_of_all()) is not None:
            mean = weighting.trimmed_mean_of_rows(slices, weights, f)
        else:
            mean = mean_of_rows(slices, f, population.present_mask())
        return collectives.from_coordinate_slices(mean, rows.shape[1], axis_name)

    return aggregator(
        name,
        Rule(reduce),
        axis_name=axis_name,
        weighted=name == "trimmed_mean",
    )
