"""The mean over workers, what votes and medians stand in for."""

import jax
import optax

from jaxmedian.kernels.rows import sum_of_rows
from jaxmedian.transforms.build import Rule, aggregator
from jaxmedian.transforms.draws import LeafDraws
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import Population


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

    def finish(x: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        del draws
        return population.mean_from_sum(x)

    rule = Rule(reduce, finish, additive=True)
    return aggregator("worker_mean", rule, axis_name=axis_name)
