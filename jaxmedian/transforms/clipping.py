"""Worker transforms that bound norms: ``[M, ...] -> [M, ...]``.

    clip_workers             each norm by a radius that is given
    adaptive_clip_workers    the largest norms by the largest of the others

The norm is over all leaves of one worker. Rows whose norm is not finite become 0.
Clipping bounds what a hostile worker adds to a mean, and is no robust rule by itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels.distances import clip_factors, norms_of
from jaxmedian.transforms.whole_gradients import Gradients, whole_gradient_rule
from jaxmedian.workers.checks import check_f, check_minority, check_radius
from jaxmedian.workers.collectives import AxisName


def clip_workers(
    radius: float, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Bounds the norm of each worker's gradient: ``[M, ...] -> [M, ...]``.

    .. math:: g_i \leftarrow g_i \min\Big(1, \frac{\tau}{\|g_i\|}\Big)

    The norm is over all leaves of one worker, as `optax.clip_by_global_norm` would have
    over all workers at once. It bounds what a hostile worker adds to a mean, and is no
    robust rule by itself. Two passes over the gradients.

    Args:
      radius: tau > 0, in units of the gradient's norm; may be traced, and then reach 0
        (everything becomes 0; below it too).
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform without state. Rows whose norm is not finite become 0, those
      too whose square float32 does not hold (norms above some 1e19).
      ``worker_mask`` and ``worker_weights`` change nothing here.

    Raises:
      TypeError, ValueError: for a bad radius; while tracing, for updates without a
        worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.clip_workers(1.0)
    >>> grads = jnp.array([[0., 4.], [0.5, 0.], [jnp.nan, 1.]])
    >>> sent, _ = tx.update(grads, tx.init(None))
    >>> sent.tolist()
    [[0.0, 1.0], [0.5, 0.0], [0.0, 0.0]]
    """
    check_radius("radius", radius)

    def rule(gradients: Gradients) -> list[jax.Array]:
        norms = norms_of(gradients.squared_norms())
        return _scaled(gradients, clip_factors(norms, radius), jnp.isfinite(norms))

    return whole_gradient_rule("clip_workers", rule, axis_name, weighted=True)


def adaptive_clip_workers(
    f: int, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the k largest norms to the next largest: ``[M, ...] -> [M, ...]``.

    .. math:: g_i \leftarrow g_i \min\Big(1, \frac{\|g_{(k+1)}\|}{\|g_i\|}\Big), \quad
        k = \Big\lfloor \frac{2 f (M - f)}{M} \Big\rfloor

    with the norms in descending order. The radius follows the gradients, so none needs
    to be known: since k >= f, nobody keeps a norm larger than the largest of the
    honest. Up to f arbitrary workers and a rule of coefficient kappa behind it leave
    kappa + 2 f / (M - 2 f).

    Two passes over the gradients.

    Args:
      f: hostile workers to withstand, 2 f < M.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform without state. Rows whose norm is not finite are among the
      largest, and become 0. ``update`` takes ``worker_mask``, bool ``[M]``: norms are
      compared, and M is counted, among those present, and absent rows become 0; where
      at most f are present nobody is clipped.

    Raises:
      TypeError, ValueError: for a bad f; while tracing, for an f that is no minority
        and for updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.adaptive_clip_workers(1)
    >>> grads = jnp.array([[1., 0.], [0., 2.], [3., 0.], [0., 99.]])
    >>> tx.update(grads, tx.init(None))[0].tolist()
    [[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 3.0]]

    References:
      Allouah et al., Adaptive Gradient Clipping for Robust Federated Learning, ICLR
      2025 ("ARC", with the coefficient). https://arxiv.org/abs/2405.14432
    """
    f = check_f("adaptive_clip_workers", f)

    def rule(gradients: Gradients) -> list[jax.Array]:
        population = gradients.population
        check_minority("adaptive_clip_workers", f, population.num_workers)
        norms = norms_of(gradients.squared_norms())
        counted = jnp.isfinite(norms)
        compared = jnp.where(counted, norms, np.inf)
        if (present := population.present_mask()) is not None:
            counted = counted & present
            compared = jnp.where(present, compared, -1)  # below all
        number = population.num_present()
        num_clipped = 2 * f * (number - f) // jnp.maximum(number, 1)
        descending = jnp.sort(compared, descending=True)
        radius = descending[jnp.maximum(num_clipped, 0)]
        return _scaled(gradients, clip_factors(norms, radius), counted)

    return whole_gradient_rule("adaptive_clip_workers", rule, axis_name)


def _scaled(
    gradients: Gradients, factors: jax.Array, counted: jax.Array
) -> list[jax.Array]:
    """Multiplies rows by factors ``[M]``; those that are not counted become 0."""
    local = gradients.population.numbers()
    factors, counted = factors[local][:, None], counted[local][:, None]
    return [
        jnp.where(counted, block.astype(factors.dtype) * factors, 0)
        for block in gradients.blocks
    ]
