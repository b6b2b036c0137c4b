"""Every collective of the library: what crosses a mesh axis, and nothing else does.

``axis_name`` names the mesh axis over which workers are spread inside `jax.shard_map`
(or the axis of a `jax.vmap` or `jax.pmap`). With None everything is on one device and
these functions return what they were given. Inside `over_hosts` the name stands for
processes that share no mesh: what they gather is exchanged by the host.
"""

import contextlib
import contextvars
import functools
import json
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh, AxisType

AxisName = Hashable
PyTree = Any  # arrays in any nesting: parameters, batches, states of optimizers


class Exchange:
    """An axis of processes that exchange arrays over the host, not over a mesh.

    Attributes:
      axis_name: what transforms call the axis.
      position: number of this process.
      num_processes: of all of them.
    """

    axis_name: AxisName
    position: int
    num_processes: int

    def gather(self, x: jax.Array) -> jax.Array:
        """Returns the ``x`` of all processes, ``[processes, ...]``; 0 of the absent."""
        raise NotImplementedError


_exchange = contextvars.ContextVar[Exchange | None]("exchange", default=None)


@contextlib.contextmanager
def over_hosts(exchange: Exchange) -> Iterator[None]:
    """Has its axis stand for processes in what is traced inside."""
    token = _exchange.set(exchange)
    try:
        yield
    finally:
        _exchange.reset(token)


def _exchange_over(axis_name: AxisName | None) -> Exchange | None:
    if isinstance(axis_name, Exchange):
        return axis_name
    exchange = _exchange.get()
    return exchange if exchange and exchange.axis_name == axis_name else None


def size(axis_name: AxisName | None) -> int:
    """Returns the number of devices along the axis, a Python int.

    Raises:
      ValueError: if no such axis is in scope.
    """
    if axis_name is None:
        return 1
    if exchange := _exchange_over(axis_name):
        return exchange.num_processes
    try:
        return int(jax.lax.psum(1, axis_name))  # a constant: folded while tracing
    except NameError as error:
        raise ValueError(
            f"`axis_name` {axis_name!r} is not an axis here. It names the mesh axis of "
            "the workers inside `jax.shard_map`; on one device leave it out."
        ) from error


def position(axis_name: AxisName | None) -> jax.Array | np.uint32:
    """Returns this device's place along the axis, uint32."""
    if axis_name is None:
        return np.uint32(0)
    if exchange := _exchange_over(axis_name):
        return np.uint32(exchange.position)
    return jax.lax.axis_index(axis_name).astype(jnp.uint32)


def slices(axis_name: AxisName | None) -> tuple[int, jax.Array | np.uint32]:
    """Returns into how many slices coordinates are cut, and which is this device's.

    Processes that exchange over the host hold all of them.
    """
    if _exchange_over(axis_name):
        return 1, np.uint32(0)
    return size(axis_name), position(axis_name)


def total(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Adds up ``x`` over the devices."""
    if axis_name is None:
        return x
    if exchange := _exchange_over(axis_name):
        return jnp.sum(exchange.gather(x), axis=0, dtype=x.dtype)
    return jax.lax.psum(x, axis_name)


def broadcast_from(
    x: jax.Array, here: jax.Array, axis_name: AxisName | None
) -> jax.Array:
    """Returns the ``x`` of the one device that is ``here``, to the bit, on all devices.

    Bits are added, not numbers: -0.0 + 0.0 would be 0.0. Tangents are added as numbers.
    """
    return x if axis_name is None else _broadcast_from(x, here, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _broadcast_from(x: jax.Array, here: jax.Array, axis_name: AxisName) -> jax.Array:
    integer = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, integer)
    bits = total(jnp.where(here, bits, np.asarray(0, integer)), axis_name)
    return jax.lax.bitcast_convert_type(bits, x.dtype)


@_broadcast_from.defjvp
def _tangent_from(
    axis_name: AxisName, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    x, here = primals
    own = jnp.where(here, tangents[0], np.asarray(0, x.dtype))
    return _broadcast_from(x, here, axis_name), total(own, axis_name)


def gather(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Joins the blocks ``[m, ...]`` of all devices into ``[M, ...]``, on each of them.

    The result is marked as equal on all devices, so that it may leave `jax.shard_map`
    under ``out_specs=P()`` with its checks on.
    """
    if axis_name is None:
        return x
    if exchange := _exchange_over(axis_name):
        return exchange.gather(x).reshape(-1, *x.shape[1:])
    return _gather_invariant(x, axis_name)


def own_block(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Inverts `gather`: returns this device's block ``[M / D, ...]`` of ``[M, ...]``.

    M must be a multiple of D.
    """
    if axis_name is None:
        return x
    share = x.shape[0] // size(axis_name)
    first = position(axis_name) * np.uint32(share)
    return jax.lax.dynamic_slice_in_dim(x, first, share)


def to_coordinate_slices(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Trades worker blocks for coordinate slices: ``[m, d] -> [M, ceil(d / D)]``.

    Afterwards each device holds every worker's values on its own slice of the
    coordinates (padded with zeros): d floats a worker travel once, in place of d floats
    a worker to every device.
    """
    if axis_name is None:
        return x
    if _exchange_over(axis_name):
        return gather(x, axis_name)
    num_devices = size(axis_name)
    padding = -x.shape[1] % num_devices
    padded = jnp.pad(x, ((0, 0), (0, padding)))
    return jax.lax.all_to_all(
        padded, axis_name, split_axis=1, concat_axis=0, tiled=True
    )


def total_of_slices(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Adds ``[8, n]`` up over the devices, each of which gets one slice ``[8, n / D]``.

    Half of what `total` sends: nobody learns the other slices.
    """
    if axis_name is None:
        return x
    if _exchange_over(axis_name):
        return total(x, axis_name)
    return jax.lax.psum_scatter(x, axis_name, scatter_dimension=1, tiled=True)


def from_coordinate_slices(
    x: jax.Array, num_coordinates: int, axis_name: AxisName | None
) -> jax.Array:
    """Joins slices ``[ceil(d / D)]`` to ``[d]`` on every device, dropping padding."""
    if axis_name is None:
        return x
    if num_coordinates == 0:  # of arrays without entries JAX forgets how they vary
        return jnp.zeros((0,), x.dtype)
    if _exchange_over(axis_name):
        return x[:num_coordinates]
    return _gather_invariant(x, axis_name)[:num_coordinates]


def to_worker_blocks(
    x: jax.Array, num_coordinates: int, axis_name: AxisName | None
) -> jax.Array:
    """Inverts `to_coordinate_slices`: slices ``[K, ceil(d / D)] -> [K / D, d]``.

    K, the number of rows, must be a multiple of D.
    """
    if axis_name is None:
        return x
    if _exchange_over(axis_name):
        return own_block(x[:, :num_coordinates], axis_name)
    whole = jax.lax.all_to_all(x, axis_name, split_axis=0, concat_axis=1, tiled=True)
    return whole[:, :num_coordinates]


def _gather_invariant(x: jax.Array, axis_name: AxisName) -> jax.Array:
    if not _varies(x, axis_name):  # vmap, pmap, or shard_map without its checks
        return jax.lax.all_gather(x, axis_name, tiled=True)
    if gather_invariant := getattr(jax.lax, "all_gather_invariant", None):  # jax 0.7
        return gather_invariant(x, axis_name, tiled=True)
    return jax.lax.all_gather(x, axis_name, tiled=True, to="invarying")


def vary(tree: PyTree, axis_name: AxisName | None) -> PyTree:
    """Marks replicated arrays as this device's own.

    Without it, `jax.grad` inside `jax.shard_map` sums the gradients with respect to
    replicated parameters over the devices: the mean before any vote.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: _vary(x, axis_name), tree)


def _vary(x: jax.Array, axis_name: AxisName) -> jax.Array:
    is_manual = axis_name in jax.sharding.get_abstract_mesh().manual_axes
    if _varies(x, axis_name) or not is_manual:  # the axis of a vmap tracks nothing
        return x
    if pvary := getattr(jax.lax, "pvary", None):  # jax 0.7 to 0.9
        return pvary(x, axis_name)
    return jax.lax.pcast(x, axis_name, to="varying")


def alone(
    function: Callable[..., PyTree], axis_name: AxisName | None
) -> Callable[..., PyTree]:
    """Lets a function see what is this device's own as if there were no others.

    JAX notes what varies over a mesh, and refuses loops and branches that begin with a
    constant and end with something that varies: the first state of a recurrent network,
    a sum from 0. Within the function nothing is noted; its results vary, all of them.

    Args:
      function: of trees of arrays, to a tree of arrays; without collectives. If it
        closes over arrays that vary it is called as JAX would.
      axis_name: mesh axis over which workers are spread, or None.
    """
    if axis_name is None:
        return function

    def called(*trees: PyTree) -> PyTree:
        own = vary(trees, axis_name)
        unmarked = jax.tree.map(lambda x: _marked(x, axis_name, False), own)
        try:
            result = function(*unmarked)
        except TypeError:  # a loop that takes up what is closed over, or an error
            result = own
        if axis_name in varying_axes(result):
            return vary(function(*own), axis_name)
        return jax.tree.map(lambda x: _marked(x, axis_name, True), result)

    return called


def mark(x: jax.Array) -> jax.Array:
    """Returns an array as it is, by an operation that a traced program shows."""
    return MARK.bind(x, axes=_varying_axes(x))


MARK = Primitive("mark_varying")  # the same numbers, said to vary over some axes


def _marked(x: jax.Array, axis_name: AxisName, varies: bool) -> jax.Array:
    is_manual = axis_name in jax.sharding.get_abstract_mesh().manual_axes
    axes = _varying_axes(x)
    wanted = axes | {axis_name} if varies else axes - {axis_name}
    return MARK.bind(x, axes=wanted) if is_manual and wanted != axes else x


def _mark_kind(
    kind: jax.core.ShapedArray, *, axes: frozenset[AxisName]
) -> jax.core.ShapedArray:
    if manual_axis_type := getattr(kind, "manual_axis_type", None):  # from jax 0.10
        return kind.update(manual_axis_type=manual_axis_type.update(varying=axes))
    return kind.update(vma=axes)


def _mark_transposed(
    cotangent: jax.Array, x: ad.UndefinedPrimal, *, axes: frozenset[AxisName]
) -> list[jax.Array]:
    del axes
    return [MARK.bind(cotangent, axes=_axes_of_kind(x.aval))]


MARK.def_abstract_eval(_mark_kind)
MARK.def_impl(lambda x, *, axes: x)
ad.deflinear2(MARK, _mark_transposed)
batching.defvectorized(MARK)
mlir.register_lowering(MARK, lambda context, x, *, axes: [x])


def varying_axes(tree: PyTree) -> frozenset[AxisName]:
    """Returns the mesh axes over which a tree of arrays is known to differ.

    Empty where JAX does not track it: outside `jax.shard_map`, under
    ``check_vma=False``, and under `jax.vmap` and `jax.pmap`.
    """
    axes: frozenset[AxisName] = frozenset()
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            axes |= _varying_axes(leaf)
    return axes


def other_manual_axes(axis_name: AxisName) -> tuple[AxisName, ...]:
    """Returns the other axes of several devices that `jax.shard_map` handed over."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(
        axis for axis in mesh.manual_axes if axis != axis_name and mesh.shape[axis] > 1
    )


def _varies(x: jax.Array, axis_name: AxisName) -> bool:
    """Returns whether x is known to differ between devices; False where untracked."""
    return axis_name in _varying_axes(x)


def _varying_axes(x: jax.Array) -> frozenset[AxisName]:
    return _axes_of_kind(jax.typeof(x))


def _axes_of_kind(kind: object) -> frozenset[AxisName]:
    if manual_axis_type := getattr(kind, "manual_axis_type", None):  # from jax 0.10
        return frozenset(manual_axis_type.varying)
    return frozenset(getattr(kind, "vma", ()))


def of_each_process(value: object) -> list[Any]:
    """Lists what each process holds, as JSON; all of them must ask."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, sizes, strict=True)]


def explicit_mesh(tree: PyTree) -> AbstractMesh | None:
    """Returns the mesh with explicit axes on which a tree of arrays lies, or None."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            mesh = jax.typeof(leaf).sharding.mesh
            if AxisType.Explicit in mesh.axis_types:
                return mesh
    return None
