"""Identify a run, to refuse foreign checkpoints and processes that start another.

An optax transformation is two closures. What they are called and which options they
hold can be read off them; that they compute the same cannot. So an optimizer is known
by the transforms in its chain and by their words and flags. Numbers are left out, for a
run may go on with another learning rate, and so is how workers are placed and reached.
Processes that train together must agree on the numbers too, and on all values that are
not the data of their own workers.
"""

import dataclasses
import functools
import hashlib
import inspect
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.checkpoint import is_key
from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import PyTree

# Not options: where workers are and what crosses the mesh changes no result.
_PLACING = {"name", "axis_name", "transport", "mask_compatible_extra_args"}
# Wrappers that change nothing but how a transform is called.
_TRANSPARENT = {"chain", "named_chain", "with_extra_args_support"}

Options = dict[str, str | bool | float]
Transform = tuple[str, Options]  # its name, and its options


def identity_of(
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    opt_state: optax.OptState,
    chunk: int,
) -> dict[str, Any]:
    """Lists by name what a run must share with its checkpoint, as JSON keeps it."""
    return {
        "key": _fingerprint(key),
        "keys of the optimizer": _fingerprint(opt_state),
        "chunk": int(chunk),
        "optimizer": [[name, options] for name, options in transforms_in(optimizer)],
    }


def differences(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Names what differs; what the older side did not note is passed over."""
    found = [
        f"{name} ({saved[name]} there, {value} here)"
        for name, value in here.items()
        if name != "optimizer" and saved.get(name, value) != value
    ]
    there, own = saved.get("optimizer"), here["optimizer"]
    if there is None:
        return found
    if [name for name, _ in there] != [name for name, _ in own]:
        chains = (" > ".join(name for name, _ in chain) for chain in (there, own))
        return [*found, "the optimizer ({} there, {} here)".format(*chains)]
    for (name, options), (_, mine) in zip(there, own, strict=True):
        found += [
            f"`{option}` of {name} ({options[option]!r} there, {mine[option]!r} here)"
            for option in sorted(options.keys() & mine.keys())
            if options[option] != mine[option]
        ]
    return found


def check_alike(here: dict[str, Any], wish: str) -> None:
    """Raises on all processes, each of which must ask, if they hold other values.

    Args:
      here: name -> what JSON can hold, of this process.
      wish: what all of them should do, for the message.

    Raises:
      ValueError: naming what differs, and two processes that do.
    """
    everybody = collectives.of_each_process(here)
    names = dict.fromkeys(name for held in everybody for name in held)
    found = []
    for name in names:
        values = [held.get(name, "absent") for held in everybody]
        texts = [repr(value) for value in values]  # in which NaN is itself
        other = next((i for i, text in enumerate(texts) if text != texts[0]), None)
        if other is not None:
            found.append(
                f"{name} ({values[0]} on process 0, {values[other]} on process {other})"
            )
    if found:
        more = f", and {len(found) - 5} more" if found[5:] else ""
        raise ValueError(
            f"The processes do not {wish}: they differ in {', '.join(found[:5])}{more}."
            " All arguments of `jm.run` must be the same on each of them, but for the "
            "data and batches of a process's own workers, whose shapes must be."
        )


def describe(name: str, value: object, *, values: bool = True) -> dict[str, Any]:
    """Lists by name the type, shape and, if wanted, the hash of each array of a value.

    A function is described by its name, a partial one by its data too. Of an array that
    is cut over processes nobody has all values: their form stands alone.
    """
    described: dict[str, Any] = {}
    if value is None or isinstance(value, bool | int | str):
        return {f"`{name}`": value}
    if callable(value):
        inner = getattr(value, "func", value)
        described[f"`{name}`"] = getattr(inner, "__qualname__", type(inner).__name__)
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if callable(leaf):
            continue
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        text = f"{array.dtype} {array.shape}"
        if values and (digest := _digest(array)):
            text += f" of hash {digest}"
        described[f"`{name}{jax.tree_util.keystr(path)}`"] = text
    return described


def configuration_of(
    optimizer: optax.GradientTransformation, **arguments: object
) -> dict[str, Any]:
    """Lists what processes must share: a chain and its numbers, and arguments by name.

    >>> import jaxmedian as jm
    >>> configuration_of(jm.sign_sgd(0.5), num_steps=3)
    {'transform 0, `majority_vote`': {'law': 'none', 'ties': 'zero'}, \
'transform 1, `scale`': {'step_size': -0.5}, '`num_steps`': 3}
    """
    reader = _Reader(with_numbers=True)
    reader.read_update(optimizer.update)
    configuration: dict[str, Any] = {
        f"transform {number}, `{name}`": options
        for number, (name, options) in enumerate(reader.transforms)
    }
    for name, value in arguments.items():
        configuration |= describe(name, value)
    return configuration


def first_keys(optimizer: optax.GradientTransformation, params: optax.Params) -> PyTree:
    """Computes the keys of an optimizer's first state, and nothing else of it.

    >>> import jaxmedian as jm
    >>> noisy = jm.noisy_sign_sgd(0.5, jm.noise.gaussian(1.0), 0)
    >>> keys = first_keys(optax.chain(optax.trace(0.9), noisy), np.zeros(3))
    >>> [str(leaf.dtype) for leaf in jax.tree.leaves(keys)]
    ['key<fry>']
    """
    shapes = jax.eval_shape(lambda: params)

    def compute() -> PyTree:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        state = optimizer.init(zeros)
        return jax.tree.map(lambda leaf: leaf if is_key(leaf) else None, state)

    return jax.jit(compute)()


def transforms_in(optimizer: optax.GradientTransformation) -> list[Transform]:
    """Lists the transforms of a chain in their order, with their words and flags.

    >>> import optax, jaxmedian as jm
    >>> chain = optax.chain(jm.majority_vote(ties="positive"), optax.trace(0.9))
    >>> [(name, options.get("ties")) for name, options in transforms_in(chain)]
    [('majority_vote', 'positive'), ('trace', None)]
    """
    reader = _Reader()
    reader.read_update(optimizer.update)
    return reader.transforms


def takes_value(optimizer: optax.GradientTransformation) -> bool:
    """Returns whether a transform in a chain may read the loss, ``value``.

    >>> import optax, jaxmedian as jm
    >>> plateau = optax.chain(jm.median_sgd(0.1), optax.contrib.reduce_on_plateau())
    >>> takes_value(jm.median_sgd(0.1)), takes_value(plateau)
    (False, True)
    """
    return any(map(_may_read_value, _updates_in(optimizer)))


def names_value(optimizer: optax.GradientTransformation) -> bool:
    """Returns whether a transform in a chain has an argument ``value``.

    >>> import optax, jaxmedian as jm
    >>> plateau = optax.chain(jm.median_sgd(0.1), optax.contrib.reduce_on_plateau())
    >>> names_value(jm.median_sgd(0.1)), names_value(plateau)
    (False, True)
    """
    updates = _updates_in(optimizer)
    return any("value" in inspect.signature(update).parameters for update in updates)


def _updates_in(optimizer: optax.GradientTransformation) -> list[Any]:
    reader = _Reader()
    reader.read_update(optimizer.update)
    return reader.updates


def _may_read_value(update: Any) -> bool:
    """Trusts the signatures of optax and our own; what they build later may read it."""
    module = str(getattr(update, "__module__", ""))
    if "inject_hyperparams" in getattr(update, "__qualname__", ""):
        return True
    parameters = inspect.signature(update).parameters.values()
    return any(
        parameter.name == "value"
        or (
            parameter.kind is inspect.Parameter.VAR_KEYWORD
            and module.split(".")[0] not in ("optax", "jaxmedian")
        )
        for parameter in parameters
    )


class _Reader:
    """Collects the transforms that are reached from an update function."""

    def __init__(self, *, with_numbers: bool = False) -> None:
        self._with_numbers = with_numbers
        self.transforms: list[Transform] = []
        self.updates: list[Any] = []
        self._seen: set[int] = set()  # functions may hold themselves

    def read_update(self, update: object) -> None:
        """Notes the transform an update function belongs to, and those inside it."""
        self.updates.append(update)
        options: Options = {}
        inside: list[Any] = []
        held = self._parts_of(update)
        for name, value in held:
            self._sort(name, value, _is_ours(update), options, inside)
        qualified = getattr(update, "__qualname__", type(update).__qualname__)
        name = dict(held).get("name", qualified.split(".")[0])  # ours hold their names
        if name not in _TRANSPARENT:
            self.transforms.append((str(name), options))
        for inner in inside:
            self.read_update(inner)

    def _sort(
        self,
        name: str,
        value: Any,
        ours: bool,
        options: Options,
        inside: list[Any],
    ) -> None:
        """Sorts what a closure holds into options and inner update functions.

        Of our own transforms words alone count: their flags follow from them.
        """
        if name.split(".")[-1] in _PLACING:
            return
        if isinstance(value, str) or (isinstance(value, bool) and not ours):
            options[name] = value
        elif self._with_numbers and _is_number(value):
            options[name] = value.item() if hasattr(value, "item") else value
        elif ours and name == "noise" and value is None:
            options["law"] = "none"
        elif isinstance(value, optax.GradientTransformation):
            inside.append(value.update)
        elif name == "update_fns":
            inside.extend(value)
        elif name == "inner_factory":
            self._sort_factory(name, value, options, inside)
        elif _is_ours(value):
            for field, held in self._parts_of(value):
                self._sort(field, held, True, options, inside)
        elif isinstance(value, dict | list | tuple):
            parts: Any = value if isinstance(value, dict) else dict(enumerate(value))
            for field, held in parts.items():
                self._sort(f"{name}.{field}", held, ours, options, inside)

    def _sort_factory(
        self, name: str, factory: Any, options: Options, inside: list[Any]
    ) -> None:
        """Names what `optax.inject_hyperparams` calls, sorts what a partial binds."""
        while isinstance(factory, functools.partial):
            for word, bound in factory.keywords.items():
                self._sort(f"{name}.{word}", bound, False, options, inside)
            factory = factory.func
        if getattr(factory, "__name__", "<lambda>") != "<lambda>":
            options[name] = factory.__qualname__

    def _parts_of(self, value: object) -> list[tuple[str, Any]]:
        if id(value) in self._seen:
            return []
        self._seen.add(id(value))
        return _held_by(value)


def _is_ours(value: object) -> bool:
    """Returns whether a value's parts are options of one of our transforms."""
    owner = value if isinstance(value, types.FunctionType) else type(value)
    return owner.__module__.startswith("jaxmedian.") or (
        isinstance(value, functools.partial) and _is_ours(value.func)
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, int | float | np.number):
        return not isinstance(value, bool)
    is_concrete = isinstance(value, jax.Array) and not isinstance(
        value, jax.core.Tracer
    )
    return is_concrete and value.ndim == 0 and not is_key(value)


def _held_by(value: object) -> list[tuple[str, Any]]:
    """Lists by name what a function, method, partial or record holds."""
    if isinstance(value, types.MethodType):
        return sorted(vars(value.__self__).items())
    if isinstance(value, functools.partial):
        bound = [*enumerate(value.args), *value.keywords.items()]
        return [("func", value.func), *((str(name), held) for name, held in bound)]
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        return [(name, cell.cell_contents) for name, cell in cells if _is_set(cell)]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    return []


def _is_set(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is bound later
        return False


def _digest(array: Any) -> str | None:
    """Hashes the values of an array; None where no process has them all."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if not array.is_fully_replicated:
            return None
        array = array.addressable_data(0)
    if is_key(array):
        array = jax.random.key_data(array)
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(values.data).hexdigest()[:16]


def _fingerprint(tree: PyTree) -> str:
    """Hashes the keys of a tree; other arrays may differ by rounding, so are not."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_key(leaf):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.asarray(jax.random.key_data(leaf)).tobytes())
    return digest.hexdigest()[:16]
