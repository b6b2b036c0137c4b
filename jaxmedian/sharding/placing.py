"""Where parameters, states and batches lie on a mesh: the table of its package."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmedian.sharding.mesh import WORKERS, check_divisible, check_mesh
from jaxmedian.transforms.lifting import PerWorkerState
from jaxmedian.workers.gradients import count_in_batch


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places a tree whole on every device of the mesh: parameters, for example.

    With several processes each of them must give the same values.

    >>> import jax.numpy as jnp
    >>> from jaxmedian import sharding
    >>> params = sharding.replicate(jnp.zeros(3), sharding.workers_mesh(1))
    >>> params.sharding.is_fully_replicated
    True
    """
    sharding = NamedSharding(mesh, P())

    def place(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(
            x.dtype, jax.dtypes.prng_key
        ):  # jax cannot place keys on other processes' devices
            words = jax.device_put(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
        return jax.device_put(x, sharding)

    return jax.tree.map(place, tree)


def shard_workers(tree: Any, mesh: Mesh, *, axis_name: str = WORKERS) -> Any:
    """Places leaves ``[M, ...]``, a block of workers a device: batches and masks.

    With several processes each gives the workers of its own devices only, leaves
    ``[M / processes, ...]``, and data never leaves the process that holds it. Workers
    are numbered along the mesh: first those of the first process.

    Args:
      tree: leaves with a leading worker axis.
      mesh: see `workers_mesh`.
      axis_name: the mesh axis of the workers.

    Raises:
      ValueError: if the leaves disagree about M, the devices cannot share the workers
        equally, or the mesh lacks the axis.

    >>> import jax.numpy as jnp
    >>> from jaxmedian import sharding
    >>> batch = sharding.shard_workers(jnp.zeros((4, 3)), sharding.workers_mesh(1))
    >>> tuple(batch.sharding.spec)
    ('workers',)
    """
    check_mesh(mesh, axis_name)
    num_local = count_in_batch(tree)
    num_processes = len({device.process_index for device in mesh.devices.flat})
    check_divisible(num_local * num_processes, mesh, axis_name)
    sharding = NamedSharding(mesh, P(axis_name))
    if num_processes == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def state_specs(
    optimizer: optax.GradientTransformation,
    params: Any,
    num_workers: int,
    *,
    axis_name: str = WORKERS,
) -> Any:
    """Says which part of an optimizer's state belongs to workers.

    What `jaxmedian.per_worker` keeps has an entry a worker and is sharded like the
    gradients; everything else is the same on every device.

    Args:
      optimizer: the chain.
      params: the parameters, or their shapes.
      num_workers: M, over all devices.
      axis_name: the mesh axis of the workers.

    Returns:
      ``P(axis_name)`` or ``P()`` for every leaf of ``optimizer.init(params)``.

    Raises:
      ValueError: if `per_worker` was told another number of workers.

    >>> import jax.numpy as jnp, optax, jaxmedian as jm
    >>> signum = optax.chain(
    ...     jm.per_worker(optax.trace(0.9), 4), jm.majority_vote(), optax.trace(0.9)
    ... )
    >>> specs = jm.sharding.state_specs(signum, jnp.zeros(4), num_workers=4)
    >>> tuple(specs[0].inner.trace), tuple(specs[2].trace)
    (('workers',), ())
    """

    def is_per_worker(node: Any) -> bool:
        return isinstance(node, PerWorkerState)

    def spec_of(path: tuple[Any, ...], node: Any) -> Any:
        if not is_per_worker(node):
            return P()
        for leaf in jax.tree.leaves(node):
            if leaf.shape[:1] != (num_workers,):
                raise ValueError(
                    f"The optimizer's state `{jax.tree_util.keystr(path)}` is that of "
                    f"{leaf.shape[0]} workers, but there are {num_workers}: pass "
                    f"`num_workers={num_workers}` to `per_worker`."
                )
        return jax.tree.map(lambda leaf: P(axis_name), node)

    state = jax.eval_shape(optimizer.init, params)
    return jax.tree_util.tree_map_with_path(spec_of, state, is_leaf=is_per_worker)


def init_state(
    optimizer: optax.GradientTransformation,
    params: Any,
    mesh: Mesh,
    num_workers: int,
    *,
    axis_name: str = WORKERS,
) -> Any:
    """Computes the optimizer's state where it belongs on the mesh.

    The state of `jaxmedian.per_worker` is never whole on any device.

    Args:
      optimizer: the chain.
      params: the parameters on the mesh; see `replicate`.
      mesh: see `workers_mesh`.
      num_workers: M, over all devices.
      axis_name: the mesh axis of the workers.

    Returns:
      ``optimizer.init(params)``, placed.

    Raises:
      ValueError: if the mesh lacks the axis, or M is no multiple of its devices.

    >>> import jax.numpy as jnp, optax, jaxmedian as jm
    >>> mesh = jm.sharding.workers_mesh(1)
    >>> params = jm.sharding.replicate(jnp.zeros(2), mesh)
    >>> tx = jm.per_worker(optax.trace(0.9), num_workers=4)
    >>> state = jm.sharding.init_state(tx, params, mesh, num_workers=4)
    >>> tuple(state.inner.trace.sharding.spec)
    ('workers',)
    """
    check_mesh(mesh, axis_name)
    check_divisible(num_workers, mesh, axis_name)
    specs = state_specs(optimizer, params, num_workers, axis_name=axis_name)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(optimizer.init, out_shardings=shardings)(params)
