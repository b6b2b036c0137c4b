"""Measurements against NumPy, with masks and NaN."""

import itertools

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import jaxmedian as jm
from jaxmedian.noise import keys


def gradients(num_workers=4):
    rng = np.random.default_rng(0)
    return {
        "a": rng.exponential(size=(num_workers, 3, 2)).astype(np.float32),
        "b": rng.normal(size=(num_workers,)).astype(np.float32),
    }


def flat(tree, mask=None):
    rows = np.concatenate(
        [np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(tree)], axis=1
    )
    return rows.astype(np.float64) if mask is None else rows[mask].astype(np.float64)


MASKS = [
    None,
    np.array([True, False, True, True]),
    np.array([False, True, False, False]),
]


@pytest.mark.parametrize("mask", MASKS)
def test_the_norm_and_the_gap_are_those_of_numpy(mask):
    grads = gradients()
    rows = flat(grads, mask)
    mean, median = rows.mean(axis=0), np.median(rows, axis=0)
    norm = jm.diagnostics.gradient_norm(grads, worker_mask=mask)
    gap = jm.diagnostics.mean_median_gap(grads, worker_mask=mask)
    np.testing.assert_allclose(norm, np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(gap, np.linalg.norm(median - mean), rtol=1e-5, atol=1e-6)


def test_the_gap_is_zero_for_identical_workers_and_for_an_even_spread():
    same = jnp.ones((5, 3)) * jnp.array([[1.0, -2.0, 0.0]])
    assert float(jm.diagnostics.mean_median_gap(same)) == 0
    even = jnp.array([[-1.0], [0.0], [1.0]])
    assert float(jm.diagnostics.mean_median_gap(even)) == 0


def test_the_counterexample_of_the_paper_has_a_gap_of_seven_thirds():
    grads = jnp.array([1.0, 2.0, 10.0])
    gap = float(jm.diagnostics.mean_median_gap(grads))
    assert gap == pytest.approx(7 / 3, rel=1e-6)


@pytest.mark.parametrize("mask", MASKS)
def test_of_step_counts_disagreement_and_ties(mask):
    grads = gradients()
    rng = np.random.default_rng(1)
    updates = {
        "a": rng.integers(-1, 2, size=(3, 2)).astype(np.float32),
        "b": np.float32(-1.0),
    }
    got = jax.jit(jm.diagnostics.of_step)(grads, updates, worker_mask=mask)
    mean = flat(grads, mask).mean(axis=0)
    moves = flat(jax.tree.map(lambda u: u[None], updates))[0]
    uphill = sum(g * u > 0 for g, u in zip(mean, moves, strict=True))
    ties = sum(u == 0 for u in moves)
    assert set(got) == {"gradient_norm", "mean_median_gap", "disagreement", "ties"}
    assert float(got["disagreement"]) == pytest.approx(uphill / 7)
    assert float(got["ties"]) == pytest.approx(ties / 7)
    assert 0 < ties < 7
    for name in ("gradient_norm", "mean_median_gap"):
        alone = getattr(jm.diagnostics, name)(grads, worker_mask=mask)
        np.testing.assert_allclose(got[name], alone, rtol=1e-6)


def test_a_vote_that_follows_the_mean_never_disagrees():
    grads = gradients()
    mean = jax.tree.map(lambda g: np.mean(g, axis=0), grads)
    downhill = jax.tree.map(lambda g: -np.sign(g), mean)
    uphill = jax.tree.map(np.sign, mean)
    measured = [jm.diagnostics.of_step(grads, u) for u in (downhill, uphill)]
    assert [float(m["disagreement"]) for m in measured] == [0, 1]


def test_half_precision_is_measured_in_float32():
    grads = jnp.full((3, 4096), 0.5, jnp.bfloat16)
    norm = jm.diagnostics.gradient_norm(grads)
    assert norm.dtype == jnp.float32
    assert float(norm) == pytest.approx(32.0)
    skewed = jnp.array([[1.0], [1.0], [1.01]], jnp.bfloat16)
    expected = np.mean(np.float64(skewed)) - reference.median(np.float64(skewed))[0]
    gap = float(jm.diagnostics.mean_median_gap(skewed))
    assert gap == pytest.approx(expected, rel=1e-4)


def test_an_absent_worker_with_nan_is_not_measured():
    grads = np.float32([[1.0, 2.0], [np.nan, np.inf], [3.0, 2.0]])
    mask = np.array([True, False, True])
    got = jm.diagnostics.of_step(grads, np.float32([0, 0]), worker_mask=mask)
    assert float(got["gradient_norm"]) == pytest.approx(np.sqrt(8))
    assert float(got["mean_median_gap"]) == 0


def test_bad_input_is_refused_by_name():
    for function in (jm.diagnostics.gradient_norm, jm.diagnostics.mean_median_gap):
        with pytest.raises(TypeError, match=f"`{function.__name__}`.*int32"):
            function(jnp.ones((3, 2), jnp.int32))
        with pytest.raises(ValueError, match=f"`{function.__name__}`.*shape"):
            function(jnp.ones((3, 2)), worker_mask=np.ones(2, bool))
    with pytest.raises(TypeError, match="`grads` of `of_step` must be floating point"):
        jm.diagnostics.of_step(jnp.ones((3, 2), int), jnp.ones(2))


def test_measures_of_streamed_gradients_say_so():
    """`jaxmedian.run` hands None to functions in `metrics` where it streams."""
    diagnostics = jm.diagnostics
    for measure in (
        diagnostics.gradient_norm,
        diagnostics.mean_median_gap,
        diagnostics.squared_norms,
        lambda grads: diagnostics.suspicion(grads, jnp.ones(2)),
        lambda grads: diagnostics.sample_coordinates(grads, 1, 0),
    ):
        with pytest.raises(ValueError, match="these were streamed"):
            measure(None)


@pytest.mark.parametrize("name", ["of_step", "suspicion"])
def test_updates_must_fit_the_gradients(name):
    """Neither stacked, nor broadcast, nor of another tree."""
    measure, grads = getattr(jm.diagnostics, name), jnp.ones((3, 2))
    for updates in (jnp.ones((3, 2)), jnp.ones(1), jnp.ones((1, 2))):
        with pytest.raises(ValueError, match=f"`{name}` expects updates of the param"):
            measure(grads, updates)
    with pytest.raises(ValueError, match=f"`{name}` expects .* same tree structure"):
        measure(grads, {"w": jnp.ones(2)})
    measure(grads, jnp.ones(2))


# --- a sample of coordinates ----------------------------------------------------------


def test_every_set_of_coordinates_is_equally_likely():
    """Chi-square over the 35 sets of 3 of 7 coordinates, in leaves of 4, 1 and 2."""
    numbers = np.arange(7, dtype=np.float32)
    leaves = numbers[None, :4].reshape(1, 2, 2), numbers[4:5], numbers[None, 5:]
    grads = dict(zip("abc", leaves, strict=True))
    draws = 35_000
    sample = jax.jit(
        jax.vmap(lambda key: jm.diagnostics.sample_coordinates(grads, 3, key))
    )
    drawn = np.asarray(sample(jax.random.split(jax.random.key(0), draws)))[:, 0]
    sets = list(itertools.combinations(range(7), 3))
    counts = [np.sum((drawn == np.float32(one)).all(axis=1)) for one in sets]
    assert sum(counts) == draws  # sorted, all different, nothing else
    chi_square = np.sum((np.array(counts) - 1000.0) ** 2 / 1000.0)
    freedom = len(sets) - 1
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("total", "count"), [(7, 7), (50, 49), (50, 20), (3000, 300)])
def test_a_sample_is_that_of_floyds_loop(total, count):
    """Turn after turn, with a set of what is taken."""
    numbers = np.arange(total, dtype=np.float32)[None]
    for seed in range(5):
        key = jax.random.fold_in(jax.random.key(seed), keys.COORDINATES)
        taken = set()
        for turn in range(count):
            last = total - count + turn
            own = jax.random.fold_in(key, turn)
            drawn = int(jax.random.randint(own, (), 0, last + 1, jnp.int32))
            taken.add(last if drawn in taken else drawn)
        sample = jm.diagnostics.sample_coordinates(jnp.asarray(numbers), count, seed)
        assert sample[0].tolist() == sorted(taken)


@pytest.mark.parametrize("mask", MASKS)
def test_a_sample_holds_the_workers_own_values(mask):
    grads = gradients()
    rows = flat(grads)
    everything = jm.diagnostics.sample_coordinates(grads, 7, 3, worker_mask=mask)
    present = np.ones(4, bool) if mask is None else mask
    np.testing.assert_array_equal(everything[present], rows[present])
    assert np.isnan(everything[~present]).all()
    some = np.asarray(jm.diagnostics.sample_coordinates(grads, 4, 3))
    places = [
        np.flatnonzero((rows == column[:, None]).all(axis=0)) for column in some.T
    ]
    assert [len(place) for place in places] == [1] * 4
    assert (np.diff(np.concatenate(places)) > 0).all()


def test_a_sample_goes_straight_into_the_choice_of_noise():
    values = np.float32([-0.1] * 9 + [1.0] * 2)[:, None]
    sample = jm.diagnostics.sample_coordinates({"w": values}, 1, 0)
    expected = jm.theory.best_scale(values, "gaussian", "vote")
    assert jm.theory.best_scale(sample, "gaussian", "vote") == expected
    mask = np.arange(11) < 10
    sample = jm.diagnostics.sample_coordinates(values, 1, 0, worker_mask=mask)
    with pytest.raises(ValueError, match="1 NaN or infinite entries"):
        jm.theory.best_scale(sample)
    expected = jm.theory.best_scale(values[:10], "gaussian", "vote")
    assert jm.theory.best_scale(sample[mask], "gaussian", "vote") == expected


def test_a_sample_is_float32_unless_a_leaf_is_longer():
    half = {"a": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.ones((3, 0, 2), jnp.float16)}
    assert jm.diagnostics.sample_coordinates(half, 2, 0).dtype == jnp.float32
    with harness.enable_x64(True):
        long = half | {"c": jnp.full((3, 1), 0.1, jnp.float64)}
        sample = jm.diagnostics.sample_coordinates(long, 5, 0)
        assert sample.dtype == jnp.float64
        np.testing.assert_array_equal(sample[:, 4], np.full(3, 0.1))


def test_a_sample_on_a_mesh_is_that_of_one_device():
    mesh = jax.make_mesh((4,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    over_workers = jax.sharding.PartitionSpec("workers")
    grads = gradients(8)

    def sample(block):
        return jm.diagnostics.sample_coordinates(block, 3, 5)

    sharded = jax.shard_map(
        sample, mesh=mesh, in_specs=over_workers, out_specs=over_workers
    )
    np.testing.assert_array_equal(jax.jit(sharded)(grads), sample(grads))


def test_what_a_sample_refuses():
    grads = gradients()
    sample = jm.diagnostics.sample_coordinates
    with pytest.raises(ValueError, match=r"`num_coordinates` must be at most.*8 of 7"):
        sample(grads, 8, 0)
    with pytest.raises(ValueError, match="`num_coordinates` must be at least 1"):
        sample(grads, 0, 0)
    with pytest.raises(TypeError, match="`num_coordinates` must be an int"):
        sample(grads, 2.0, 0)
    with pytest.raises(TypeError, match="`key`"):
        sample(grads, 2, None)
    with pytest.raises(ValueError, match="`worker_chunk`"):
        sample(None, 2, 0)
    with pytest.raises(ValueError, match="leading worker axis"):
        sample({"a": jnp.float32(1.0)}, 1, 0)
    huge = jax.ShapeDtypeStruct((1, 2**31), jnp.float32)
    with pytest.raises(ValueError, match="2\\^31 - 1"):
        jax.eval_shape(lambda g: sample(g, 2, 0), huge)
