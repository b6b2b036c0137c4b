"""Bad input raises, names the argument, and says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise, gaussian, relative, unbiased

GOOD = gaussian(1.0)
FUNCTIONS = [
    theory.median_moments,
    theory.median_bias,
    theory.median_moments_gradient,
    theory.vote_probability,
    theory.rest_point,
    lambda values, noise: theory.median_cdf(values, noise, 0.0, "lower"),
    lambda values, noise: theory.median_density(values, noise, 0.0, "lower"),
    lambda values, noise: theory.simulate_median(values, noise, 0, 10),
    lambda values, noise: theory.simulate_vote(values, noise, 0, 10),
    lambda values, noise: theory.median_sgd_path(values, noise, 0.1, 0.0),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_values(function):
    for values, error, message in (
        ([], ValueError, r"`values` must have the shape \[M\] or \[M, coordinates\]"),
        (np.zeros((3, 0)), ValueError, "at least one worker and one coordinate"),
        (2.0, ValueError, "`values` must have the shape"),
        ([1.0, np.nan], ValueError, "`values` must be finite; got 1 NaN or infinite"),
        ([1.0, np.inf, -np.inf], ValueError, "got 2 NaN or infinite entries"),
        ([[1.0], [2.0, 3.0]], ValueError, "`values` must be a rectangular array"),
        (["a", "b"], TypeError, "`values` must hold real numbers"),
        ([1j, 2.0], TypeError, "real numbers, worker axis first; got complex128"),
        ([True, False], TypeError, "got bool"),
        ([None, 1.0], TypeError, "got object"),
    ):
        with pytest.raises(error, match=message):
            function(values, GOOD)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_noise(function):
    for noise, error, message in (
        (0.1, TypeError, "`noise` must be a description such as"),
        (None, TypeError, "`noise` must be a description"),
        (gaussian(lambda step: 0.1), TypeError, "`noise.scale` is a schedule"),
        (unbiased(), TypeError, "`noise.scale` is one b per coordinate"),
        (
            gaussian(jnp.float32(-1.0)),
            ValueError,
            "`noise.scale` must be finite and >= 0",
        ),
        (gaussian(relative(jnp.float32(np.nan))), ValueError, "`noise.factor` must be"),
    ):
        with pytest.raises(error, match=message):
            function([1.0, 2.0, 3.0], noise)


def test_bad_noise_is_refused_where_it_is_made():
    with pytest.raises(ValueError, match="`scale` must be finite and >= 0"):
        gaussian(-1.0)
    with pytest.raises(ValueError, match="`law` must be one of"):
        Noise("cauchy", 1.0)


def test_a_traced_scale_is_refused_with_the_remedy():
    def traced(scale):
        return theory.median_moments([1.0, 2.0], gaussian(scale))[0]

    with pytest.raises(TypeError, match=r"concrete number.*outside `jax.jit`"):
        jax.jit(traced)(1.0)
    assert traced(jnp.float32(1.0)) == 1.5  # a concrete JAX scalar is a number


@pytest.mark.parametrize(
    "function",
    [theory.median_moments, theory.median_bias, theory.median_moments_gradient],
)
@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, 2.0]])
def test_an_unknown_even_rule(function, values):
    with pytest.raises(
        ValueError, match="`even` must be one of midpoint, lower, upper"
    ):
        function(values, GOOD, "middle")


@pytest.mark.parametrize("function", [theory.median_cdf, theory.median_density])
def test_bad_thresholds(function):
    with pytest.raises(ValueError, match="`even` must be 'lower' or 'upper'"):
        function([1.0, 2.0], GOOD, 0.0)
    with pytest.raises(ValueError, match="`t` must not be NaN"):
        function([1.0, 2.0, 3.0], GOOD, [0.0, np.nan])
    with pytest.raises(TypeError, match="`t` must hold real numbers"):
        function([1.0, 2.0, 3.0], GOOD, "0")
    with pytest.raises(ValueError, match="no density"):
        theory.median_density([1.0, 2.0, 3.0], gaussian(0.0), 0.0)
    for coupling in ("independent", "systematic"):  # 1 / b is infinite, and density 0
        tiny = Noise("gaussian", 1e-310, coupling)
        assert theory.median_density([1.0, 2.0, 10.0], tiny, 1.0) == 0


def test_other_arrays_are_welcome():
    expected = theory.median_moments([1.0, 2.0, 10.0], GOOD)
    for values in (
        (1, 2, 10),
        np.array([1, 2, 10], np.int8),
        jnp.array([1.0, 2.0, 10.0], jnp.bfloat16),
        jnp.array([1.0, 2.0, 10.0]),
    ):
        assert theory.median_moments(values, GOOD) == expected


def test_extreme_numbers_neither_warn_nor_fail():
    for law in ("gaussian", "laplace", "logistic", "uniform"):
        for coupling in ("independent", "systematic"):
            for scale in (1e-300, 1e-12, 1e12, 1e150):
                for values in ([1, 2, 10], [0.0, 0, 5, 5], [1e300, -2e300, 5e300]):
                    noise = Noise(law, scale, coupling)
                    with np.errstate(all="raise", under="ignore"):
                        mean, variance = theory.median_moments(values, noise)
                        vote = theory.vote_probability(values, noise)
                    assert np.isfinite([mean, variance]).all()
                    assert sum(vote) == pytest.approx(1.0, abs=1e-12)


def test_the_public_names():
    for name in theory.__all__:
        assert getattr(theory, name).__doc__, name
    assert "kappa_M" in theory.__doc__
