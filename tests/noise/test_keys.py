"""The documented key tree, as anybody can rebuild it with `jax.random`.

step = fold_in(rng_key, count)          leaf = fold_in(step, position of the leaf)
words of worker i = random.bits(fold_in(leaf, i), leaf.shape, "uint32")
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from harness import COUPLINGS, first_update, params_like

import jaxmedian as jm
from jaxmedian.noise import threefry
from jaxmedian.noise.leaf_noise import systematic_slots

KEY = 17
UNIT = np.float32(1 / np.sqrt(3))  # of uniform noise: then its samples are t itself


def zeros(*shapes):
    """Dead gradients of three workers, so that the updates are the noise."""
    return [np.zeros((3, *shape), np.float32) for shape in shapes]


def top_bits(noise):
    """The 23 bits of each word that reach a sample of unit uniform noise."""
    return np.rint((np.asarray(noise, np.float64) + 1) * 2**22 - 0.5).astype(np.uint32)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_fused_words_are_those_of_jax_random(size):
    keys = jax.vmap(jax.random.key)(jnp.arange(5))
    fused = jax.jit(
        lambda keys: threefry.words(
            jax.random.key_data(keys)[:, None], threefry.positions(size)[None]
        )
    )(keys)
    for key, row in zip(keys, fused, strict=True):
        expected = jax.random.bits(key, (size,), "uint32")
        np.testing.assert_array_equal(row, expected)


def test_fused_words_are_those_of_jax_random_at_positions_far_out():
    key = jax.random.key(1)
    expected = np.asarray(jax.random.bits(key, (200_000,), "uint32"))
    far = jnp.arange(199_000, 200_000, dtype=jnp.uint32)
    got = jax.jit(threefry.words)(jax.random.key_data(key), far)
    np.testing.assert_array_equal(got, expected[199_000:])


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_noise_follows_the_tree_over_leaves_workers_and_steps(coupling):
    grads = zeros((4, 5), (), (6,))
    transform = jm.add_worker_noise(jm.noise.uniform(UNIT, coupling), KEY)
    state, params = transform.init(None), params_like(grads)
    update = jax.jit(transform.update)
    for step in range(3):
        updates, state = update(grads, state, params)
        for leaf, (noise, g) in enumerate(zip(updates, grads, strict=True)):
            drawn = reference.worker_words(
                jax.random.key(KEY), coupling, shape=g.shape, step=step, leaf=leaf
            )
            np.testing.assert_array_equal(top_bits(noise), drawn >> 9)


def test_slots_are_ranks_among_the_workers_present():
    transform = jm.add_worker_noise(jm.noise.uniform(UNIT, "systematic"), KEY)
    grads = np.zeros((7, 9), np.float32)
    for mask in ([1, 1, 0, 1, 0, 0, 1], [0, 0, 1, 0, 0, 0, 0], [1] * 7):
        mask = np.array(mask, bool)
        noise = first_update(transform, grads, worker_mask=mask)
        drawn = reference.worker_words(
            jax.random.key(KEY), "systematic", shape=grads.shape, mask=mask
        )
        np.testing.assert_array_equal(top_bits(noise)[mask], drawn[mask] >> 9)


@pytest.mark.parametrize("num_slots", [1, 3, 64, 101, 65_535])
def test_slots_are_exact_in_32_bit_arithmetic(num_slots):
    ranks = np.arange(num_slots, dtype=np.uint32)
    got = jax.jit(systematic_slots)(ranks, np.uint32(num_slots))
    expected = [rank * 2**32 // num_slots for rank in range(num_slots)]
    np.testing.assert_array_equal(got, np.array(expected, np.uint32))


def test_independent_noise_does_not_depend_on_masks_or_on_the_number_of_workers():
    transform = jm.add_worker_noise(jm.noise.gaussian(1.0), KEY)
    five = first_update(transform, np.zeros((5, 30), np.float32))
    mask = np.array([True, False, True, True, False])
    masked = first_update(transform, np.zeros((5, 30), np.float32), worker_mask=mask)
    two = first_update(transform, np.zeros((2, 30), np.float32))
    np.testing.assert_array_equal(five[mask], masked[mask])
    np.testing.assert_allclose(five[:2], two, rtol=3e-7)


def test_words_depend_on_the_size_of_a_leaf_only_through_its_positions():
    transform = jm.add_worker_noise(jm.noise.uniform(1.0), KEY)
    (matrix,) = first_update(transform, zeros((2, 6)))
    (vector,) = first_update(transform, zeros((12,)))
    np.testing.assert_array_equal(matrix.reshape(3, 12), vector)


def test_the_key_in_the_state_never_changes_and_the_count_does():
    transform = jm.majority_vote(jm.noise.uniform(1.0), KEY)
    grads = np.ones((3, 2), np.float32)
    state = transform.init(None)
    assert type(state)._fields == ("count", "rng_key")
    for count in range(3):
        assert int(state.count) == count
        np.testing.assert_array_equal(
            jax.random.key_data(state.rng_key), jax.random.key_data(jax.random.key(KEY))
        )
        _, state = jax.jit(transform.update)(grads, state, jnp.zeros(2))


def test_the_count_saturates_rather_than_wraps():
    transform = jm.majority_vote(jm.noise.uniform(1.0), KEY)
    state = transform.init(None)._replace(count=jnp.int32(2**31 - 1))
    _, state = jax.jit(transform.update)(np.ones((3, 2), np.float32), state, None)
    assert int(state.count) == 2**31 - 1


# --- kinds of keys --------------------------------------------------------------------


def key_of(key):
    """The words of the key that a transform built with ``key`` keeps in its state."""
    state = jm.add_worker_noise(jm.noise.uniform(1.0), key).init(None)
    assert state.rng_key.dtype == jax.random.key(0, impl="threefry2x32").dtype
    return tuple(np.asarray(jax.random.key_data(state.rng_key)).tolist())


@pytest.mark.parametrize(
    "key",
    [
        17,
        np.int64(17),
        jax.random.key(17, impl="threefry2x32"),
        np.array([0, 17], np.uint32),
        jnp.array([0, 17], jnp.uint32),
    ],
    ids=["int", "numpy int", "typed", "legacy numpy", "legacy"],
)
def test_an_int_a_typed_and_a_legacy_key_are_one_key(key):
    assert key_of(key) == (0, 17)


def test_seeds_may_be_negative():
    assert key_of(-1) != key_of(1)


def test_rbg_keys_are_hashed_into_threefry_keys():
    first, second = (jax.random.key(seed, impl="rbg") for seed in (0, 1))
    assert key_of(first) != key_of(second)
    assert key_of(second) not in (key_of(0), key_of(1))
    assert key_of(second) == key_of(jax.random.key_data(second))
    assert key_of(second) == key_of(jax.random.key(1, impl="unsafe_rbg"))


def test_all_words_of_an_rbg_key_count():
    words = np.array([1, 2, 3, 4], np.uint32)
    changed = [words + (np.arange(4) == i).astype(np.uint32) for i in range(4)]
    assert len({key_of(w) for w in [words, *changed]}) == 5


def test_other_keys_give_other_noise():
    grads = np.zeros((2, 40), np.float32)
    first, second = (
        first_update(jm.add_worker_noise(jm.noise.uniform(1.0), key), grads)
        for key in (0, jax.random.key(0, impl="rbg"))
    )
    assert (first != second).mean() > 0.9


def test_keys_may_be_traced():
    grads = np.ones((3, 20), np.float32)

    def vote(key):
        transform = jm.majority_vote(jm.noise.gaussian(3.0), key)
        return transform.update(grads, transform.init(None), jnp.zeros(20))[0]

    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    votes = jax.jit(jax.vmap(vote))(keys)
    for key, row in zip(keys, votes, strict=True):
        np.testing.assert_array_equal(row, jax.jit(vote)(key))
    assert (votes[0] != votes[1]).any()


def test_a_traced_seed_gives_the_draws_of_the_same_int():
    noise, x = jm.noise.gaussian(1.0), jnp.ones((3, 4))
    many = jax.vmap(lambda seed: jm.perturbed_median(x, noise, seed))(jnp.arange(3))
    one = jax.jit(lambda: jm.perturbed_median(x, noise, 2))()
    np.testing.assert_allclose(many[2], one, rtol=1e-6)
