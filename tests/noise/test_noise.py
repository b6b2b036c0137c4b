"""The four laws against SciPy's, their fused forms, and the descriptions of noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import scipy.integrate
from harness import LAWS, first_update

import jaxmedian as jm

POINTS = np.linspace(-9, 9, 721)
PROBABILITIES = np.concatenate(
    [np.geomspace(1e-12, 0.5, 60), 1 - np.geomspace(1e-12, 0.5, 60)[::-1]]
)


def noise_of(law, scale=1.0, coupling="independent"):
    return getattr(jm.noise, law)(scale, coupling)


@pytest.mark.parametrize("law", LAWS)
def test_cdf_pdf_and_quantile_are_scipys_in_float64(law):
    noise, exact = noise_of(law), reference.UNIT_LAWS[law]
    assert noise.cdf(POINTS).dtype == np.float64
    np.testing.assert_allclose(noise.cdf(POINTS), exact.cdf(POINTS), rtol=1e-12)
    np.testing.assert_allclose(noise.pdf(POINTS), exact.pdf(POINTS), rtol=1e-12)
    np.testing.assert_allclose(
        noise.quantile(PROBABILITIES), exact.ppf(PROBABILITIES), rtol=1e-10
    )


@pytest.mark.parametrize("law", LAWS)
def test_the_cdf_of_minus_x_is_the_survival_function_without_cancellation(law):
    noise, exact = noise_of(law), reference.UNIT_LAWS[law]
    np.testing.assert_allclose(noise.cdf(-POINTS), exact.sf(POINTS), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("law", LAWS)
def test_functions_of_a_law_take_16_bits(law, dtype):
    noise, exact = noise_of(law), reference.UNIT_LAWS[law]
    points = jnp.asarray([-1.5, -0.5, 0.25, 1.0], dtype)
    chances = jnp.asarray([0.125, 0.5, 0.75], dtype)
    wanted = {"cdf": exact.cdf, "pdf": exact.pdf, "quantile": exact.ppf}
    for name, function in wanted.items():
        x = chances if name == "quantile" else points
        found = getattr(noise, name)(x)
        assert found.dtype == dtype
        error = float(jnp.finfo(dtype).eps)
        expected = function(np.asarray(x, np.float64))
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, error, 1e-7)


@pytest.mark.parametrize("law", LAWS)
def test_functions_of_a_law_keep_the_type_of_jax_arrays(law):
    noise, exact = noise_of(law), reference.UNIT_LAWS[law]
    x = jnp.linspace(jnp.float32(-3), jnp.float32(3), 61)
    p = jnp.linspace(jnp.float32(0.01), jnp.float32(0.99), 61)
    for got, expected in (
        (noise.cdf(x), exact.cdf(np.float64(x))),
        (noise.pdf(x), exact.pdf(np.float64(x))),
        (noise.quantile(p), exact.ppf(np.float64(p))),
    ):
        assert isinstance(got, jax.Array)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("law", LAWS)
def test_functions_of_a_law_take_numbers_and_any_shape(law):
    noise = noise_of(law)
    assert float(noise.cdf(0.0)) == 0.5
    assert float(noise.quantile(0.5)) == 0.0
    assert noise.pdf(np.zeros((2, 3))).shape == (2, 3)
    infinite = math.inf if law != "uniform" else math.sqrt(3)
    np.testing.assert_allclose(noise.quantile([0.0, 1.0]), [-infinite, infinite])
    assert np.isnan(noise.quantile([-0.5, 1.5])).all()
    assert np.isnan(noise.quantile(jnp.float32([-0.5, 1.5]))).all()


@pytest.mark.parametrize("law", LAWS)
def test_laws_have_mean_0_variance_1_and_one_mode(law):
    noise = noise_of(law)
    bound = math.sqrt(3) if law == "uniform" else 60.0

    def moment(power):
        def integrand(x):
            return x**power * float(noise.pdf(x))

        halves = ((-bound, 0), (0, bound))
        return sum(
            scipy.integrate.quad(integrand, *half, points=[half[0] / 8, half[1] / 8])[0]
            for half in halves
        )

    for power, expected in ((0, 1), (1, 0), (2, 1), (3, 0)):
        assert moment(power) == pytest.approx(expected, abs=1e-7)
    rising = noise.pdf(np.linspace(-5, 0, 200))
    assert (np.diff(rising) >= 0).all()
    np.testing.assert_array_equal(noise.pdf(-POINTS), noise.pdf(POINTS))


# --- the forms in the kernels ---------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_fused_samples_are_exact_quantiles_to_a_few_units_in_the_last_place(law):
    """Over every word at the edges and in the middle, and many between."""
    from jaxmedian.noise import laws, threefry

    step = np.arange(4000, dtype=np.uint32) << 9
    words = np.concatenate(
        [
            step,
            np.uint32(2**31) + step,
            np.uint32(2**31) - 1 - step,
            np.uint32(2**32 - 1) - step,
            np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32),
        ]
    )
    sample = jax.jit(
        lambda w: laws.LAWS[law].sample(threefry.centred_uniform(w, jnp.float32))
    )
    got = np.asarray(sample(words), np.float64)
    exact = reference.unit_noise(law, words)
    assert np.isfinite(got).all()
    scale = np.spacing(np.maximum(np.abs(exact), 1).astype(np.float32))
    assert np.abs((got - exact) / scale).max() < 8
    np.testing.assert_array_equal(np.sign(got), np.sign(exact))


def test_centred_uniforms_are_exact_odd_multiples_and_symmetric():
    from jaxmedian.noise import threefry

    words = np.array([0, 511, 512, 12345678, 2**31 - 1], np.uint32)
    words = np.concatenate([words, ~words])
    t = np.asarray(threefry.centred_uniform(words, jnp.float32), np.float64)
    np.testing.assert_array_equal(t, reference.centred_uniform(words))
    np.testing.assert_array_equal(t[5:], -t[:5])
    assert np.abs(t).max() < 1


@pytest.mark.parametrize("law", LAWS)
def test_samples_pass_kolmogorov_smirnov_against_their_own_cdf(law):
    """A million draws; the bound is the 5 sigma point of Kolmogorov's law, 2.74."""
    noise, size = noise_of(law, 0.5), 1_000_000
    transform = jm.add_worker_noise(noise, 3)
    (drawn,) = first_update(transform, np.zeros((1, size), np.float32))
    probabilities = noise.cdf(np.sort(drawn.astype(np.float64)) / 0.5)
    grid = np.arange(size + 1) / size
    distance = np.maximum(grid[1:] - probabilities, probabilities - grid[:-1]).max()
    assert distance * math.sqrt(size) < 2.74


# --- descriptions ---------------------------------------------------------------------


def test_a_noise_says_what_it_is():
    noise = jm.noise.laplace(0.25, "systematic")
    assert (noise.law, noise.scale, noise.coupling) == ("laplace", 0.25, "systematic")
    assert noise == jm.noise.laplace(0.25, coupling="systematic")
    assert not callable(noise)
    assert jm.noise.gaussian(0.1).coupling == "independent"
    assert jm.noise.relative(0.1).statistic == "max"
    assert jm.noise.gaussian(jm.noise.relative(0.1)).scale == jm.noise.relative(0.1)
    with pytest.raises(AttributeError):
        noise.scale = 1.0


NUMBERS = [0, 1, 0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), np.int64(2)]


@pytest.mark.parametrize("scale", [*NUMBERS, jnp.float32(0.5), jnp.bfloat16(0.5)])
def test_any_finite_number_is_a_scale(scale):
    assert float(jm.noise.gaussian(scale).scale) == float(scale)
    assert float(jm.noise.relative(scale).factor) == float(scale)


@pytest.mark.parametrize("scale", [2, np.array(0.5), jnp.bfloat16(0.5)])
def test_the_scale_is_the_standard_deviation_of_one_worker_s_noise(scale):
    grads = np.zeros((2, 20_000), np.float32)
    got = first_update(jm.add_worker_noise(jm.noise.uniform(scale), 0), grads)
    # The variance of a uniform law's square is 4/5.
    bound = 5 * math.sqrt(0.8 / got.size)
    assert np.mean((got / float(scale)) ** 2) == pytest.approx(1, abs=bound)


def test_a_schedule_is_read_at_the_step():
    schedule = optax.piecewise_constant_schedule(1.0, {1: 0.5, 2: 0.0})
    transform = jm.add_worker_noise(jm.noise.uniform(schedule), 0)
    unit = jm.add_worker_noise(jm.noise.uniform(1.0), 0)
    grads = np.zeros((2, 50), np.float32)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules promote
        state, unit_state = transform.init(None), unit.init(None)
        for expected in (1.0, 0.5, 0.0):
            got, state = jax.jit(transform.update)(grads, state, jnp.zeros(50))
            one, unit_state = jax.jit(unit.update)(grads, unit_state, jnp.zeros(50))
            np.testing.assert_allclose(got, expected * np.asarray(one), rtol=1e-6)
