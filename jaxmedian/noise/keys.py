"""The key tree: which random word belongs to which step, leaf, worker and coordinate.

    step   = fold_in(rng_key, count)                 rng_key never changes
    leaf   = fold_in(step, position in jax.tree.leaves)
    worker = fold_in(leaf, i)                         i the global number of the worker
    word   = random.bits(worker, leaf.shape, uint32)

Worker numbers and positions end below 2^31. The numbers from there on are the branches
below: every other use of randomness in the library has one of its own, so that one seed
may serve the optimizer, the batches, the participants and an attack, and no word is
drawn twice. (A key that others use needs another seed: `jax.random.split(rng_key)[j]`
is the key of step j.) Nothing depends on the device that asks, so a mesh draws the
words of one device.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Of a leaf: what its workers share. ZERO_BITS + i are the fair bits that worker i sends
# where it has no sign; up to 2^30 workers they end below the branches that follow.
SHARED_UNIFORM = np.uint32(2**31)  # V of systematic coupling
TALLY_TIES = np.uint32(2**31 + 1)
ZERO_BITS = np.uint32(2**31 + 2)
PERMUTATION = np.uint32(3 * 2**30)  # who has which slot of systematic coupling

# Of a step.
HOSTILE_CHOICE = np.uint32(3 * 2**30 + 1)  # which workers an attack takes
BUCKET_ORDER = np.uint32(3 * 2**30 + 2)

# Of a key: before the step is folded in.
BATCHES = np.uint32(3 * 2**30 + 3)  # what each worker trains on in a step
EPOCHS = np.uint32(3 * 2**30 + 4)  # the order of each worker's data in an epoch
PARTICIPANTS = np.uint32(3 * 2**30 + 5)
HOSTILE_NOISE = np.uint32(3 * 2**30 + 6)  # what an attack draws
LOSS_KEYS = np.uint32(3 * 2**30 + 7)  # keys handed to losses, such as for dropout
COORDINATES = np.uint32(3 * 2**30 + 8)  # which coordinates diagnostics look at
RUN = np.uint32(3 * 2**30 + 9)  # what a run hands to the functions that serve it

_KEY_NAME = re.compile("key|rng|seed")

Key = Any  # a typed key, a legacy key, or an int


class KeyState(NamedTuple):
    """State of a transform that draws: the step it is at, and its unchanging key."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32
    rng_key: jax.Array  # shape=(), a typed Threefry key


def as_threefry_key(key: Key) -> jax.Array:
    """Returns the typed Threefry key that stands for ``key``.

    Args:
      key: a typed key, a legacy ``uint32`` key, or an int (a seed), traced or not.
        Keys of another implementation are hashed into a Threefry key, word by word.

    Raises:
      TypeError: if it is none of these.
      ValueError: if it is a batch of keys, or a seed that JAX would cut to 32 bits.
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        _check_seed(int(key))
        return jax.random.key(int(key), impl="threefry2x32")
    if isinstance(key, jax.Array) and _is_seed(key):
        return jax.random.key(key, impl="threefry2x32")
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(
            f"`key` must be a JAX key or an int; got {key!r}. "
            "Pass e.g. `jax.random.key(0)`."
        )
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        batch_shape, words = key.shape, jax.random.key_data(key)
    elif key.dtype == np.uint32 and key.ndim > 0 and key.shape[-1] in (2, 4):
        batch_shape, words = key.shape[:-1], jnp.asarray(key)
    else:
        raise TypeError(
            f"`key` must be a JAX key or an int; got an array of {key.dtype} with "
            f"shape {key.shape}. Pass e.g. `jax.random.key(0)`."
        )
    if batch_shape != ():
        raise ValueError(
            f"`key` must be one key; got a batch of shape {batch_shape}. For several "
            "seeds, `jax.vmap` over the function that builds the optimizer."
        )
    threefry_key = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
    for i in range(2, words.shape[0]):
        threefry_key = jax.random.fold_in(threefry_key, words[i])
    return threefry_key


def _check_seed(seed: int) -> None:
    """Raises for a seed of which JAX would read the last bits only."""
    num_bits = 64 if jax.dtypes.canonicalize_dtype(np.int64) == np.int64 else 32
    signed = 2 ** (num_bits - 1)
    if not -signed <= seed < (signed if num_bits == 64 else 2**32):
        raise ValueError(
            f"`key` is a seed of {num_bits} bits; got {seed}, of which only the last "
            f"bits would count. Pass a smaller one, or fold its parts in: "
            "`jax.random.fold_in(jax.random.key(low), high)`."
        )


def _is_seed(key: jax.Array) -> bool:
    """Returns whether an array is an integer scalar, such as a vmapped seed."""
    return key.ndim == 0 and bool(jnp.issubdtype(key.dtype, jnp.integer))


def init_state(rng_key: jax.Array) -> KeyState:
    """Returns the state before the first step, in arrays of its own.

    The key is copied: a state that is donated takes neither the transform, nor another
    state, nor the caller's key with it.
    """
    return KeyState(jnp.zeros([], jnp.int32), jnp.array(rng_key, copy=True))


def next_state(state: Any) -> KeyState:
    """Returns count and key after one more step, of any state that has them."""
    return KeyState(optax.safe_increment(state.count), state.rng_key)


def step_key(state: Any) -> jax.Array:
    """Returns the key of the step that ``state`` is about to take."""
    return jax.random.fold_in(state.rng_key, state.count)


def leaf_keys(state: Any, positions: Sequence[int]) -> jax.Array:
    """Returns the keys of leaves for the step that ``state`` is about to take.

    Args:
      state: which step of which key.
      positions: of the leaves in their tree; see `leaf_positions`.
    """
    return fold_in_each(step_key(state), jnp.asarray(positions, jnp.uint32))


def leaf_positions(tree: Any) -> list[int]:
    """Returns the positions of a tree's arrays in `jax.tree.leaves`.

    Leaves that `optax.masked` or `optax.partition` hides are counted, so that groups of
    parameters that share a key draw words of their own; but a subtree that a prefix
    hides, one label of a whole branch, is one place, whatever it holds.
    """

    def is_hidden(node: object) -> bool:
        return isinstance(node, optax.MaskedNode)

    nodes = jax.tree.leaves(tree, is_leaf=is_hidden)
    return [i for i, node in enumerate(nodes) if not is_hidden(node)]


def fold_in_each(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Folds each of the numbers ``[n]`` into one key; returns keys ``[n]``."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def is_key(path: tuple[object, ...], leaf: jax.Array) -> bool:
    """Returns whether a leaf of an optimizer state is a key, typed or legacy.

    Legacy keys are plain uint32 arrays: only the name of their field tells, if it has
    one. "key", "rng" and "seed" in it do; so does the shape where there is no name.
    """
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return True
    name = str(getattr(path[-1], "name", getattr(path[-1], "key", ""))) if path else ""
    is_key_shaped = leaf.dtype == jnp.uint32 and leaf.ndim == 1 and leaf.size in (2, 4)
    return is_key_shaped and (not name or bool(_KEY_NAME.search(name)))
