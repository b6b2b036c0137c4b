"""Shuffled orders computed in place: one-to-one for every n, and as random as they say.

Statistical tests have fixed seeds; tolerances are 5 standard deviations or more.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import enable_x64
from jax.sharding import PartitionSpec as P
from reference_orders import place_of, sample_at

import jaxmedian as jm
from jaxmedian.training import bijections

SMALL = range(1, 10)
LARGE = (1000, 2**20 + 1, 2**31 - 1, 2**31)


@jax.jit
def shuffled(places, size, words):
    return bijections.shuffled(places, size, words)


def orders(num_keys, n, places, seed=0):
    """What stands at ``places`` in the orders of many keys, int64 [keys, places]."""
    words = jax.random.bits(jax.random.key(seed), (num_keys, 1, 2), "uint32")
    asked = jnp.asarray(np.uint32(places))[None]
    return np.asarray(shuffled(asked, jnp.full((1, 1), n, jnp.uint32), words), np.int64)


def assert_uniform(counts):
    """Pearson's chi-square of equally likely cells, within 5 of its deviations."""
    cells, total = counts.size, counts.sum()
    expected = total / cells
    assert expected >= 5, "too few draws for a chi-square"
    statistic = np.sum((counts - expected) ** 2) / expected
    deviation = np.sqrt(2 * (cells - 1) * (1 - 1 / total))  # exact, of a multinomial
    assert abs(statistic - (cells - 1)) < 5 * deviation


# --- bijections -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [*SMALL, *LARGE])
def test_orders_are_those_of_the_slow_shuffle_and_its_inverse_undoes_them(n):
    rng = np.random.default_rng(n)
    ends = {0, n // 2, n - 1}
    places = sorted({*rng.integers(0, n, 20).tolist()} | ends)
    for words in rng.integers(0, 2**32, (3, 2)):
        got = shuffled(
            jnp.asarray(np.uint32(places)), jnp.uint32(n), jnp.asarray(np.uint32(words))
        )
        assert got.dtype == jnp.uint32
        expected = [sample_at(place, words, n) for place in places]
        assert np.asarray(got).tolist() == expected
        assert [place_of(sample, words, n) for sample in expected] == places


@pytest.mark.parametrize("n", [*SMALL, 1000, 2**20 + 1])
def test_every_order_is_a_permutation(n):
    drawn = orders(2000 if n < 10 else 3, n, range(n))
    np.testing.assert_array_equal(np.sort(drawn, axis=1)[:, 0], 0)
    assert (np.sort(drawn, axis=1) == np.arange(n)).all()


@pytest.mark.parametrize("n", [2**31 - 1, 2**31])
def test_a_million_places_of_the_largest_order_stay_apart(n):
    for places in (np.arange(10**6), n - 1 - np.arange(10**6)):
        drawn = orders(1, n, places)[0]
        assert drawn.min() >= 0
        assert drawn.max() < n
        assert np.unique(drawn).size == 10**6
        assert_uniform(np.bincount(drawn * 1000 // n, minlength=1000))


# --- statistics -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_permutations_are_as_likely(n):
    drawn = orders(400_000, n, range(n), seed=n)
    numbers = drawn @ n ** np.arange(n)
    possible = [np.dot(p, n ** np.arange(n)) for p in itertools.permutations(range(n))]
    assert len(possible) == math.factorial(n)
    counts = np.array([np.sum(numbers == number) for number in possible])
    assert counts.sum() == len(drawn)
    assert_uniform(counts)


@pytest.mark.parametrize("n", [2, 3, 7, 8, 9, 16, 33])
def test_every_sample_stands_at_every_place_as_often(n):
    drawn = orders(100_000, n, range(n), seed=1)
    for place in range(n):
        counts = np.bincount(drawn[:, place], minlength=n)
        assert_uniform(counts)
        deviation = np.sqrt(1e5 / n * (1 - 1 / n))
        assert np.abs(counts - 1e5 / n).max() < 5.5 * deviation


@pytest.mark.parametrize("n", [3, 7, 8, 16, 33])
def test_all_pairs_of_samples_stand_at_two_places_as_often(n):
    drawn = orders(200_000, n, (0, 1, n - 1), seed=2)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        counts = np.zeros((n, n))
        np.add.at(counts, (drawn[:, one], drawn[:, other]), 1)
        assert np.trace(counts) == 0
        assert_uniform(counts[~np.eye(n, dtype=bool)])


@pytest.mark.parametrize("n", LARGE)
def test_places_of_large_orders_are_uniform_uncorrelated_and_keep_no_distance(n):
    """Correlations of draws without replacement are -1 / (n - 1)."""
    keys = 50_000
    drawn = orders(keys, n, (0, 1, 2, 3, n // 2, n - 1), seed=3)
    bins = 100
    for column in drawn.T:
        assert_uniform(np.bincount(column * bins // n, minlength=bins))
    unit = (drawn + 0.5) / n
    correlations = np.corrcoef(unit.T)[np.triu_indices(6, 1)]
    assert np.abs(correlations + 1 / (n - 1)).max() < 5 / np.sqrt(keys)
    for one, other in itertools.combinations(range(6), 2):
        # A round keeps distances or turns them round, and mirrors what it moves.
        distance = (drawn[:, one] - drawn[:, other]) % n
        mirrored = (drawn[:, one] + drawn[:, other]) % n
        assert distance.min() >= 1
        for value in (distance, mirrored):
            assert_uniform(np.bincount(value * bins // n, minlength=bins))
    second = (drawn[:, 0] - 2 * drawn[:, 1] + drawn[:, 2]) % n
    assert_uniform(np.bincount(second * bins // n, minlength=bins))
    fixed = (drawn == np.array([0, 1, 2, 3, n // 2, n - 1])).sum(axis=0)
    assert np.abs(fixed - keys / n).max() < 5 * np.sqrt(keys / n) + 1


def test_neighbouring_key_words_give_unrelated_orders():
    """Keys that differ in one bit, as no hashed keys do: matches as by chance."""
    n, places = 64, jnp.arange(64, dtype=jnp.uint32)[None]
    size = jnp.full((1, 1), n, jnp.uint32)
    words = jax.random.bits(jax.random.key(4), (2000, 1, 2), "uint32")
    base = np.asarray(shuffled(places, size, words))
    for word, bit in itertools.product((0, 1), (0, 1, 15, 31)):
        flip = np.zeros((1, 1, 2), np.uint32)
        flip[..., word] = np.uint32(1) << np.uint32(bit)
        other = np.asarray(shuffled(places, size, words ^ flip))
        # The number of matches of two permutations has mean 1 and variance 1.
        matches = (base == other).sum(axis=1)
        assert abs(matches.mean() - 1) < 5 / np.sqrt(2000)


# --- draws ----------------------------------------------------------------------------

DRAWS = (
    bijections.without_replacement,
    bijections.with_replacement,
    bijections.epochs_with_remainder,
    bijections.epochs_without_remainder,
)
SIZES = np.int32([9, 4, 12, 7, 30, 5, 6, 100])
NUMBERS = np.arange(8, dtype=np.uint32)
KEY = jax.random.key(5)


def jitted(draw):
    return jax.jit(
        lambda step, sizes, numbers: draw(KEY, step, sizes, 4, numbers),
    )


@pytest.mark.parametrize("draw", DRAWS)
def test_those_who_know_some_workers_draw_what_all_draw(draw):
    whole = np.asarray(jitted(draw)(11, SIZES, NUMBERS))
    assert whole.shape == (8, 4)
    assert whole.dtype == np.int32
    some = np.array([6, 1, 3])
    got = jitted(draw)(jnp.int32(11), SIZES[some], NUMBERS[some])
    np.testing.assert_array_equal(got, whole[some])
    blocks = jax.shard_map(
        jitted(draw),
        mesh=jm.sharding.workers_mesh(4),
        in_specs=(P(), P("workers"), P("workers")),
        out_specs=P("workers"),
    )
    got = jax.jit(blocks)(jnp.int32(11), SIZES, NUMBERS)
    np.testing.assert_array_equal(got, whole)
    nothing = jitted(draw)(11, np.zeros(2, np.int32), NUMBERS[:2])
    assert (np.asarray(nothing) == 0).all()


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_do_not_depend_on_the_default_word_size(draw):
    expected = np.asarray(jitted(draw)(3, SIZES, NUMBERS))
    with enable_x64(True):
        got = jitted(draw)(3, np.int64(SIZES), NUMBERS)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("batch_size", [1, 3, 32, 1000, 2**20 + 7])
def test_positions_in_epochs_are_exact_however_long_the_run(batch_size):
    """In Python integers, which have no largest."""
    sizes = [1, 2, 7, 1000, 60_000, 2**31 - 1, 2**31]
    divisors = jnp.asarray(np.uint32(sizes))
    factors = jnp.asarray(np.uint32([size - 1 for size in sizes]))
    quotients, rests = bijections._divide_product(factors, batch_size, divisors)
    products = [(size - 1) * batch_size for size in sizes]
    expected = [p // n % 2**32 for p, n in zip(products, sizes, strict=True)]
    assert np.asarray(quotients).tolist() == expected
    expected = [p % n for p, n in zip(products, sizes, strict=True)]
    assert np.asarray(rests).tolist() == expected
