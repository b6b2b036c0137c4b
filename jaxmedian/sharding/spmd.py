"""One jitted step of workers spread over a mesh: `make_step` inside `jax.shard_map`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmedian.training.model_state import StateOverWorkers, check_rows, hold, release
from jaxmedian.training.remembering import remember
from jaxmedian.training.step import jit_step, make_step
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.collectives import PyTree
from jaxmedian.workers.gradients import LossFn, check_num_workers, count_in_batch
from jaxmedian.workers.mesh import WORKERS, check_divisible, check_mesh
from jaxmedian.workers.placing import check_shared, is_per_worker, state_specs


def shard_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    axis_name: str = WORKERS,
    has_aux: bool = False,
    worker_chunk: int | None = None,
    num_workers: int | None = None,
    state_over_workers: StateOverWorkers | None = None,
    donate: bool = False,
) -> Callable[..., tuple[PyTree, ...]]:
    """Builds one jitted training step of workers spread over a mesh.

    The step of `jaxmedian.make_step`: with ``worker_chunk=1`` whole runs give the bits
    of one device on any number of devices, whatever votes or medians the chain takes.
    Nothing but what the aggregator sends, and one number for the loss, crosses the
    axis of the workers. Along another axis the compiler moves what it needs: parameters
    cut along their first axis stay so, of others the gradients are put together whole
    on every device. Asked again with the same optimizer, loss and settings it returns
    the same step, compiled once.

    Args:
      loss_fn: as in `jaxmedian.make_step`.
      optimizer: the chain of one device, its transforms built with ``axis_name``. On a
        mesh of one device the same chain works too.
      mesh: see `workers_mesh`. Other axes than that of the workers stay automatic.
      axis_name: the mesh axis of the workers.
      has_aux: whether ``loss_fn`` returns auxiliary output.
      worker_chunk: as in `jaxmedian.make_step`, of the workers of one device.
      num_workers: M, over all devices, to check batches against; None takes any.
      state_over_workers: as in `jaxmedian.make_step`. States "per_worker" lie where
        their workers are; for the "mean" those of all workers, the model's own and not
        the optimizer's, are gathered on every device.
      donate: whether the step may overwrite the parameters and the states it is given,
        which saves their memory; they cannot be read afterwards.

    Returns:
      ``step(params, opt_state, batch, **extra_args) -> (params, opt_state, metrics)``,
      with the model's state behind ``opt_state`` as in `jaxmedian.make_step`.
      The batch's leaves are ``[M, ...]``, M a multiple of the devices along the axis,
      several workers a device if it is not one; so are extra arguments whose name
      begins with ``worker_``, such as ``worker_mask``. With one process plain arrays
      will do, with several they must be placed: see `shard_workers`, `replicate` and
      `init_state`.

    Raises:
      ValueError: if the mesh lacks the axis, or has axes that are not automatic; while
        tracing, if M is no multiple of the devices, or if a transform was built without
        ``axis_name`` and would aggregate each device's workers by themselves.
      TypeError, ValueError: as `jaxmedian.make_step`.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * (params - batch) ** 2
    >>> mesh = jm.sharding.workers_mesh(1)
    >>> optimizer = jm.median_sgd(0.5, axis_name="workers")
    >>> step = jm.sharding.shard_step(loss, optimizer, mesh)
    >>> params = jnp.float32(0.0)
    >>> batch = jnp.array([1., 2., 10.])
    >>> params, _, metrics = step(params, optimizer.init(params), batch)
    >>> float(params), float(metrics["loss"])
    (1.0, 17.5)
    """
    check_mesh(mesh, axis_name)
    if num_workers is not None:
        check_count("num_workers", num_workers)
    settings = (axis_name, has_aux, worker_chunk, num_workers, state_over_workers)
    return remember(
        optimizer,
        ("shard_step", loss_fn, mesh, *settings, donate),
        lambda: _build_step(loss_fn, optimizer, mesh, *settings, donate),
    )


def _build_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    axis_name: str,
    has_aux: bool,
    worker_chunk: int | None,
    expected: int | None,
    state_over_workers: StateOverWorkers | None,
    donate: bool,
) -> Callable[..., tuple[PyTree, ...]]:
    local_step = make_step(
        loss_fn,
        optimizer,
        has_aux=has_aux,
        axis_name=axis_name,
        worker_chunk=worker_chunk,
        state_over_workers=state_over_workers,
    )
    metrics_specs = {"loss": P(), "aux": P(axis_name)} if has_aux else {"loss": P()}

    def take(
        params: optax.Params,
        opt_state: optax.OptState,
        held: Sequence[PyTree],
        batch: PyTree,
        extra_args: dict[str, Any],
    ) -> tuple[PyTree, ...]:
        extra_args = {
            name: jnp.asarray(value)
            if name.startswith("worker_") and isinstance(value, list | tuple)
            else value
            for name, value in extra_args.items()
        }
        num_workers = count_in_batch(batch)
        if expected is not None:
            check_num_workers(batch, expected)
        check_divisible(num_workers, mesh, axis_name)
        for state in held:
            check_rows(state, num_workers)
        specs = state_specs(optimizer, params, num_workers, axis_name=axis_name)
        held_specs = tuple(P(axis_name) if is_per_worker(s) else P() for s in held)
        extra_specs = {
            name: P(axis_name) if name.startswith("worker_") else P()
            for name in extra_args
        }

        def on_device(
            params: optax.Params,
            opt_state: optax.OptState,
            states: PyTree,
            batch: PyTree,
            extra_args: dict[str, Any],
        ) -> tuple[PyTree, ...]:
            result = local_step(params, opt_state, *states, batch, **extra_args)
            check_shared(result[0], result[1], axis_name)
            return result

        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(P(), specs, held_specs, P(axis_name), extra_specs),
            out_specs=(P(), specs, *held_specs, metrics_specs),
            axis_names={axis_name},
        )(params, opt_state, tuple(map(release, held)), batch, extra_args)

    def step(
        params: optax.Params,
        opt_state: optax.OptState,
        batch: PyTree,
        **extra_args: Any,
    ) -> tuple[PyTree, ...]:
        return take(params, opt_state, (), batch, extra_args)

    if state_over_workers is None:
        return jit_step(step, (0, 1) if donate else ())
    over = state_over_workers

    def stateful_step(
        params: optax.Params,
        opt_state: optax.OptState,
        model_state: PyTree,
        batch: PyTree,
        **extra_args: Any,
    ) -> tuple[PyTree, ...]:
        return take(params, opt_state, (hold(model_state, over),), batch, extra_args)

    return jit_step(stateful_step, (0, 1, 2) if donate else ())
