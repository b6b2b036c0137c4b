"""Many devices: the step of one device, with the workers spread over a mesh.

    params, optimizer state   the same on every device         P()
    batch, worker_mask        a block of workers a device      P("workers")
    state of `per_worker`     a block of workers a device      P("workers")

`shard_step` is `jaxmedian.make_step` inside `jax.shard_map`: the same arguments, the
same results, and the same bits for votes and medians of the same gradients. The devices
may belong to several processes (`jax.distributed`). A second mesh axis stays automatic:
parameters may be sharded over it, and the compiler does the rest.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmedian import collectives
from jaxmedian.routes import Route, packed_routes
from jaxmedian.training_step import make_step
from jaxmedian.worker_gradients import LossFn, check_count, count_in_batch

WORKERS = "workers"
MODEL = "model"

__all__ = [
    "workers_mesh",
    "replicate",
    "shard_workers",
    "state_specs",
    "init_state",
    "shard_step",
    "packed_routes",
    "Route",
]


def workers_mesh(
    num_devices: int | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    model_devices: int = 1,
) -> Mesh:
    """Makes the mesh over which workers are spread: an automatic axis "workers".

    Args:
      num_devices: how many of the devices to use; None for all.
      devices: the devices to choose from; those of all processes by default.
      model_devices: devices that share one copy of the parameters, along a second
        automatic axis "model"; shard the parameters over it as you like. It must divide
        the number of devices.

    Returns:
      A mesh of axes ("workers",), or ("workers", "model") if ``model_devices`` > 1.

    Raises:
      ValueError: if there are not that many devices, or ``model_devices`` does not
        divide them. TypeError: if a count is not an int.

    >>> from jaxmedian import sharding
    >>> sharding.workers_mesh(1).axis_names
    ('workers',)
    """
    devices = jax.devices() if devices is None else list(devices)
    num_devices = len(devices) if num_devices is None else num_devices
    check_count("num_devices", num_devices)
    check_count("model_devices", model_devices)
    if num_devices > len(devices):
        raise ValueError(
            f"`num_devices` is {num_devices}, but there are {len(devices)} devices. On "
            "a CPU, `XLA_FLAGS=--xla_force_host_platform_device_count="
            f"{num_devices}` makes as many, if it is set before JAX starts."
        )
    if num_devices % model_devices:
        raise ValueError(
            f"`model_devices` must divide the {num_devices} devices; got "
            f"{model_devices}."
        )
    shape, names = (num_devices // model_devices, model_devices), (WORKERS, MODEL)
    num_axes = 1 if model_devices == 1 else 2
    return jax.make_mesh(
        shape[:num_axes],
        names[:num_axes],
        axis_types=(AxisType.Auto,) * num_axes,
        devices=devices[:num_devices],
    )


# --- placing --------------------------------------------------------------------------


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
    _check_mesh(mesh, axis_name)
    num_local = count_in_batch(tree)
    num_processes = len({device.process_index for device in mesh.devices.flat})
    _check_divisible(num_local * num_processes, mesh, axis_name)
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

    >>> import jax.numpy as jnp, optax, jaxmedian as jm
    >>> signum = optax.chain(
    ...     jm.per_worker(optax.trace(0.9), 4), jm.majority_vote(), optax.trace(0.9)
    ... )
    >>> specs = jm.sharding.state_specs(signum, jnp.zeros(4), num_workers=4)
    >>> tuple(specs[0].trace), tuple(specs[2].trace)
    (('workers',), ())
    """
    state = jax.eval_shape(optimizer.init, params)
    # Parameters of the same ranks, no dimension of which is M: an M that still leads a
    # leaf of the state counts workers.
    probe = jax.eval_shape(
        optimizer.init,
        jax.tree.map(
            lambda p: jax.ShapeDtypeStruct((num_workers + 1,) * np.ndim(p), p.dtype),
            jax.eval_shape(lambda tree: tree, params),
        ),
    )
    leaves, structure = jax.tree.flatten(state)
    probe_leaves = jax.tree.leaves(probe)
    if len(leaves) != len(probe_leaves):  # a state that depends on sizes
        probe_leaves = leaves
    specs = [
        P(axis_name) if leaf.shape[:1] == (num_workers,) else P()
        for leaf in probe_leaves
    ]
    return jax.tree.unflatten(structure, specs)


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
    >>> tuple(state.trace.sharding.spec)
    ('workers',)
    """
    _check_mesh(mesh, axis_name)
    _check_divisible(num_workers, mesh, axis_name)
    specs = state_specs(optimizer, params, num_workers, axis_name=axis_name)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(optimizer.init, out_shardings=shardings)(params)


# --- the step -------------------------------------------------------------------------


def shard_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    axis_name: str = WORKERS,
    has_aux: bool = False,
    worker_chunk: int | None = None,
    donate: bool = False,
) -> Callable[..., tuple[Any, Any, dict[str, Any]]]:
    """Builds one jitted training step of workers spread over a mesh.

    The step of `jaxmedian.make_step`: with ``worker_chunk=1`` whole runs give the bits
    of one device on any number of devices, whatever votes or medians the chain takes.
    Nothing but what the aggregator sends, and one number for the loss, crosses the
    mesh.

    Args:
      loss_fn: as in `jaxmedian.make_step`.
      optimizer: the chain of one device, its transforms built with ``axis_name``. On a
        mesh of one device the same chain works too.
      mesh: see `workers_mesh`. Other axes than that of the workers stay automatic.
      axis_name: the mesh axis of the workers.
      has_aux: whether ``loss_fn`` returns auxiliary output.
      worker_chunk: as in `jaxmedian.make_step`, of the workers of one device.
      donate: whether the step may overwrite the parameters and the state it is given,
        which saves their memory; they cannot be read afterwards.

    Returns:
      ``step(params, opt_state, batch, **extra_args) -> (params, opt_state, metrics)``.
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
    _check_mesh(mesh, axis_name)
    local_step = make_step(
        loss_fn,
        optimizer,
        has_aux=has_aux,
        axis_name=axis_name,
        worker_chunk=worker_chunk,
    )
    metrics_specs = {"loss": P(), "aux": P(axis_name)} if has_aux else {"loss": P()}

    def step(
        params: Any, opt_state: Any, batch: Any, **extra_args: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        num_workers = count_in_batch(batch)
        _check_divisible(num_workers, mesh, axis_name)
        specs = state_specs(optimizer, params, num_workers, axis_name=axis_name)
        extra_specs = {
            name: P(axis_name) if name.startswith("worker_") else P()
            for name in extra_args
        }

        def on_device(
            params: Any, opt_state: Any, batch: Any, extra_args: dict[str, Any]
        ) -> tuple[Any, Any, dict[str, Any]]:
            result = local_step(params, opt_state, batch, **extra_args)
            _check_agreement(result[0], result[1], specs, axis_name)
            return result

        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(P(), specs, P(axis_name), extra_specs),
            out_specs=(P(), specs, metrics_specs),
            axis_names={axis_name},
        )(params, opt_state, batch, extra_args)

    return jax.jit(step, donate_argnums=(0, 1) if donate else ())


def _check_mesh(mesh: Mesh, axis_name: str) -> None:
    if axis_name not in mesh.axis_names:
        raise ValueError(
            f"The mesh has the axes {mesh.axis_names}, but `axis_name` is "
            f"{axis_name!r}. Make it with `jaxmedian.sharding.workers_mesh()`, or name "
            "the axis of the workers."
        )
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"The axes {mesh.axis_names} of the mesh must be automatic; got "
            f"{mesh.axis_types}. Make it with `jaxmedian.sharding.workers_mesh()` or "
            "`jax.make_mesh(..., axis_types=(AxisType.Auto,) * number_of_axes)`."
        )


def _check_divisible(num_workers: int, mesh: Mesh, axis_name: str) -> None:
    num_devices = mesh.shape[axis_name]
    if num_workers % num_devices:
        raise ValueError(
            f"{num_workers} workers cannot be shared equally by the {num_devices} "
            f"devices along {axis_name!r}: M must be a multiple of them. Fill up with "
            "workers that `worker_mask` leaves out, or use fewer devices."
        )


def _check_agreement(params: Any, opt_state: Any, specs: Any, axis_name: str) -> None:
    """Raises if what should be the same on all devices is known to differ.

    Our own transforms complain before it comes to that.
    """
    if axis_name in collectives.varying_axes(params):
        raise ValueError(
            "The devices would end with different parameters: the aggregator of the "
            f"chain sees the workers of its own device only. Build it with "
            f"`axis_name={axis_name!r}`."
        )
    shared = [
        leaf
        for leaf, spec in zip(
            jax.tree.leaves(opt_state), jax.tree.leaves(specs), strict=True
        )
        if spec == P()
    ]
    if axis_name in collectives.varying_axes(shared):
        raise ValueError(
            "The devices would end with different optimizer states: a transform before "
            "the aggregator keeps state of the workers. Lift it with "
            "`jaxmedian.per_worker`."
        )
