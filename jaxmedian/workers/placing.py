"""Where parameters, states and batches lie on a mesh of workers.

params, optimizer state   the same on every device         P()
batch, worker_mask        a block of workers a device      P("workers")
state of `per_worker`     a block of workers a device      P("workers")

Parameters may be cut along other axes, and what mirrors them in a state is cut so too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.gradients import count_in_batch
from jaxmedian.workers.mesh import WORKERS, check_divisible, check_mesh


class PerWorkerState(NamedTuple):
    """State of which every worker has its own: on a mesh it is cut like the gradients.

    Attributes:
      inner: the states, every leaf with a leading worker axis ``[M, ...]``.
    """

    inner: optax.OptState

    def kept_where_absent(
        self, new: optax.OptState, present: jax.Array | None
    ) -> "PerWorkerState":
        """Returns the new states of workers present, the old ones of the absent.

        What an absent worker sent, NaN for example, never reaches its state.
        """
        if present is None:
            return PerWorkerState(new)

        def keep(after: jax.Array, before: jax.Array) -> jax.Array:
            mask = present.reshape(-1, *[1] * (before.ndim - 1))
            return jnp.where(mask, after, before)

        return PerWorkerState(jax.tree.map(keep, new, self.inner))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places a tree whole on every device of the mesh: parameters, for example.

    With several processes each of them must give the same values.

    >>> import jax.numpy as jnp
    >>> from jaxmedian import sharding
    >>> params = sharding.replicate(jnp.zeros(3), sharding.workers_mesh(1))
    >>> params.sharding.is_fully_replicated
    True
    """
    return jax.tree.map(lambda leaf: _put(leaf, mesh, P()), tree)


def _put(x: ArrayLike, mesh: Mesh, spec: P) -> jax.Array:
    sharding = NamedSharding(mesh, spec)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(
        x.dtype, jax.dtypes.prng_key
    ):  # jax cannot place keys on other processes' devices
        words = jax.device_put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    return jax.device_put(x, sharding)


def place_state(state: PyTree, mesh: Mesh, axis_name: str) -> PyTree:
    """Places parameters and state that are known whole, as `state_specs` says.

    What is on this mesh already stays as it is, sharded over a second axis perhaps.
    """

    def place(leaf: jax.Array, spec: P) -> jax.Array:
        if is_on(leaf, mesh):
            return leaf
        if spec != P():
            check_divisible(leaf.shape[0], mesh, axis_name)
        return _put(leaf, mesh, spec)

    def place_node(node: object) -> Any:
        spec = P(axis_name) if is_per_worker(node) else P()
        return jax.tree.map(lambda leaf: place(leaf, spec), node)

    return jax.tree.map(place_node, state, is_leaf=is_per_worker)


def is_on(leaf: object, mesh: Mesh) -> bool:
    """Returns whether an array lies on the devices of a mesh, by its axes."""
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh


def shard_workers(tree: PyTree, mesh: Mesh, *, axis_name: str = WORKERS) -> PyTree:
    """Places leaves ``[M, ...]``, a block of workers a device: batches and masks.

    With several processes each gives the workers of its own devices only, leaves
    ``[M / processes, ...]``, and data never leaves the process that holds it. Workers
    are numbered along the mesh: first those of the first process.

    Args:
      tree: leaves with a leading worker axis. On CPUs the result may share memory with
        NumPy arrays: do not write to them while it is in use.
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
    params: optax.Params,
    num_workers: int,
    *,
    axis_name: str = WORKERS,
) -> PyTree:
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

    def spec_of(path: tuple[object, ...], node: object) -> Any:
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
    params: optax.Params,
    mesh: Mesh,
    num_workers: int,
    *,
    axis_name: str = WORKERS,
) -> PyTree:
    """Computes the optimizer's state where it belongs on the mesh.

    The state of `jaxmedian.per_worker` is never whole on any device. What mirrors the
    parameters, the momenta of an optimizer for example, is cut along the mesh's other
    axes like them.

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
    state_specs(optimizer, params, num_workers, axis_name=axis_name)
    return init_in_place(optimizer, params, mesh, axis_name)


def init_in_place(
    optimizer: optax.GradientTransformation,
    params: optax.Params,
    mesh: Mesh,
    axis_name: str,
) -> PyTree:
    """Computes the state of `init_state`, of as many workers as `per_worker` knows."""
    params_by_path = {
        path: leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if is_on(leaf, mesh)
    }

    def place(path: tuple[Any, ...], leaf: Any, *leading: str) -> NamedSharding:
        """Finds the parameter whose path ends that of the leaf, and is of its shape."""
        if leading:
            check_divisible(leaf.shape[0], mesh, axis_name)
        for start in range(len(path) + 1):
            like = params_by_path.get(path[start:])
            if like is not None and like.shape == leaf.shape[len(leading) :]:
                return NamedSharding(mesh, P(*leading, *like.sharding.spec))
        return NamedSharding(mesh, P(*leading))

    def place_node(path: tuple[Any, ...], node: object) -> Any:
        if not is_per_worker(node):
            return place(path, node)
        return jax.tree_util.tree_map_with_path(
            lambda inner, leaf: place(path + inner, leaf, axis_name), node
        )

    state = jax.eval_shape(optimizer.init, params)
    shardings = jax.tree_util.tree_map_with_path(
        place_node, state, is_leaf=is_per_worker
    )
    return jax.jit(optimizer.init, out_shardings=shardings)(params)


def check_shared(
    params: optax.Params, opt_state: optax.OptState, axis_name: AxisName | None
) -> None:
    """Raises if what should be the same on all devices is known to differ.

    Our own transforms complain before it comes to that.

    Args:
      params: the new parameters, or their updates.
      opt_state: the new state; what `per_worker` keeps may differ.
      axis_name: the mesh axis of the workers, or None.
    """
    if axis_name in collectives.varying_axes(params):
        raise ValueError(
            "The devices would end with different parameters: the aggregator of the "
            f"chain sees the workers of its own device only. Build it with "
            f"`axis_name={axis_name!r}`."
        )
    nodes = jax.tree.leaves(opt_state, is_leaf=is_per_worker)
    shared = [node for node in nodes if not is_per_worker(node)]
    if axis_name in collectives.varying_axes(shared):
        raise ValueError(
            "The devices would end with different optimizer states: a transform before "
            "the aggregator keeps state of the workers. Lift it with "
            "`jaxmedian.per_worker`."
        )


def is_per_worker(node: object) -> bool:
    """Returns whether a node of a state belongs to the workers, each its own."""
    return isinstance(node, PerWorkerState)
