"""Where the batches of a run come from, and how a chunk is taken with them.

`Drawn` batches are functions traced into the chunk: one call computes all its steps.
`Loaded` batches come from a Python iterator: the same program computes a step or a few
a call, while the next batches are read and placed (double buffering). Calls are
asynchronous, so no thread is needed: the device waits for Python only where a batch
takes longer to load than a step to compute. A call costs time of its own, on CPUs even
the pages of its buffers, so it gets as many batches as were read while the device was
busy: many of a fast loader, one at a time of a slow one.
"""

import base64
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.checkpoint import is_key
from jaxmedian.training.batches import Queue
from jaxmedian.training.feeds import Feed, describe_feed
from jaxmedian.training.identity import check_alike, describe
from jaxmedian.training.interrupts import wait_until_ready
from jaxmedian.training.spreading import Spread
from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import PyTree
from jaxmedian.workers.gradients import count_in_batch

_ALIGNMENT = 64  # bytes, of memory that XLA's CPU device takes over as it is
_GROUP_SIZE, _GROUP_BYTES = 16, 2**25  # of the batches of a call, at most

Advance = Callable[..., tuple[PyTree, dict[str, jax.Array]]]


def is_loader(value: object) -> bool:
    """Returns whether a value makes batches, and is not data itself.

    Tensors of other libraries are data, though Python can iterate over their rows.
    """
    is_array = hasattr(value, "shape") and hasattr(value, "dtype")
    data = (list, tuple, Mapping, str, bytes)
    return isinstance(value, Iterable) and not (is_array or isinstance(value, data))


class Taken(NamedTuple):
    """A chunk that was taken: the step reached, the state there, and its row."""

    step: int
    state: PyTree
    row: dict[str, jax.Array]


class Drawn:
    """Batches drawn inside the compiled chunk, by functions of the step."""

    is_interrupted = False

    def __init__(self, feed: Feed) -> None:
        """Takes the functions."""
        self.feed = feed

    def place(self, spread: Spread | None) -> None:
        """Places the data of the functions, once: on the device, or on a mesh.

        NumPy's are copied before, since `jax.device_put` may share memory with them.
        """

        def own(leaf: object) -> object:
            return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

        feed = jax.tree.map(own, self.feed)
        self.feed = jax.device_put(feed) if spread is None else spread.place_feed(feed)

    def described(self) -> dict[str, Any]:
        """Lists by name what processes must share: all but the data of workers."""
        return describe_feed(self.feed)

    def take(
        self, advance: Advance, key: jax.Array, state: PyTree, start: int, stop: int
    ) -> Taken:
        """Takes the steps ``start`` to ``stop`` in one call."""
        return Taken(stop, *advance(state, self.feed, key, start, stop, 1))

    def position(self) -> None:
        """Returns None: the step is the position."""

    def start(self, step: int) -> None:
        """Does nothing: the step is the position."""

    def resume(self, position: Any, step: int, start: int) -> None:
        """Does nothing: the step is the position."""


class Loaded:
    """Batches of a Python iterator, read in step with the run and never ahead of it.

    Args:
      batches: iterator or iterable of trees ``[M, ...]``, of equal shapes.
      extra_args: as in a `Feed`.
      replay: whether a resumed run may read and drop the batches it has had.
      chunk: steps between two edges.
    """

    def __init__(
        self,
        batches: Iterable[PyTree],
        extra_args: jax.tree_util.Partial,
        replay: bool,
        chunk: int,
    ) -> None:
        """Opens the iterator; nothing is read yet."""
        self._iterator: Iterator[PyTree] = iter(batches)
        self._is_at_first_batch = self._iterator is not batches  # made by `iter`
        self._extra_args = extra_args
        self._place: Callable[[PyTree], PyTree] = jax.device_put
        self._is_shared, self._replay, self._chunk = False, replay, chunk
        self._form: dict[str, tuple[Any, ...]] | None = None
        self._structure: Any = None  # of the batches' trees
        self.is_interrupted = False  # by a KeyboardInterrupt out of the iterator
        self._has_begun = False  # here, or in the run that is resumed
        self._group_size = 1
        self.feed: Feed | None = None  # of the batches read last

    def place(self, spread: Spread | None) -> None:
        """Lets batches be placed on a mesh, a process's own workers by each."""
        if spread is None:
            return
        self._extra_args = spread.replicate(self._extra_args)
        self._place, self._is_shared = spread.place_batch, spread.is_of_all_processes

    def described(self) -> dict[str, Any]:
        """Lists by name what processes must share; the batches' form follows later."""
        return {"`next_batch`": "an iterator"} | describe(
            "extra_args", self._extra_args
        )

    def take(
        self, advance: Advance, key: jax.Array, state: PyTree, start: int, stop: int
    ) -> Taken | None:
        """Takes the steps ``start`` to ``stop``, or to the end of the data.

        A KeyboardInterrupt out of the iterator ends the data too, so that the steps
        before it are not lost.

        The measurement at the edge is of the batch read last, so that no batch is read
        that is not trained on. None if there was no batch.
        """
        running: list[jax.Array] = []  # the losses of calls: of two at most
        row: dict[str, jax.Array] = {}
        number, has_ended = start, False
        while number < stop and not has_ended:
            batches, has_ended = self._read_group(number, stop, running)
            if len(running) == 2:
                # The device goes on with the second, so it matters little to be late.
                wait_until_ready(running.pop(0), share=0.1)
            if not batches and number == start:
                if self._has_begun:
                    return None
                if self.is_interrupted:
                    raise KeyboardInterrupt
                raise ValueError(
                    "`next_batch` gave no batch at all: has the iterator been used up "
                    "before?"
                )
            self._queue(batches, number)
            end = number + len(batches)
            is_last = int(has_ended or end == stop)
            state, row = advance(state, self.feed, key, number, end, is_last)
            running.append(row["loss"])
            number = end
        return Taken(number, state, row)

    def position(self) -> list[Any] | None:
        """Returns the iterators' own states as JSON keeps them, one of each process.

        None if they have none.

        Raises:
          TypeError: if a state is neither bytes nor JSON.
        """
        if not self._has_state():
            return None
        state: PyTree = self._iterator.get_state()  # type: ignore[attr-defined]
        if isinstance(state, bytes):
            return collectives.of_each_process(
                {"bytes": base64.b64encode(state).decode()}
            )
        try:
            held = json.loads(json.dumps(state))
            own = _with_lists(state)
            if held != own and repr(held) != repr(own):  # in which NaN is itself
                raise TypeError(f"{state!r} would come back as {held!r}")
        except TypeError as error:
            raise TypeError(
                "`next_batch.get_state()` must return bytes or what JSON can hold, to "
                f"be saved with the checkpoint: {error}."
            ) from error
        return collectives.of_each_process({"json": held})

    def start(self, step: int) -> None:
        """Goes to the batch of the step at which a run starts, if it is not there.

        Raises:
          ValueError: if the iterator stands at the first batch, and may not be read on.
        """
        if not step or not self._is_at_first_batch:
            return
        if not self._replay:
            raise ValueError(
                f"`next_batch` starts from its first batch, but the run at `step` "
                f"{step}: pass an iterator that stands at the next batch, or "
                f"`replay=True`, which reads and drops {step} batches, or a function "
                "(key, step)."
            )
        self._drop(0, step)

    def resume(self, position: list[Any] | None, step: int, start: int) -> None:
        """Goes to the batch of a step, from that of ``start`` or from the first.

        Raises:
          ValueError: if the iterator can neither be set nor be read again.
        """
        self._has_begun = True
        first = 0 if self._is_at_first_batch else start
        if position is not None and self._has_state():
            if len(position) != jax.process_count():
                raise ValueError(
                    "`next_batch`: the checkpoint holds the iterator states of "
                    f"{len(position)} processes, of which there are "
                    f"{jax.process_count()} here. Resume on as many, or pass a "
                    "function (key, step)."
                )
            own = position[jax.process_index()]
            is_bytes = "bytes" in own
            state = base64.b64decode(own["bytes"]) if is_bytes else own["json"]
            self._iterator.set_state(state)  # type: ignore[attr-defined]
            return
        if not self._replay:
            raise ValueError(
                f"`next_batch` cannot be resumed at step {step}: an iterator without "
                "`get_state` and `set_state` cannot be moved (those of grain can). "
                "Start it from the beginning and pass `replay=True`, which reads and "
                f"drops {step - first} batches, or pass a function (key, step)."
            )
        self._drop(first, step)

    def _drop(self, first: int, step: int) -> None:
        """Reads the batches of the steps from the first to one, and drops them."""
        for number in range(first, step):
            if self._read(number) is None:
                raise ValueError(
                    f"`next_batch` ended after {number - first} batches, before the "
                    f"step {step} at which the run goes on: is it the same data, from "
                    "the beginning?"
                )
        self._has_begun = True

    def _has_state(self) -> bool:
        return all(
            callable(getattr(self._iterator, name, None))
            for name in ("get_state", "set_state")
        )

    def _read_group(
        self, number: int, stop: int, running: list[jax.Array]
    ) -> tuple[list[PyTree], bool]:
        """Reads and places batches while the device has a call to go on with.

        One at least, none behind the step ``stop``, and of several processes, which
        must make the same calls, one.

        Returns:
          The batches, and whether the data ended behind them.
        """
        batches: list[PyTree] = []
        while number + len(batches) < stop:
            batch = self._read(number + len(batches))
            if batch is None:
                return batches, True
            batches.append(self._place(jax.tree.map(_own, batch)))
            if self.feed is None and len(batches) == 1 and not self._is_shared:
                num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
                by_memory = _GROUP_BYTES // max(num_bytes, 1)
                self._group_size = max(1, min(_GROUP_SIZE, by_memory, self._chunk))
            if len(batches) == self._group_size or not _is_busy(running):
                break
        return batches, False

    def _queue(self, batches: list[PyTree], number: int) -> None:
        """Makes batches the feed from a step on; of none, the last one stays."""
        if batches:
            filled = *batches, *batches[-1:] * (self._group_size - len(batches))
            queue = jax.tree_util.Partial(Queue(), filled, None, number)
            self.feed, self._has_begun = Feed(queue, self._extra_args), True

    def _read(self, number: int) -> PyTree:
        """Reads the batch of a step; None at the end of the data."""
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._agree({"`next_batch`": "no batch at all"}, number)
            return None
        except KeyboardInterrupt:  # in a worker process of the loader, perhaps
            self.is_interrupted = True
            return None
        except Exception as error:
            with contextlib.suppress(ValueError):
                self._agree({"`next_batch`": f"raised {error!r}"}, number)
            error.add_note(
                f"`next_batch` raised this at step {number}. The last checkpoint, if "
                "there is one, stands."
            )
            raise
        batch = jax.tree.map(_as_array, batch)
        self._check(batch, number)
        return batch

    def _check(self, batch: PyTree, number: int) -> None:
        form = {
            jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype))
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
        }
        structure = jax.tree.structure(batch)
        if self._form is None:
            self._agree({f"`batch{n}`": _kind(form[n]) for n in form}, number)
            count_in_batch(batch)
            self._form, self._structure = form, structure
        if form == self._form and structure == self._structure:
            return
        changed = [
            f"`{name or 'the batch'}` is {_kind(form.get(name))}, before "
            f"{_kind(self._form.get(name))}"
            for name in self._form | form
            if form.get(name) != self._form.get(name)
        ] or [f"its tree is {structure}, before {self._structure}"]
        raise ValueError(
            f"`next_batch` gave another form of batch at step {number}: "
            f"{'; '.join(changed[:5])}. Every batch needs the same workers and shapes: "
            "drop the last, smaller one (`drop_remainder=True` in most loaders), or "
            "fill it up."
        )

    def _agree(self, form: dict[str, Any], number: int) -> None:
        """Raises on all processes if their first batches differ in form."""
        if self._is_shared and self._form is None:
            check_alike(form, f"give batches of one form at step {number}")


def _with_lists(state: object) -> object:
    """Returns a state with lists for tuples and Python's floats, as JSON has them."""
    if isinstance(state, dict):
        return {name: _with_lists(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [_with_lists(value) for value in state]
    return float(state) if isinstance(state, float) else state


def _is_busy(running: list[Any]) -> bool:
    """Returns whether a device has two calls before it, and computes the first."""
    return len(running) == 2 and not running[0].is_ready()


def _as_array(leaf: object) -> jax.Array | np.ndarray:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _own(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Returns a copy, which nobody else writes to, donates or deletes.

    Loaders may fill the same buffer again, while steps still wait for it. On CPUs
    arrays of JAX share it for as long as they live, where it is aligned: those of
    `jax.device_put`, and those that a loader makes by `jax.numpy.asarray`.
    """
    if isinstance(array, jax.Array):
        if any(device.platform != "cpu" for device in array.devices()):
            return jnp.copy(jax.block_until_ready(array))
        # Now: behind steps that still run it would copy what is there by then.
        if array.committed or is_key(array):
            return jax.block_until_ready(jnp.copy(array))
        array = np.asarray(array)
    if array.dtype.hasobject:  # refused where it is placed
        return array
    # Aligned, so that the copy is the only one where memory can be shared.
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    own = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    own[...] = array
    return own


def _kind(form: tuple[Any, ...] | None) -> str:
    return "absent" if form is None else f"{form[1]} {form[0]}"
