"""`add_worker_noise`: the noise itself, its scales, masks and rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from harness import LAWS, enable_x64, first_update

import jaxmedian as jm

KEY = 23
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("law", "coupling"),
    [*((law, "independent") for law in LAWS), ("gaussian", "systematic")],
)
def test_noise_is_the_documented_quantile_of_the_documented_words(law, coupling):
    b = 0.3
    grads = np.random.default_rng(0).normal(size=(5, 4, 10)).astype(np.float32)
    transform = jm.add_worker_noise(jm.noise.Noise(law, b, coupling), KEY)
    got = first_update(transform, grads)
    drawn = reference.worker_words(jax.random.key(KEY), coupling, shape=grads.shape)
    expected = grads + b * reference.unit_noise(law, drawn)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("statistic", ["max", "median"])
def test_a_relative_scale_follows_each_leaf(statistic):
    """Non-finite entries and absent workers are left out; leaves do not mix."""
    rng = np.random.default_rng(4)
    grads = {
        "large": 100 * rng.normal(size=(6, 30)).astype(np.float32),
        "small": rng.normal(size=(6,)).astype(np.float32),
    }
    grads["large"][2, 3:5] = INF, NAN
    grads["large"][3] = NAN  # a worker without one finite entry
    grads["large"][5] = 1e6  # absent in the second mask
    noise = jm.noise.uniform(jm.noise.relative(0.5, statistic))
    transform = jm.add_worker_noise(noise, KEY)
    two, nobody = [False, True, True] + [False] * 3, [False] * 6
    for mask in (None, [True] * 5 + [False], two, nobody):
        extra = {} if mask is None else {"worker_mask": np.array(mask)}
        got = first_update(transform, grads, **extra)
        for leaf, name in enumerate(grads):
            b = reference.relative_scale(grads[name], 0.5, statistic, mask)
            drawn = reference.worker_words(
                jax.random.key(KEY), "independent", shape=grads[name].shape, leaf=leaf
            )
            expected = grads[name] + b * reference.unit_noise("uniform", drawn)
            np.testing.assert_allclose(got[name], expected, rtol=2e-6, atol=2e-6 * b)


def test_one_hostile_worker_moves_the_largest_but_not_the_median_peak():
    grads = np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32)
    hostile = grads.copy()
    hostile[2] *= 1e4

    ratios = {}
    for statistic in ("max", "median"):
        noise = jm.noise.uniform(jm.noise.relative(1.0, statistic))
        transform = jm.add_worker_noise(noise, KEY)
        sd = [np.std(first_update(transform, g)[0] - g[0]) for g in (grads, hostile)]
        ratios[statistic] = sd[1] / sd[0]
    assert ratios["max"] > 1e3
    assert ratios["median"] < 1.5


def test_nan_and_infinities_survive_noise():
    grads = np.float32([[NAN, INF, -INF], [0, 0, 0]])
    got = first_update(jm.add_worker_noise(jm.noise.gaussian(1.0), KEY), grads)
    np.testing.assert_array_equal(got[0], grads[0])
    assert np.isfinite(got[1]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_noise_is_added_in_float32_and_rounded_once(dtype):
    b = 0.3
    grads = np.random.default_rng(0).normal(size=(2, 500)).astype(dtype)
    got = first_update(jm.add_worker_noise(jm.noise.laplace(b), KEY), grads)
    assert got.dtype == dtype
    drawn = reference.worker_words(
        jax.random.key(KEY), "independent", shape=grads.shape
    )
    exact = grads.astype(np.float64) + b * reference.unit_noise("laplace", drawn)
    np.testing.assert_array_equal(got, exact.astype(np.float32).astype(dtype))


def test_little_noise_survives_in_bfloat16():
    """b = 1e-3 on g = 1 changes 2.6 %: rounding takes 1.95 b below, 3.9 b above."""
    size = 200_000
    noise = jm.noise.gaussian(1e-3)
    grads = np.ones((1, size), jnp.bfloat16)
    survived = np.mean(first_update(jm.add_worker_noise(noise, KEY), grads) != 1)
    expected = noise.cdf(-(2.0**-9) / 1e-3) + noise.cdf(-(2.0**-8) / 1e-3)
    assert expected == pytest.approx(0.0255, abs=1e-4)
    assert abs(survived - expected) < 5 * np.sqrt(expected / size)
    float32 = np.ones((1, size), np.float32)
    assert np.mean(first_update(jm.add_worker_noise(noise, KEY), float32) != 1) > 0.999


def test_float64_gets_noise_in_float64():
    with enable_x64(True):
        grads = np.ones((2, 200))
        noise = jm.noise.gaussian(1e-10)
        got = first_update(jm.add_worker_noise(noise, jax.random.key(KEY)), grads)
        assert got.dtype == np.float64
        drawn = reference.worker_words(
            jax.random.key(KEY), "independent", shape=grads.shape
        )
        expected = 1e-10 * reference.unit_noise("gaussian", drawn)
        np.testing.assert_allclose(got - 1, expected, atol=1e-15)
