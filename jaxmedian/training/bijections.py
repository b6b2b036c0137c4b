"""Shuffle indices by bijections, one at a time: orders of samples that nobody stores.

The order of a worker's n samples is a bijection of 0, ..., n - 1 that is evaluated
where it is needed: the swap-or-not shuffle (Hoang, Morris & Rogaway, "An enciphering
scheme based on a card shuffle", CRYPTO 2012). A round pairs each place x with
K - x mod n, K drawn by key, and one keyed bit per pair swaps its two places or not.
Such a round is its own inverse whatever n is, so the rounds make a bijection without a
table, a sort, or walking back from a larger domain (Black & Rogaway, "Ciphers with
arbitrary finite domains", CT-RSA 2002): the work is the same for 10 and 10^9 samples.

The draws below share one signature, `IndexDraw`, and depend on nothing but their
arguments: whoever knows the global numbers of some workers draws what they draw.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.noise import keys

# (key, step, sizes [m], batch_size, numbers [m]) -> indices [m, batch_size], int32:
# ``sizes`` samples, 0 to 2^31, are held by the workers of those global ``numbers``.
# A size of 0 counts as 1, and where a batch is larger than its worker, places wrap.
IndexDraw = Callable[[keys.Key, jax.Array | int, jax.Array, int, jax.Array], jax.Array]

# A Fourier coefficient of the joint law of a few places halves in each round: the law
# of a pair is uniform to about 2^-32, that of whole orders of n = 2 to 6 to 1e-6.
ROUNDS = 32
_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio; odd


def shuffled(places: jax.Array, size: jax.Array, key_words: jax.Array) -> jax.Array:
    """Maps places in a shuffled order of 0, ..., n - 1 to what stands there.

    Args:
      places: uint32 below ``size``, of a shape that broadcasts with the others.
      size: uint32 n, 1 to 2^31, may be traced and differ from place to place.
      key_words: uint32 ``[..., 2]``, `jax.random.key_data` of the order's key.

    Returns:
      uint32 below ``size``; for one key and n, different places give different results.

    >>> import jax
    >>> words = jax.random.key_data(jax.random.key(0, impl="threefry2x32"))
    >>> order = shuffled(jnp.arange(5, dtype=jnp.uint32), jnp.uint32(5), words)
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4]
    """
    key0, key1 = key_words[..., 0], key_words[..., 1]

    def swap_or_not(i: jax.Array, x: jax.Array) -> jax.Array:
        round_word = _mix(key0 + i.astype(jnp.uint32) * _GOLDEN)
        offset = _scale(_mix(round_word + key1), size)
        partner = offset - x
        partner = jnp.where(x > offset, partner + size, partner)
        pair = jnp.maximum(x, partner)  # one name for both
        toss = _mix(((pair + key1) * _GOLDEN) ^ round_word)
        return jnp.where(toss >> np.uint32(31) == 1, partner, x)

    zero = (key0 ^ key0) + (size ^ size)  # the loop's carry varies as these over a mesh
    # Unrolled in part: fewer, larger kernels, compiled as fast.
    return jax.lax.fori_loop(0, ROUNDS, swap_or_not, places + zero, unroll=4)


def _mix(word: jax.Array) -> jax.Array:
    """Hashes words one-to-one (Wellons' lowbias32): each bit depends on all others."""
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> np.uint32(15))) * np.uint32(0x846CA68B)
    return word ^ (word >> np.uint32(16))


def _scale(word: jax.Array, size: jax.Array) -> jax.Array:
    """Maps words to floor(word size / 2^32), 0 to size - 1, by halves of 16 bits."""
    low, half = np.uint32(0xFFFF), np.uint32(16)
    word0, word1, size0, size1 = word & low, word >> half, size & low, size >> half
    middle = word1 * size0 + ((word0 * size0) >> half)
    carried = (word0 * size1 + (middle & low)) >> half
    return word1 * size1 + (middle >> half) + carried


def without_replacement(
    key: keys.Key,
    step: jax.Array | int,
    sizes: jax.Array,
    batch_size: int,
    numbers: jax.Array,
) -> jax.Array:
    """Draws different samples per worker: the first places of an order of the step.

    The order's key is ``fold_in(fold_in(key, BATCHES), number)``: ``key`` is that of
    the step.
    """
    del step
    size = _column(sizes)
    places = _places(batch_size) % size
    words = jax.random.key_data(_worker_keys(key, keys.BATCHES, numbers))
    return shuffled(places, size, words[:, None]).astype(jnp.int32)


def with_replacement(
    key: keys.Key,
    step: jax.Array | int,
    sizes: jax.Array,
    batch_size: int,
    numbers: jax.Array,
) -> jax.Array:
    """Draws samples per worker, each independent of the others.

    The key of a worker's `jax.random.randint` is that of `without_replacement`.
    """
    del step

    def indices(worker_key: jax.Array, size: jax.Array) -> jax.Array:
        return jax.random.randint(worker_key, (batch_size,), 0, size, jnp.uint32)

    worker_keys = _worker_keys(key, keys.BATCHES, numbers)
    drawn = jax.vmap(indices)(worker_keys, _column(sizes)[:, 0])
    return drawn.astype(jnp.int32)


def epochs_with_remainder(
    key: keys.Key,
    step: jax.Array | int,
    sizes: jax.Array,
    batch_size: int,
    numbers: jax.Array,
) -> jax.Array:
    """Draws the next samples of each worker, on into the next epoch within a batch.

    Position p = ``step`` * ``batch_size`` + j belongs to epoch p // n, place p % n, in
    integers of any length. The key of a worker's order in an epoch is
    ``fold_in(fold_in(fold_in(key, EPOCHS), number), epoch)``.
    """
    size = _column(sizes)
    number_of_step = jnp.asarray(step).astype(jnp.uint32)
    # In n steps go by exactly batch_size epochs, so the product below stays short.
    turns, steps_left = number_of_step // size, number_of_step % size
    epochs_left, start = _divide_product(steps_left, batch_size, size)
    positions = start + _places(batch_size)
    epoch = turns * np.uint32(batch_size) + epochs_left + positions // size
    return _epoch_indices(key, epoch, positions % size, size, numbers)


def epochs_without_remainder(
    key: keys.Key,
    step: jax.Array | int,
    sizes: jax.Array,
    batch_size: int,
    numbers: jax.Array,
) -> jax.Array:
    """Draws the next samples of each worker, n // ``batch_size`` batches per epoch.

    Keys as in `epochs_with_remainder`.
    """
    size = _column(sizes)
    number_of_step = jnp.asarray(step).astype(jnp.uint32)
    steps = jnp.maximum(size // np.uint32(batch_size), 1)
    start = number_of_step % steps * np.uint32(batch_size)
    places = (start + _places(batch_size)) % size
    return _epoch_indices(key, number_of_step // steps, places, size, numbers)


def _epoch_indices(
    key: keys.Key,
    epoch: jax.Array,
    places: jax.Array,
    size: jax.Array,
    numbers: jax.Array,
) -> jax.Array:
    """Looks up places ``[m, batch]`` of orders by ``epoch``, ``[m, 1 or batch]``."""
    worker_keys = _worker_keys(key, keys.EPOCHS, numbers)
    order_keys = jax.vmap(keys.fold_in_each)(worker_keys, epoch)
    return shuffled(places, size, jax.random.key_data(order_keys)).astype(jnp.int32)


def _divide_product(
    a: jax.Array, b: int, divisor: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns a b // divisor and a b % divisor, for a < divisor <= 2^31, in uint32.

    The quotient is right modulo 2^32.
    """
    quotient, rest = a ^ a, a ^ a
    for bit in f"{b:b}":  # Horner's rule
        quotient, rest = _reduce(2 * quotient, 2 * rest, divisor)
        if bit == "1":
            quotient, rest = _reduce(quotient, rest + a, divisor)
    return quotient, rest


def _reduce(
    quotient: jax.Array, rest: jax.Array, divisor: jax.Array
) -> tuple[jax.Array, jax.Array]:
    carry = (rest >= divisor).astype(jnp.uint32)
    return quotient + carry, rest - carry * divisor


def _column(sizes: jax.Array) -> jax.Array:
    return jnp.maximum(sizes.astype(jnp.uint32), 1)[:, None]


def _places(batch_size: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.uint32, (1, batch_size), 1)


def _worker_keys(key: keys.Key, branch: np.uint32, numbers: jax.Array) -> jax.Array:
    branch_key = jax.random.fold_in(keys.as_threefry_key(key), branch)
    return keys.fold_in_each(branch_key, numbers)
