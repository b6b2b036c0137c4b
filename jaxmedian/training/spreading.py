"""A chunk of a run over a mesh: all its steps in one `jax.shard_map`.

Parameters and shared state are whole on every device of the worker axis; data, batches
and the state of workers lie where their workers are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxmedian.training.chunks import TrainState, start_state
from jaxmedian.training.feeds import Feed, share_out
from jaxmedian.training.model_state import check_rows
from jaxmedian.workers.collectives import PyTree
from jaxmedian.workers.gradients import count_in_batch
from jaxmedian.workers.mesh import WORKERS, check_divisible, check_mesh
from jaxmedian.workers.placing import (
    init_in_place,
    is_on,
    is_per_worker,
    place_state,
    replicate,
    shard_workers,
    state_specs,
)


class Spread:
    """Where everything of a run lies on a mesh.

    Args:
      mesh: its worker axis is "workers", or its only one.
      optimizer: the chain, built with the name of that axis.

    Raises:
      TypeError: if it is no mesh. ValueError: if no axis is that of the workers, or
        axes are not automatic.
    """

    def __init__(self, mesh: Mesh, optimizer: optax.GradientTransformation) -> None:
        """Finds the axis of the workers."""
        if not isinstance(mesh, Mesh):
            raise TypeError(
                "`mesh` must be a `jax.sharding.Mesh`, "
                f"`jm.sharding.workers_mesh()` for instance; got {mesh!r}."
            )
        self.mesh, self._optimizer = mesh, optimizer
        names = mesh.axis_names
        self.axis_name: str = names[0] if len(names) == 1 else WORKERS
        check_mesh(mesh, self.axis_name)
        processes = {device.process_index for device in mesh.devices.flat}
        self.is_of_all_processes = 1 < len(processes) == jax.process_count()

    def start_state(
        self, params: optax.Params, opt_state: optax.OptState, *held: Any
    ) -> TrainState:
        """Returns the state that a run starts from in its places; see `start_state`.

        What is on this mesh already stays there; no device computes all of the rest.
        """
        mesh, axis_name = self.mesh, self.axis_name
        params = place_state(params, mesh, axis_name)
        if opt_state is None:
            opt_state = init_in_place(self._optimizer, params, mesh, axis_name)
        state = start_state(self._optimizer, params, opt_state, *held)
        return place_state(state, mesh, axis_name)

    def place_feed(self, feed: Feed) -> Feed:
        """Places the data of a feed, each worker's on its own device if possible."""
        _, specs = share_out(feed, self.axis_name)
        leaves = map(self._place, jax.tree.leaves(feed), jax.tree.leaves(specs))
        return jax.tree.unflatten(jax.tree.structure(feed), leaves)

    def place_batch(self, batch: PyTree) -> PyTree:
        """Places a batch that the host has made."""
        return shard_workers(batch, self.mesh, axis_name=self.axis_name)

    def replicate(self, tree: PyTree) -> PyTree:
        """Places what all devices share: the key of a run, for example."""
        return replicate(tree, self.mesh)

    def _place(self, leaf: ArrayLike, spec: P) -> ArrayLike:
        if is_on(leaf, self.mesh):
            return leaf
        return replicate(leaf, self.mesh) if spec == P() else self.place_batch(leaf)

    def chunk(self, advance: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """Builds the chunk of all devices from that of one."""
        axis = self.axis_name

        def advance_all(
            state: PyTree,
            feed: Feed,
            key: jax.Array,
            start: Any,
            stop: Any,
            measured: Any,
        ) -> Any:
            batch = jax.eval_shape(feed.next_batch, key, jnp.asarray(start))
            num_workers = count_in_batch(batch)
            check_divisible(num_workers, self.mesh, axis)
            params, _, *held = state
            specs = state_specs(self._optimizer, params, num_workers, axis_name=axis)
            for model_state in held:
                check_rows(model_state, num_workers)
            held_specs = [P(axis) if is_per_worker(kind) else P() for kind in held]
            state_spec = (jax.tree.map(lambda leaf: P(), params), specs, *held_specs)
            own_feed, feed_spec = share_out(feed, axis)
            return jax.shard_map(
                lambda state, leaves, *rest: advance(
                    state,
                    jax.tree.unflatten(jax.tree.structure(own_feed), leaves),
                    *rest,
                ),
                mesh=self.mesh,
                in_specs=(state_spec, jax.tree.leaves(feed_spec), P(), P(), P(), P()),
                out_specs=(state_spec, P()),
                axis_names={axis},
            )(state, jax.tree.leaves(own_feed), key, start, stop, measured)

        return advance_all
