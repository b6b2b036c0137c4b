"""Trees of many leaves, which share kernels: each leaf draws its own words."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from harness import COUPLINGS

import jaxmedian as jm
from jaxmedian.noise import lanes, threefry

KEY = jax.random.key(23)
NUM_WORKERS = 4
# Small leaves are joined in lanes of 128; the large ones go through one loop of tiles.
SMALL = [(1,), (128,), (7, 19), (), (0,), (300,), (129,)]
LARGE = [(65_536,), (65_664,), (70_001,), (131, 701), (65_537,)]
MASK = np.array([True, False, True, True])


def random_grads(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(NUM_WORKERS, *shape)).astype(np.float32) * 10.0**-i
        for i, shape in enumerate(shapes)
    ]


def update_of(transform, grads, **extra_args):
    params = [jnp.zeros(leaf.shape[1:], leaf.dtype) for leaf in grads]
    grads = [jnp.asarray(leaf) for leaf in grads]
    update = jax.jit(transform.update)
    return update(grads, transform.init(params), params, **extra_args)[0]


def noisy_values(leaf, grads, law, coupling, scale, mask=None):
    """g + b xi in float64, from `jax.random` alone."""
    drawn = reference.worker_words(
        KEY, coupling, shape=grads.shape, leaf=leaf, mask=mask
    )
    return grads.astype(np.float64) + scale * reference.unit_noise(law, drawn)


def assert_votes(got, values, mask=None, **bits):
    """Compares votes where no value is within rounding of 0; returns how many."""
    expected = reference.vote(values, mask=mask, **bits)
    clear = (np.abs(values) > 1e-6 * np.max(np.abs(values), initial=1e-30)).all(axis=0)
    np.testing.assert_array_equal(np.asarray(got)[clear], expected[clear])
    return clear.sum()


@pytest.mark.parametrize("shapes", [SMALL, LARGE, LARGE[:2] + SMALL + LARGE[2:]])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("mask", [None, MASK])
def test_every_leaf_votes_with_its_own_words(shapes, coupling, mask):
    grads = random_grads(shapes)
    noise = jm.noise.gaussian(0.3, coupling)
    masks = {} if mask is None else {"worker_mask": jnp.asarray(mask)}
    votes = update_of(jm.majority_vote(noise, KEY), grads, **masks)
    for leaf, (got, rows) in enumerate(zip(votes, grads, strict=True)):
        values = noisy_values(leaf, rows, "gaussian", coupling, 0.3, mask)
        assert assert_votes(got, values, mask) >= 0.99 * got.size


@pytest.mark.parametrize("shapes", [SMALL, LARGE])
def test_scales_that_follow_each_leaf_stay_with_it(shapes):
    grads = random_grads(shapes)
    noise = jm.noise.laplace(jm.noise.relative(0.5))
    votes = update_of(jm.majority_vote(noise, KEY), grads)
    for leaf, (got, rows) in enumerate(zip(votes, grads, strict=True)):
        scale = reference.relative_scale(rows, 0.5, "max")
        values = noisy_values(leaf, rows, "laplace", "independent", scale)
        assert assert_votes(got, values) >= 0.99 * got.size


@pytest.mark.parametrize("noise", [None, jm.noise.uniform(0.1)])
@pytest.mark.parametrize("shapes", [SMALL, LARGE])
def test_bits_of_ties_are_those_of_each_leaf(shapes, noise):
    grads = random_grads(shapes)
    for rows in grads:  # half of the workers on each side, and a worker without a sign
        rows[:2], rows[2:] = np.abs(rows[:2]), -np.abs(rows[2:])
        rows.reshape(NUM_WORKERS, -1)[:, ::3] *= noise is not None
    votes = update_of(jm.majority_vote(noise, KEY, ties="random"), grads)
    for leaf, (got, rows) in enumerate(zip(votes, grads, strict=True)):
        bits = reference.vote_bits(KEY, shape=rows.shape, leaf=leaf)
        values = rows
        if noise is not None:
            values = noisy_values(leaf, rows, "uniform", "independent", 0.1)
        expected = reference.vote(values, ties="random", **bits)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("num_workers", [4, 40])  # in one expression, and tile by tile
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_every_leaf_takes_the_median_with_its_own_words(num_workers, coupling):
    rng = np.random.default_rng(1)
    shapes = [*SMALL, (40_000,)]
    grads = [rng.normal(size=(num_workers, *s)).astype(np.float32) for s in shapes]
    noise = jm.noise.logistic(0.3, coupling)
    medians = update_of(jm.coordinate_median(noise, KEY), grads)
    for leaf, (got, rows) in enumerate(zip(medians, grads, strict=True)):
        values = noisy_values(leaf, rows, "logistic", coupling, 0.3)
        np.testing.assert_allclose(got, np.median(values, axis=0), atol=2e-6)


def test_a_scale_for_every_coordinate_keeps_its_place():
    shapes = [*SMALL[:3], (300,)]
    grads = random_grads(shapes)
    noise = jm.noise.uniform(jm.noise.per_coordinate(0.5, "range"))
    votes = update_of(jm.majority_vote(noise, KEY), grads)
    for leaf, (got, rows) in enumerate(zip(votes, grads, strict=True)):
        scale = 0.5 * np.ptp(rows, axis=0)
        values = noisy_values(leaf, rows, "uniform", "independent", scale)
        assert assert_votes(got, values) >= 0.99 * got.size


def test_blocks_of_workers_join_leaves_as_all_workers_do():
    shapes = [*SMALL, LARGE[0]]
    params = [jnp.zeros(shape) for shape in shapes]
    batch = [jnp.asarray(rows) for rows in random_grads(shapes)]

    def loss(params, rows):
        return sum(jnp.sum(p * row) for p, row in zip(params, rows, strict=True))

    optimizer = jm.noisy_sign_sgd(0.1, jm.noise.gaussian(0.3), KEY)
    after = [
        jm.make_step(loss, optimizer, worker_chunk=chunk)(
            params, optimizer.init(params), batch
        )[0]
        for chunk in (None, 1, 3)
    ]
    for other in after[1:]:
        for ours, theirs in zip(after[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


# --- what is compiled -----------------------------------------------------------------


def lowered_vote(num_leaves, sizes):
    shapes = [(sizes + 128 * i,) for i in range(num_leaves)]
    grads = [jax.ShapeDtypeStruct((11, *shape), jnp.float32) for shape in shapes]
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    vote = jm.majority_vote(jm.noise.gaussian(0.1), KEY)
    state = jax.eval_shape(vote.init, params)
    return jax.jit(vote.update).lower(grads, state, params)


@pytest.mark.parametrize("size", [200, 65_536])
def test_one_kernel_draws_for_all_leaves(size):
    """What is drawn and counted is compiled once, not once a leaf."""
    few, many = (lowered_vote(n, size) for n in (6, 12))
    lines = [program.as_text().count("\n") for program in (few, many)]
    assert lines[1] - lines[0] <= 6 * 30
    rotations = [
        len(re.findall(r" shift-left\(", program.compile().as_text()))
        for program in (few, many)
    ]
    assert rotations[0] == rotations[1] > 11 * 20


def test_lanes_say_where_every_coordinate_stands():
    sizes = [1, 128, 0, 300]
    starts = jnp.asarray(lanes.starts_of_lanes(sizes))
    positions = np.asarray(threefry.positions(5 * 128, starts))
    leaves = np.repeat(lanes.leaf_of_lane(sizes), 128)
    for leaf, size in enumerate(sizes):
        own = positions[leaves == leaf]
        np.testing.assert_array_equal(own, np.arange(len(own)))
        assert size <= len(own) < size + 128
