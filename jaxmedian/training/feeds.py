"""What each step of a run is given: functions of its key and number, with their data.

A feed is an argument of the compiled chunk, so what its functions hold is one too. On a
mesh it is shared out: the library's own draws know the numbers of the workers they draw
for, so each device holds and draws its own; whole draws of other functions are cut.
"""

import dataclasses
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxmedian.training.batches import Server
from jaxmedian.training.identity import describe
from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName, PyTree

NextBatch = Callable[[jax.Array, jax.Array], PyTree]
ExtraArgs = Callable[[jax.Array, jax.Array], dict[str, Any]]


class Feed(NamedTuple):
    """What a step is given, as functions of its key and number, and with their data."""

    next_batch: jax.tree_util.Partial
    extra_args: jax.tree_util.Partial

    def spread(self, axis_name: AxisName | None) -> "Feed":
        """Returns the feed whose library draws are of one device's workers."""
        draws = self.next_batch
        if axis_name is None or not isinstance(draws.func, Server):
            return self
        server = draws.func.spread(axis_name)
        return Feed(jax.tree_util.Partial(server, *draws.args), self.extra_args)


def build_feed(next_batch: NextBatch, extra_args: ExtraArgs | None) -> Feed:
    """Makes functions arguments of the compiled chunk, so that their data are too.

    Raises:
      TypeError: if they are no functions.
    """
    if not callable(next_batch):
        raise TypeError(
            "`next_batch` must be a function (key, step) -> batch [M, ...], traced; "
            f"got {kind_of(next_batch)}. {_remedy_for(next_batch)}"
        )
    return Feed(as_partial(next_batch), as_extra_args(extra_args))


def as_extra_args(extra_args: ExtraArgs | None) -> jax.tree_util.Partial:
    """Makes ``extra_args`` an argument of the compiled chunk.

    Raises:
      TypeError: if it is no function.
    """
    if extra_args is None:
        return jax.tree_util.Partial(_no_extra_args)
    if not callable(extra_args):
        raise TypeError(
            "`extra_args` must be a function (key, step) -> {name: value}; got "
            f"{extra_args!r}. For the same value in each step, return it."
        )
    return as_partial(extra_args)


def by_name(returned: Any) -> Mapping[str, Any]:
    """Returns what a function of extra arguments returned, if it has names."""
    if isinstance(returned, Mapping):
        return returned
    raise TypeError(
        '`extra_args` must return a dictionary {name: value}, {"worker_mask": ...} for '
        f"instance; it returned {returned!r}."
    )


def as_partial(function: Callable[..., Any]) -> jax.tree_util.Partial:
    """Makes a function an argument of jitted code, so that its data is one too.

    Data that a closure captures is compiled into the program as a constant, slowly. The
    caller holds the function for as long as it may be called.
    """
    if isinstance(function, jax.tree_util.Partial):
        return function
    if type(function) in (types.FunctionType, functools.partial):
        return jax.tree_util.Partial(_NotKept(function))
    return jax.tree_util.Partial(function)


class _NotKept:
    """A function that somebody else holds.

    It stands in the structure of a tree, which JAX's caches keep long after a run: so
    would they the data that it closes over.
    """

    def __init__(self, function: Callable[..., Any]):
        self._reference = weakref.ref(function)
        name = getattr(function, "__qualname__", type(function).__qualname__)
        self.__qualname__: str = name

    def __call__(self, *args: Any) -> Any:
        function = self._reference()
        assert function is not None
        return function(*args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NotKept) and self._reference == other._reference

    def __hash__(self) -> int:
        return hash(self._reference)


def kind_of(value: object) -> str:
    """Names the type of a value in a message."""
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace(
        "builtins.", ""
    )


def _remedy_for(data: object) -> str:
    if inspect.isgenerator(data) or isinstance(data, Iterator):
        return (
            "Batches that Python makes cannot be drawn in a pure function: use "
            "`jm.run`, or loop over them with `jm.make_step`."
        )
    return (
        "For data [M, ...] served whole in every step pass `jm.full_batch(data)`; for "
        "samples of data [M, n, ...] `jm.mini_batches(data, batch_size)`; for batches "
        "that Python makes an iterator, `iter(batches)`."
    )


def _no_extra_args(key: jax.Array, step: jax.Array) -> dict[str, Any]:
    del key, step
    return {}


def describe_feed(feed: Feed) -> dict[str, Any]:
    """Lists by name what processes must share of a feed, values where they are whole.

    Of the library's own draws the data and sizes are each process's own: their forms.
    """
    draws, args = feed
    if not isinstance(draws.func, Server):
        return describe("next_batch", draws) | describe("extra_args", args)
    worker_data, sizes, own_key = draws.args
    server = dataclasses.replace(draws.func, draw=None)
    draw = getattr(draws.func.draw, "__name__", "all data")
    return {
        "`next_batch`": f"{draw}, {server.batch_size} samples",
        **describe("data", worker_data, values=False),
        **describe("sizes", sizes, values=False),
        **describe("key of the epochs", own_key),
        **describe("extra_args", args),
    }


# --- on a mesh ------------------------------------------------------------------------


def own_feed(feed: Feed, axis_name: AxisName) -> Feed:
    """Returns the feed whose functions draw for the workers of one device alone."""
    draws, args = feed.spread(axis_name)
    if not isinstance(draws.func, Server):
        draws = jax.tree_util.Partial(_OwnBatch(axis_name), draws)
    return Feed(draws, jax.tree_util.Partial(_OwnExtraArgs(axis_name), args))


def share_out(feed: Feed, axis_name: str) -> tuple[Feed, Feed]:
    """Builds the feed of one device inside `jax.shard_map`, and how its data are cut.

    Returns:
      The feed of `own_feed`, and the same tree with a `PartitionSpec` for each array.
    """
    own = own_feed(feed, axis_name)
    specs = jax.tree.map(lambda leaf: P(), own)
    draws = own.next_batch
    if isinstance(draws.func, Server):
        worker_data, sizes, own_key = draws.args
        cut = jax.tree.map(lambda leaf: P(axis_name), (worker_data, sizes))
        whole = jax.tree.map(lambda leaf: P(), own_key)
        draw_specs = jax.tree_util.Partial(draws.func, *cut, whole)
        specs = Feed(draw_specs, specs.extra_args)
    return own, specs


@dataclasses.dataclass(frozen=True)
class _OwnBatch:
    """Cuts this device's workers out of a whole draw."""

    axis_name: AxisName

    def __call__(self, draws: Any, key: jax.Array, step: jax.Array) -> PyTree:
        return jax.tree.map(
            lambda leaf: collectives.own_block(leaf, self.axis_name), draws(key, step)
        )


@dataclasses.dataclass(frozen=True)
class _OwnExtraArgs:
    """Cuts this device's workers out of extra arguments that belong to workers."""

    axis_name: AxisName

    def __call__(self, args: Any, key: jax.Array, step: jax.Array) -> dict[str, Any]:
        return {
            name: self._own_part(name, value) if name.startswith("worker_") else value
            for name, value in by_name(args(key, step)).items()
        }

    def _own_part(self, name: str, value: Any) -> jax.Array | None:
        if value is None:
            return None
        array, num_devices = jnp.asarray(value), collectives.size(self.axis_name)
        if array.ndim == 0 or array.shape[0] % num_devices:
            raise ValueError(
                f"`extra_args` returns `{name}` of shape {array.shape}, which "
                f"{num_devices} devices cannot share out: on a mesh, what belongs to "
                "workers is [M, ...], of all M of them."
            )
        return collectives.own_block(array, self.axis_name)
