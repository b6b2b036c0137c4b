"""`median`, `vote` and `perturbed_median` of plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from harness import awkward, first_update

import jaxmedian as jm


def values_of(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3, np.int64(1)])
def test_the_median_is_numpys_along_any_axis(axis):
    x = values_of(5, 3, 4)
    got = jax.jit(lambda x: jm.median(x, axis))(x)
    np.testing.assert_allclose(got, np.median(x, axis=axis), rtol=3e-7)
    assert got.shape == np.median(x, axis=axis).shape


def test_the_median_of_numbers_is_a_scalar():
    assert jm.median(jnp.array([3.0, 1.0, 2.0, 10.0])).item() == 2.5
    assert jm.median([3.0, 1.0, 2.0, 10.0], even="lower").item() == 2.0
    assert jm.median(np.float32([3, 1, 2, 10]), even="upper").item() == 3.0


def test_the_median_counts_nan_as_infinity_and_follows_the_mask():
    x = awkward(6, 60, nan=True)
    mask = np.array([True, True, False, True, True, False])
    for even in ("midpoint", "lower", "upper"):
        got = jm.median(x, even=even, mask=mask)
        expected = reference.median(x, even=even, mask=mask).astype(np.float32)
        np.testing.assert_array_equal(got, expected)
        turned = jm.median(jnp.asarray(x.T), axis=1, even=even, mask=mask)
        np.testing.assert_array_equal(turned, expected)
    nobody = np.zeros(6, bool)
    np.testing.assert_array_equal(jm.median(x, mask=nobody), np.zeros(60))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_vote_is_the_slow_loop_along_any_axis(axis):
    x = np.moveaxis(awkward(5, 30, nan=True).reshape(5, 6, 5), 0, axis)
    rows = np.moveaxis(x, axis, 0)
    np.testing.assert_array_equal(jm.vote(x, axis), reference.vote(rows))
    positive = jm.vote(x, axis, ties="positive")
    np.testing.assert_array_equal(positive, reference.vote(rows, ties="positive"))
    mask = np.arange(5) != 2
    got = jm.vote(x, axis, mask=mask)
    np.testing.assert_array_equal(got, reference.vote(rows, mask=mask))


def test_random_ties_take_the_bits_of_the_documented_key_tree():
    x = awkward(4, 60)
    key = jax.random.key(2)
    expected = reference.vote(
        x, ties="random", **reference.vote_bits(key, shape=x.shape)
    )
    np.testing.assert_array_equal(jm.vote(x, ties="random", key=key), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_dtype_is_kept(dtype):
    x = jnp.asarray(values_of(4, 3), dtype)
    assert jm.median(x).dtype == dtype
    assert jm.vote(x).dtype == dtype
    assert jm.perturbed_median(x, jm.noise.uniform(1.0), 0).dtype == dtype


def test_a_perturbed_median_is_the_first_update_of_the_aggregator():
    x = values_of(5, 40)
    noise = jm.noise.gaussian(0.5, "systematic")
    got = jax.jit(lambda x: jm.perturbed_median(x, noise, 3, even="lower"))(x)
    expected = first_update(jm.coordinate_median(noise, 3, even="lower"), x)
    np.testing.assert_array_equal(got, expected)
    turned = jax.jit(lambda x: jm.perturbed_median(x, noise, 3, axis=-1))(x.T)
    np.testing.assert_array_equal(turned, expected)


def test_a_perturbed_median_estimates_the_mean():
    """u = (1, 2, 10): E = 4.2884566897 at b = 20, where the plain median is 2."""
    size = 200_000
    x = jnp.array([1.0, 2.0, 10.0])[:, None] * jnp.ones((1, size))
    noise = jm.noise.gaussian(20.0)
    estimate = jax.jit(lambda x: jm.perturbed_median(x, noise, 0))(x)
    assert abs(jnp.mean(estimate) - 4.2884566897) < 5 * np.sqrt(182.2733 / size)
    again = jax.jit(lambda x: jm.perturbed_median(x, noise, 1))(x)
    assert (estimate != again).mean() > 0.99


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_out_of_range_is_refused(axis):
    x = jnp.ones((3, 2))
    for call in (jm.median, jm.vote, perturbed):
        with pytest.raises(ValueError, match=rf"`axis` {axis} .* shape \(3, 2\)"):
            call(x, axis=axis)


@pytest.mark.parametrize("axis", [True, np.True_, 1.0, "0", (0, None), np.arange(2)])
def test_an_axis_that_is_no_int_is_refused(axis):
    """A boolean too, which Python would take for 0 or 1."""
    for call in (jm.median, jm.vote, perturbed):
        with pytest.raises(TypeError, match="expects `axis` to be an int, several, or"):
            call(jnp.ones((3, 2)), axis=axis)


@pytest.mark.parametrize("axis", [None, (0, 2), (-1, 0), [1], (2, 1)])
def test_several_axes_are_removed_together(axis):
    x = np.random.default_rng(3).normal(size=(3, 4, 5)).astype(np.float32)
    axes = tuple(axis) if isinstance(axis, list) else axis
    np.testing.assert_array_equal(jm.median(x, axis), np.median(x, axes))
    votes = np.sign(np.sign(x).sum(axes))
    np.testing.assert_array_equal(jm.vote(x, axis), votes)


def test_a_mask_of_several_axes_has_their_shape():
    x = np.random.default_rng(3).normal(size=(3, 4, 5)).astype(np.float32)
    mask = np.arange(12).reshape(3, 4) % 5 != 1
    got = jm.median(x, (0, 1), mask=mask)
    np.testing.assert_array_equal(got, np.median(x[mask], axis=0))
    with pytest.raises(ValueError, match=r"`mask` of shape \(3, 4\).*got \(12,\)"):
        jm.median(x, (0, 1), mask=mask.ravel())


@pytest.mark.parametrize("axis", [(0, 0), (0, -3), (1, 3), ()])
def test_bad_sets_of_axes_are_refused(axis):
    with pytest.raises(ValueError, match=r"`axis` .* shape \(3, 2, 1\)"):
        jm.median(jnp.ones((3, 2, 1)), axis)


def test_integers_are_told_how_to_become_floating_point():
    with pytest.raises(TypeError, match=r"int32.*x\.astype\(jnp\.float32\)"):
        jm.median(jnp.arange(3))


@pytest.mark.parametrize("shape", [(3, 0), (130, 0)])
def test_arrays_without_a_coordinate_have_a_result_without_one(shape):
    x = jnp.ones(shape)
    assert jm.median(x).shape == jm.vote(x).shape == (0,)
    assert jm.vote(x, ties="random", key=0).shape == (0,)
    assert jm.perturbed_median(x, jm.noise.gaussian(0.1), 0).shape == (0,)


def perturbed(x, **options):
    return jm.perturbed_median(x, jm.noise.gaussian(1.0), 0, **options)


@pytest.mark.parametrize(
    ("call", "name"),
    [(jm.median, "median"), (jm.vote, "vote"), (perturbed, "perturbed_median")],
)
def test_errors_name_the_function_that_was_called(call, name):
    with pytest.raises(TypeError, match=f"^`{name}` .*int32"):
        call(jnp.ones((3, 2), jnp.int32))
    with pytest.raises(ValueError, match=f"^`{name}` .*M = 0|^`{name}` .*shape"):
        call(jnp.ones((0, 2)))
    with pytest.raises(ValueError, match=f"^`{name}` .*axis"):
        call(jnp.float32(1.0))


def test_masks_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        jm.median(jnp.ones((3, 2)), mask=np.ones(2, bool))
    with pytest.raises(TypeError, match="boolean"):
        jm.vote(jnp.ones((3, 2)), mask=np.ones(3))


def test_options_are_checked():
    with pytest.raises(ValueError, match="`even` must be one of"):
        jm.median(jnp.ones(3), even="middle")
    with pytest.raises(ValueError, match="`ties` must be one of"):
        jm.vote(jnp.ones(3), ties="coin")
    with pytest.raises(ValueError, match="needs a `key`"):
        jm.vote(jnp.ones(3), ties="random")
    with pytest.raises(ValueError, match=r'`vote` .*nothing.*give `ties="random"`'):
        jm.vote(jnp.ones(3), key=0)
    for noise in (None, 0.1):
        with pytest.raises(TypeError, match="`perturbed_median` expects a `Noise`"):
            jm.perturbed_median(jnp.ones(3), noise, 0)
    with pytest.raises(ValueError, match="`perturbed_median` needs a `key`"):
        jm.perturbed_median(jnp.ones(3), jm.noise.gaussian(0.1), None)
    with pytest.raises(TypeError, match="`median` expects a boolean `mask`; got float"):
        jm.median(jnp.ones(3), mask=jnp.ones(3))
    with pytest.raises(ValueError, match=r"`median` expects a `mask` of shape \(3,\)"):
        jm.median(jnp.ones(3), mask=jnp.ones(2, bool))


# --- outside jit ----------------------------------------------------------------------


def test_equal_calls_outside_jit_are_compiled_once(caplog):
    """Other values, keys and scales are arguments of the same program."""
    x = np.random.default_rng(0).normal(size=(5, 37)).astype(np.float32)
    calls = [
        lambda i: jm.vote(x + i, key=i, ties="random"),
        lambda i: jm.median(x * i),
        lambda i: jm.perturbed_median(x, jm.noise.gaussian(float(i)), i),
        lambda i: jm.perturbed_median(x, jm.noise.unbiased(), i),
    ]
    for call in calls:
        with jax.log_compiles():
            call(1)
            assert [r for r in caplog.records if "Compiling" in r.getMessage()]
            caplog.clear()
            call(2)
            call(3)
            assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_outside_jit_the_numbers_are_those_inside():
    x = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    for noise in (
        jm.noise.gaussian(0.5),
        jm.noise.uniform(jnp.float32(0.5), "systematic"),
        jm.noise.logistic(optax.constant_schedule(0.5)),
        jm.noise.laplace(jm.noise.relative(jnp.float32(0.5))),
        jm.noise.gaussian(jm.noise.per_coordinate(1.0, "sd")),
    ):
        eager = jm.perturbed_median(x, noise, 3)
        jitted = jax.jit(lambda x, noise=noise: jm.perturbed_median(x, noise, 3))(x)
        np.testing.assert_allclose(eager, jitted, rtol=2e-7, atol=1e-7)
