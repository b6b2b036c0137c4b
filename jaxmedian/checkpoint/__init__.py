"""Save and restore checkpoints: a killed run ends with the bits of an unbroken one.

A checkpoint holds the parameters, the optimizer's state (keys and counts included) and
the step; that of `jaxmedian.run` also the metrics so far, and which run it is. It holds
no data, and no sampler where a batch is a function of the run's key and the step: then
the step *is* the sampler's position. Of an iterator that has one it holds the state.

Arrays are stored whole, however they were sharded, and come back placed as the state
that asks for them: on one device, on another number of devices, in other processes.

The state of a noisy optimizer holds a typed key, which `pickle`, `copy` and orbax take.
Serialisers that know plain arrays only (`flax.serialization`, `equinox`'s leaves, npz)
do not: give them the words of the keys, and wrap what they return.

    def words(leaf):  # jax.tree.map(words, state) holds plain arrays
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    def wrapped(leaf, like):  # jax.tree.map(wrapped, read, state) is a state again
        is_key = jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(leaf) if is_key else leaf
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.checkpoint.storage import Arrays, Store, holds_checkpoints
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.collectives import PyTree

__all__ = ["Folder", "save", "restore"]

Path = str | os.PathLike[str]

_LOOKS = 5  # of a reader for a checkpoint that no writer removes meanwhile


@dataclasses.dataclass(frozen=True)
class Folder:
    """Where the checkpoints of one run go, and how many of them.

    Attributes:
      path: a folder of their own, made if need be; ``gs://...`` too.
      every: chunk edges of `jaxmedian.run` between two checkpoints; the last edge is
        always saved.
      keep: checkpoints to keep, the newest.

    >>> import jaxmedian as jm
    >>> jm.checkpoint.Folder("runs/first", every=10, keep=3)
    Folder(path='runs/first', every=10, keep=3)
    """

    path: Path
    every: int = 1
    keep: int = 1

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not isinstance(self.path, str | os.PathLike):
            raise TypeError(
                "`checkpoint` must be the path of a folder or a "
                f"`jm.checkpoint.Folder`; got {self.path!r}."
            )
        check_count("every", self.every)
        check_count("keep", self.keep)


def save(folder: Folder | Path, step: int, state: PyTree) -> None:
    """Saves the state of a training loop of your own.

    When it returns the checkpoint is whole on disk; a process killed before leaves the
    checkpoint before it. On several processes each must call it, with global arrays.

    Args:
      folder: path, or a `Folder` that says how many checkpoints to keep.
      step: steps taken so far.
      state: any tree of arrays, keys and numbers, such as ``(params, opt_state)``.

    Raises:
      ImportError: without orbax-checkpoint.
      TypeError: if the state holds anything else, text for instance.
      ValueError: if the folder holds this step or a later one, or foreign files.
      OSError: if it cannot be written to, or the disk is full.
      RuntimeError: if a run is writing to the folder.

    >>> import tempfile, jax.numpy as jnp, jaxmedian as jm
    >>> optimizer = jm.sign_sgd(0.1)
    >>> params, folder = jnp.zeros(3), tempfile.mkdtemp()
    >>> state = (params, optimizer.init(params))
    >>> jm.checkpoint.restore(folder, state)[0]  # nothing there yet
    0
    >>> jm.checkpoint.save(folder, 100, (params + 1, state[1]))
    >>> step, (params, opt_state) = jm.checkpoint.restore(folder, state)
    >>> step, params.tolist()
    (100, [1.0, 1.0, 1.0])
    """
    check_count("step", step, least=0)
    folder = as_folder(folder)
    with Store(folder.path, folder.keep) as store:
        write_state(store, step, state, {})


def restore(folder: Folder | Path, state: PyTree) -> tuple[int, PyTree]:
    """Restores the newest checkpoint of a folder, or says that there is none.

    A run may be writing there: where it removes what is being read, its next is read.

    Args:
      folder: path of a folder that `save` or `jaxmedian.run` wrote. That of `run` holds
        ``(params, opt_state)``, then the model's state if there is one, and with
        ``keep_best`` the best parameters, and the state that belongs to them.
      state: a tree of arrays like the one saved, for instance the state at step 0. Each
        array comes back with the dtype, the devices and the sharding it has there;
        a Python number as one, with all its digits; a NumPy array as one of JAX, but of
        NumPy if its numbers have 64 bits, which JAX by default would round.

    Returns:
      ``(step, state)``; ``(0, state)``, as given, if the folder holds no checkpoint.

    Raises:
      ImportError: without orbax-checkpoint.
      ValueError: if the checkpoint is damaged, foreign, or of another state.

    >>> import tempfile, jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * (params - batch) ** 2
    >>> batches = jm.full_batch(jnp.array([1., 2., 10.]))
    >>> optimizer, params = jm.median_sgd(0.5), jnp.float32(0)
    >>> folder = tempfile.mkdtemp()
    >>> _ = jm.run(loss, optimizer, params, batches, 3, key=0, checkpoint=folder)
    >>> start = (params, optimizer.init(params))
    >>> step, (params, opt_state) = jm.checkpoint.restore(folder, start)
    >>> step, float(params)
    (3, 1.75)
    """
    folder = as_folder(folder)
    if not holds_checkpoints(folder.path):
        return 0, state
    failed = None
    for looks_left in reversed(range(_LOOKS)):
        step = None
        try:
            with Store(folder.path, keep=None) as store:
                step = store.latest_step()
                if step is not None:  # else the last was removed, the next not seen
                    notes = store.read_notes(step)
                    return step, read_state(store, step, state, notes)
        except OSError:  # an older one was removed while they were listed
            if not looks_left:
                raise
        except ValueError:
            if step in (None, failed) or not looks_left:
                raise
        failed = step
    return 0, state


# --- states as named arrays -----------------------------------------------------------


def write_state(
    store: Store, step: int, state: PyTree, notes: Mapping[str, Any]
) -> None:
    """Starts to write a state, and what else is to be noted of it."""
    leaves = {"leaves": _describe(state)}
    store.write(step, _arrays_of(state), {**notes, **leaves})


def read_state(
    store: Store, step: int, state: PyTree, notes: Mapping[str, Any]
) -> PyTree:
    """Reads a checkpoint into the form of ``state``.

    Raises:
      ValueError: if it is damaged, or of a state of another form.
    """
    _check_leaves(store.path / str(step), notes["leaves"], _describe(state))
    wanted = {
        name: jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=words.sharding)
        for name, words in _arrays_of(state).items()
    }
    arrays = store.read_arrays(step, wanted, notes)
    originals = jax.tree.leaves(state)
    leaves = [
        _as_it_was(original, leaf, arrays[name]) if leaf.size else leaf
        for original, (name, leaf) in zip(originals, _leaves(state), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _describe(state: PyTree) -> list[list[Any]]:
    """Lists path, shape and dtype of every leaf, as JSON keeps them."""
    return [[name, [*leaf.shape], _type_of(leaf)] for name, leaf in _leaves(state)]


def _type_of(leaf: jax.Array | np.ndarray) -> str:
    """Names a dtype, and whether the bytes are NumPy's."""
    return f"{'numpy ' * isinstance(leaf, np.ndarray)}{leaf.dtype}"


def _leaves(state: PyTree) -> list[tuple[str, jax.Array | np.ndarray]]:
    """Lists the arrays of a state by their paths in it."""
    return [
        (name, _as_array(name, leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        for name in [f"state{jax.tree_util.keystr(path)}"]
    ]


def _as_array(name: str, leaf: object) -> jax.Array | np.ndarray:
    """Returns a leaf as an array of JAX, or of NumPy where that would change it."""
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"A checkpoint would lose the mask of `{name}`, a masked array: save its "
            "`data` and its `mask`."
        )
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMm" or array.dtype.names is not None:
        raise TypeError(
            f"A checkpoint holds arrays, keys and numbers; `{name}` is {leaf!r}."
        )
    if _is_number(leaf):
        return array
    most = 8 if array.dtype.kind == "c" else 4  # bytes a number of JAX's by default
    if not array.dtype.isnative or array.dtype.itemsize > most:
        return array
    return jnp.asarray(array)


def _is_number(leaf: object) -> bool:
    """Returns whether a leaf is a number of Python's own."""
    return isinstance(leaf, bool | int | float | complex) and not isinstance(
        leaf, np.generic
    )


def _arrays_of(state: PyTree) -> Arrays:
    """Lists what is stored: keys as words, and nothing for empty arrays."""
    return {name: _words(leaf) for name, leaf in _leaves(state) if leaf.size}


def _check_leaves(place: object, saved: list[list[Any]], here: list[list[Any]]) -> None:
    """Raises if a checkpoint holds a tree of other leaves."""
    there, wanted = ({leaf[0]: leaf[1:] for leaf in leaves} for leaves in (saved, here))
    lines = [
        f"`{name}` is {_form(there.get(name))} there, {_form(wanted.get(name))} here"
        for name in {**there, **wanted}
        if there.get(name) != wanted.get(name)
    ]
    if lines:
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise ValueError(
            f"{place} is a checkpoint of another state: {'; '.join(lines[:5])}{more}. "
            "Give the model and the optimizer it was made with, or another folder. "
            "Nothing was changed."
        )


def _form(leaf: list[Any] | None) -> str:
    return "absent" if leaf is None else f"{leaf[1]} {tuple(leaf[0])}"


def _as_it_was(
    original: object, leaf: jax.Array | np.ndarray, words: jax.Array
) -> object:
    """Gives restored words the kind, freedom to move and weak type of a leaf."""
    if isinstance(leaf, np.ndarray):
        array = np.asarray(words).view(leaf.dtype).reshape(leaf.shape)
        return array.item() if _is_number(original) else array
    if not leaf.committed:  # free to follow the data to other devices
        words = jnp.asarray(np.asarray(words))
    if is_key(leaf):
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    if leaf.weak_type:  # zeros of a weak type pass it on to what they are set to
        return jnp.zeros_like(leaf).at[...].set(words)
    return words


def _words(leaf: jax.Array | np.ndarray) -> jax.Array:
    """Returns what is stored of a leaf: keys and NumPy's own numbers as words."""
    if isinstance(leaf, np.ndarray):
        return jnp.asarray(np.frombuffer(leaf.tobytes(), np.uint8))
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def is_key(leaf: object) -> bool:
    """Returns whether a leaf is an array of typed keys."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def as_folder(folder: Folder | Path) -> Folder:
    """Reads what ``checkpoint=`` may be: a path, or a `Folder`."""
    return folder if isinstance(folder, Folder) else Folder(folder)
