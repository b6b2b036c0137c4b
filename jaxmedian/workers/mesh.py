"""The mesh over which workers are spread, and what it must be like."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from jaxmedian.workers.checks import check_count

WORKERS = "workers"
MODEL = "model"


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


def check_mesh(mesh: Mesh, axis_name: str) -> None:
    """Raises unless the mesh has the axis, and all its axes are automatic."""
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


def check_divisible(num_workers: int, mesh: Mesh, axis_name: str) -> None:
    """Raises unless the devices along the axis can share the workers equally."""
    num_devices = mesh.shape[axis_name]
    if num_workers % num_devices:
        raise ValueError(
            f"{num_workers} workers cannot be shared equally by the {num_devices} "
            f"devices along {axis_name!r}: M must be a multiple of them. Fill up with "
            "workers that `worker_mask` leaves out, or use fewer devices."
        )
