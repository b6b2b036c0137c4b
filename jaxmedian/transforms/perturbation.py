"""Noise before the vote or the median: g_i <- g_i + b xi_i (Algorithms 3 and 4)."""

import jax
import optax

from jaxmedian.kernels.rows import groups_of, rows_of_leaves
from jaxmedian.noise import Noise, keys
from jaxmedian.transforms.build import Step, transformation
from jaxmedian.transforms.draws import add_noise, check_noise, draw, init_state
from jaxmedian.workers.collectives import AxisName


def add_worker_noise(
    noise: Noise, key: keys.Key, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds noise to each worker's updates: ``[M, ...] -> [M, ...]``.

    .. math:: g_i \leftarrow g_i + b\, \xi_i

    Before a vote or a median prefer their ``noise`` argument: it draws the same noise
    while it counts, much faster and in less memory. Noise is added in float32 (float64
    for float64) and rounded once to the dtype of the updates. Rounding to bfloat16 is
    harmless before a vote or the median of an odd number, since it is monotone, but
    loses small noise before a mean or momentum: keep gradients in float32 there.

    Args:
      noise: law, scale and coupling; see `jaxmedian.noise`.
      key: a typed key, a legacy key or an int. Words depend on the key, the step, the
        leaf, the *global* number of the worker and the coordinate, never on the device.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation with state ``(count, rng_key)``. ``update`` takes
      ``worker_mask``, bool ``[M]``: absent workers are left out of `noise.relative` and
      of the slots of systematic noise.

    Raises:
      TypeError, ValueError: for a bad noise or key; while tracing, for updates without
        a worker axis.

    >>> import jax, jax.numpy as jnp, optax, jaxmedian as jm
    >>> tx = optax.chain(
    ...     jm.add_worker_noise(jm.noise.gaussian(0.1), jax.random.key(0)),
    ...     jm.worker_mean(),
    ... )
    >>> params = jnp.zeros(2)
    >>> updates, state = tx.update(jnp.ones((1000, 2)), tx.init(params), params)
    >>> bool(abs(updates - 1).max() < 0.02)
    True

    References:
      Chen et al., Distributed Training with Heterogeneous Data, NeurIPS 2020,
      Algorithms 3 and 4. https://arxiv.org/abs/1906.01736
    """
    check_noise("add_worker_noise", noise)
    rng_key = keys.as_threefry_key(key)

    def init(params: optax.Params) -> optax.OptState:
        return init_state(noise, rng_key, params)

    def apply(step: Step) -> tuple[optax.Updates, optax.OptState]:
        leaves, treedef = jax.tree.flatten(step.updates)
        draws, state = draw(noise, False, step.state, step.updates, step.population)
        groups = groups_of(leaves, in_lanes=True)
        rows = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
        joined = [
            add_noise(group.join(rows), draws.of_group(group).noise) for group in groups
        ]
        noisy = [
            row.astype(leaf.dtype).reshape(leaf.shape)
            for row, leaf in zip(rows_of_leaves(groups, joined), leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, noisy), state

    return transformation(
        "add_worker_noise", apply, init=init, axis_name=axis_name, weighted=True
    )
