"""Explicit mesh axes, which `jax.make_mesh` makes by default: computed on as automatic.

With `jax.sharding.AxisType.Explicit` the type of an array names where it lies, and an
operation that could leave its result in several places (a reshape, a sort over the
workers) has to be told in which. What workers send is aggregated to the same values
wherever it lies, so all of it is computed with automatic axes, and only what comes out
is given a place: updates that of the parameters, states the one that they had.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import PyTree

Function = Callable[..., PyTree]


def on_automatic_axes(function: Function, placing: Function, *args: PyTree) -> PyTree:
    """Calls ``function(*args)`` with the explicit axes of meshes made automatic.

    Args:
      function: of trees of arrays; it returns a tree of arrays.
      placing: ``(mesh, shapes, *args)`` -> the shardings of what the function returns,
        a tree or a prefix of one, given its shapes; asked only where an argument lies
        on explicit axes.
      *args: for the function. What is no array is handed over as it is.
    """
    leaves, treedef = jax.tree.flatten(args)
    mesh = collectives.explicit_mesh(leaves)
    if mesh is None:
        return function(*args)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def of_arrays(*arrays: jax.Array) -> PyTree:
        given = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            given[place] = array
        return function(*jax.tree.unflatten(treedef, given))

    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    whole = NamedSharding(mesh, P())
    arrays = [leaves[place] for place in places]
    shapes = jax.eval_shape(
        jax.sharding.auto_axes(of_arrays, axes=axes, out_sharding=whole), *arrays
    )
    shardings = placing(mesh, shapes, *args)
    return jax.sharding.auto_axes(of_arrays, axes=axes, out_sharding=shardings)(*arrays)


def place_step(
    mesh: AbstractMesh,
    shapes: PyTree,
    updates: optax.Updates,
    state: PyTree,
    params: optax.Params,
    *rest: PyTree,
) -> PyTree:
    """Places what a transformation returns, ``(updates, state)``.

    Updates without the worker axis lie as the parameters do, if these lie anywhere,
    and else as they did before; updates that keep it, and states, as before.
    """
    del rest

    def place(shape: jax.ShapeDtypeStruct, update: Any, param: Any) -> NamedSharding:
        spec = tuple(spec_of(update))
        if shape.ndim < update.ndim:
            is_placed = collectives.explicit_mesh(param) is not None
            spec = tuple(spec_of(param)) if is_placed else spec[1:]
        elif shape.shape != update.shape:  # buckets, which devices may not share
            spec = (None, *spec[1:])
        return NamedSharding(mesh, P(*spec))

    if params is None:
        params = jax.tree.map(lambda update: 0, updates)  # nowhere
    return jax.tree.map(place, shapes[0], updates, params), like(state, mesh)


def place_by_worker(
    mesh: AbstractMesh, shapes: PyTree, batch: PyTree, *args: PyTree
) -> PyTree:
    """Places results ``[M, ...]``: cut over the workers as the batch is."""
    del shapes, args
    axes = {tuple(spec_of(leaf))[:1] or (None,) for leaf in jax.tree.leaves(batch)}
    return NamedSharding(mesh, P(*axes.pop()) if len(axes) == 1 else P())


def place_whole(mesh: AbstractMesh, shapes: PyTree, *args: PyTree) -> PyTree:
    """Places results whole on every device."""
    del shapes, args
    return NamedSharding(mesh, P())


def like(tree: PyTree, mesh: AbstractMesh) -> PyTree:
    """Returns the places of what lies as a tree does; whole where that is nowhere."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec_of(leaf)), tree)


def spec_of(leaf: object) -> P:
    """Returns along which explicit axes an array is cut."""
    return jax.typeof(leaf).sharding.spec if isinstance(leaf, jax.Array) else P()
