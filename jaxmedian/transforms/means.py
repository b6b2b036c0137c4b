"""Rules that average each coordinate by itself: ``[M, ...] -> [...]``.

    worker_mean          all values: what votes and medians stand in for
    mean_of_signs        their signs, in integers
    trimmed_mean         all but the f smallest and the f largest
    mean_around_median   the M - f nearest to the median

The arithmetic on rows is that of `kernels.rows`, `kernels.ballots` and
`kernels.trimming`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxmedian.kernels import limbs, trimming, weighting
from jaxmedian.kernels.rows import sum_of_rows
from jaxmedian.noise import Noise, keys
from jaxmedian.transforms.build import Rule, aggregator
from jaxmedian.transforms.draws import LeafDraws, check_key
from jaxmedian.transforms.vote import count_locally
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import check_f, check_minority
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import Population

_MeanOfRows = Callable[[jax.Array, int, jax.Array | None], jax.Array]


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
        return sum_of_rows(rows, present=population.present, weights=population.weights)

    def finish(
        x: jax.Array, draws: LeafDraws, population: Population, size: int
    ) -> jax.Array:
        del draws, size
        return population.mean_from_sum(x)

    rule = Rule(reduce, finish, additive=True)
    return aggregator("worker_mean", rule, axis_name=axis_name)


def mean_of_signs(
    noise: Noise | None = None,
    key: keys.Key | None = None,
    *,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the signs of the workers' gradients: ``[M, ...] -> [...]``.

    .. math:: \frac{1}{M} \sum_i \mathrm{sign}(g_i + b\, \xi_i)

    The tally that `majority_vote` takes the sign of, divided by M: a step whose length
    says how far the workers agree. Tallies are added as integers, int8 up to 127
    workers, else int32, and divided once. With uniform noise, of either coupling and
    for any M, odd or even, it is an unbiased estimate where no worker is out of reach:

    .. math:: E[\cdot] = \frac{1}{\sqrt 3\, b} \cdot \frac{1}{M} \sum_i g_i
       \quad\text{for}\quad \sqrt 3\, b \ge \max_i |g_i|

    Each worker sends one bit per coordinate, or one of three values where exact zeros
    occur: 0, -0.0 and NaN count 0. On a mesh devices add integers, which
    `diagnostics.wire_bytes` counts. What comes back is a tally, not a bit.

    Args:
      noise: law, scale and coupling, or None for plain signs; drawn as by
        `majority_vote` with the same key.
      key: a typed key, a legacy key or an int; needed for noise.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation whose updates lie in [-1, 1], in the dtype of the gradients.
      ``update`` takes ``worker_mask``, bool ``[M]``: the average is over those present,
      and 0 of nobody; and ``worker_weights``, ``[M]``: it is weighted by them.

    Raises:
      TypeError, ValueError: for a bad noise or key; for a key without use; while
        tracing, for updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.mean_of_signs()
    >>> params = jnp.zeros(2)
    >>> grads = jnp.array([[1., 0.], [2., 4.], [-9., 5.], [3., 0.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [0.5, 0.5]

    References:
      Liu et al., Communication Efficient Distributed Training with Distributed Lion,
      NeurIPS 2024 (D-Lion by averaging). https://arxiv.org/abs/2404.00438
      Tang et al., z-SignFedAvg, AAAI 2024. https://arxiv.org/abs/2302.02589
    """
    rng_key = check_key("mean_of_signs", noise, key)

    def reduce(rows: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        return count_locally(rows, draws, population, ties="zero")

    def finish(
        x: jax.Array, draws: LeafDraws, population: Population, size: int
    ) -> jax.Array:
        del draws, size
        tally = collectives.total(x, axis_name)  # of integers, without weights
        dtype = jnp.result_type(float)  # float64 where there is any
        if population.weights is None:
            return tally.astype(dtype) / population.total_weight(dtype)
        num_workers = population.num_workers
        addends = limbs.addends(population.weights, num_workers)
        total = collectives.total(jnp.sum(addends, axis=1), axis_name)
        count = limbs.as_float(total, num_workers, dtype)
        tally = limbs.as_float(tally, num_workers, dtype)
        return tally / jnp.where(count > 0, count, 1)

    return aggregator(
        "mean_of_signs",
        Rule(reduce, finish, additive=True),
        noise=noise,
        rng_key=rng_key,
        axis_name=axis_name,
    )


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
      sum of the weights at each end. Weights that sum to 1, n_i / n say, count as one
      worker together, and give the weighted median: scale them to sum to M.

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
