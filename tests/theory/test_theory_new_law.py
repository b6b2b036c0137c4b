"""A law is one row: a fifth one, the hyperbolic secant, gets every result of theory.

h(x) = sech(pi x / 2) / 2 has variance 1, H(x) = (2 / pi) arctan(exp(pi x / 2)), int h^3
= 1/8 and max|h'| = pi / 8.
"""

import ast
import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmedian as jm
from jaxmedian import theory
from jaxmedian.noise import Noise
from jaxmedian.noise.laws import LAWS, Law

HALF_PI = math.pi / 2
VALUES = np.array([1.0, 2.0, 10.0])
MU3 = 1190 / 27
KAPPA = 9 / 16  # M^3 / 12 J for M = 3, J = int 2 (1 - 2 H) h h' = 2 int h^3 = 1/4


def cdf(x):
    return np.arctan(np.exp(HALF_PI * np.asarray(x, np.float64))) / HALF_PI


def pdf(x):
    return 0.5 / np.cosh(HALF_PI * np.asarray(x, np.float64))


def quantile(p):
    with np.errstate(divide="ignore"):
        return np.log(np.tan(HALF_PI * np.asarray(p, np.float64))) / HALF_PI


SECANT = Law(
    "secant",
    cdf=cdf,
    pdf=pdf,
    quantile=quantile,
    sample=lambda t: jnp.arcsinh(jnp.tan(HALF_PI * t)) / HALF_PI,
    tail=lambda a: jnp.arctan(jnp.exp(-HALF_PI * a)) * (2 / HALF_PI),
    bound=float("inf"),
    kinks=(),
)


@pytest.fixture(autouse=True)
def row(monkeypatch):
    monkeypatch.setitem(LAWS, "secant", SECANT)


@pytest.mark.parametrize("scale", [5.0, 300.0, 1e3, 1e6])
def test_median_bias(scale):
    """By -b int (F(z; e) - F(z; 0)) dz, with the CDF of the median of three expanded.

    F = e_2(p) - 2 e_3(p) in the elementary symmetric polynomials of the p_i = H(z -
    e_i). With p_i = H(z) + delta_i it is F(z; 0) plus 2 p (1 - p) E_1 + (1 - 2 p) E_2 -
    2 E_3 of the delta_i, which the addition theorem of the arctangent gives.
    """
    z = np.linspace(-45, 45, 90_001)
    e = (VALUES - VALUES.mean())[:, None] / scale
    # arctan(a) - arctan(b) = arctan((a - b) / (1 + a b)), a = exp(pi (z - e) / 2)
    a, b = np.exp(HALF_PI * (z - e)), np.exp(HALF_PI * z)
    delta = np.arctan(b * np.expm1(-HALF_PI * e) / (1 + a * b)) / HALF_PI
    p = cdf(z)
    one = delta.sum(axis=0)
    two = delta[0] * delta[1] + delta[0] * delta[2] + delta[1] * delta[2]
    integrand = 2 * p * (1 - p) * one + (1 - 2 * p) * two - 2 * delta.prod(axis=0)
    even_part = 0.5 * (integrand + integrand[::-1])  # the odd part integrates to 0
    expected = -scale * even_part.sum() * (z[1] - z[0])
    found = theory.median_bias(VALUES, Noise("secant", scale))
    # The grid's own rounding: 1e-16 e of E_1, against a result of e^3.
    rounding = 1e-16 * scale * np.abs(e).max()
    assert found == pytest.approx(expected, rel=1e-9, abs=rounding)
    if scale >= 300:  # what is left out is of relative order (10 / b)^2
        assert found == pytest.approx(-KAPPA * MU3 / scale**2, rel=(20 / scale) ** 2)


def test_constants_of_large_noise():
    assert theory.bias_coefficient("secant", 3) == pytest.approx(KAPPA, rel=1e-12)
    # kappa_M by the form with h', on a fine grid, M = 5: A = 6 p^2 (1 - p)^2.
    z = np.linspace(-40, 40, 40_001)
    p, h = cdf(z), pdf(z)
    slope = -HALF_PI * h * np.tanh(HALF_PI * z)
    integral = (12 * p * (1 - p) * (1 - 2 * p) * h * slope).sum() * (z[1] - z[0])
    found = theory.bias_coefficient("secant", 5)
    assert found == pytest.approx(125 / 72 * integral, rel=1e-12)
    assert theory.limit_variance("secant", 3) == pytest.approx(variance_of_three())
    assert theory.limit_variance("secant", 1) == pytest.approx(1.0, rel=1e-12)


def variance_of_three():
    """Var of the median of three: its density is 6 H (1 - H) h."""
    z = np.linspace(-40, 40, 40_001)
    return (z**2 * 6 * cdf(z) * cdf(-z) * pdf(z)).sum() * (z[1] - z[0])


def test_bounds():
    arguments = (1e-3, 10**6, 2, 1.0, 1.0)
    noise, width, sigma = Noise("secant", 30.0), 9.0, math.sqrt(variance_of_three())
    a = 3 * width**2 * (math.pi / 8 + 3 / 4) / 8
    left = 2 * math.sqrt(3) * sigma * 30 * (1 / (1e6 * 1e-3) + 1e-3 * 2 / 2)
    expected = (left + 12 * 2 * (sigma * a / 30) ** 2) / min(1, 2 * sigma / 3**0.5)
    found = theory.theorem5_bound(*arguments, noise, 3, width)
    assert found == pytest.approx(expected, rel=1e-9)
    deviation = 30 * sigma + width / 2
    bias = min(width, 3 * 0.5 * width**2 / 60)
    expected = 2 / (1e6 * 1e-3) + 1e-3 * 2 * deviation**2 + 2 * bias**2
    found = theory.theorem6_bound(*arguments, noise, 3, width)
    assert found == pytest.approx(expected, rel=1e-9)


def test_exact_regime():
    assert theory.unbiased_scale(VALUES, "secant") == pytest.approx(3 * 0.5 * 9)
    scale = theory.unbiased_scale(VALUES, "secant", mean_only=True)
    assert scale == pytest.approx(
        4.5 / (math.log(math.tan(math.pi * 5 / 12)) * 2 / math.pi)
    )
    noise = Noise("secant", 1.001 * scale, "systematic")
    for permutation in itertools.permutations(range(3)):
        mean, _ = theory.median_moments(VALUES, noise, permutation=permutation)
        position = (np.arange(60_000)[:, None] + 0.5) / 60_000
        xi = quantile((position + np.array(permutation) / 3) % 1.0)
        walked = np.median(VALUES + noise.scale * xi, axis=1).mean()
        assert mean == pytest.approx(13 / 3, abs=1e-9)
        assert walked == pytest.approx(13 / 3, abs=1e-2)


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
def test_the_kernels_follow(coupling):
    """P(+) of the fused vote, over 40 steps of 2,000 coordinates."""
    noise = Noise("secant", 5.0, coupling)
    vote = jm.majority_vote(noise, key=0)
    stacked = jnp.broadcast_to(jnp.asarray(VALUES, jnp.float32)[:, None], (3, 2000))
    state, total = vote.init(jnp.zeros(2000)), 0.0
    update = jax.jit(vote.update)
    for _ in range(40):
        votes, state = update(stacked, state)
        total += float(votes.mean())
    exact = theory.vote_probability(VALUES, noise)
    if coupling == "independent":
        p = cdf(VALUES / 5.0)
        assert exact.plus == pytest.approx(
            p[0] * p[1] + p[0] * p[2] + p[1] * p[2] - 2 * p.prod(), rel=1e-12
        )
    # One permutation serves a step, and its coordinates are independent given it.
    by_order = [
        theory.vote_probability(VALUES, noise, permutation=order)
        for order in (
            itertools.permutations(range(3)) if coupling == "systematic" else []
        )
    ]
    between = np.var([vote.plus - vote.minus for vote in by_order]) if by_order else 0
    error = math.sqrt(between / 40 + 1 / 80_000)
    assert abs(total / 40 - (exact.plus - exact.minus)) < 5 * error


EDGE = math.sqrt(6)


def triangular_cdf(x):
    x = np.clip(np.asarray(x, np.float64), -EDGE, EDGE)
    tail = (EDGE - np.abs(x)) ** 2 / 12
    return np.where(x < 0, tail, 1 - tail)


def triangular_pdf(x):
    return np.maximum(EDGE - np.abs(np.asarray(x, np.float64)), 0) / 6


def test_a_row_with_kinks_needs_no_expansion(monkeypatch):
    """The triangular law: int h^3 = 1/12, so kappa_3 = 3/8."""
    row = SECANT._replace(
        name="triangular",
        cdf=triangular_cdf,
        pdf=triangular_pdf,
        quantile=lambda p: (
            np.sign(p - 0.5) * (EDGE - np.sqrt(12 * np.minimum(p, 1 - np.asarray(p))))
        ),
        bound=EDGE,
        kinks=(-EDGE, 0.0, EDGE),
        derivatives=lambda z, top: [triangular_pdf(z), 0 * z - 1 / 6, *[0 * z] * top],
    )
    monkeypatch.setitem(LAWS, "triangular", row)
    assert theory.bias_coefficient("triangular", 3) == pytest.approx(3 / 8, rel=1e-12)
    bias = theory.median_bias(VALUES, Noise("triangular", 1e4))
    assert bias == pytest.approx(-3 / 8 * MU3 / 1e8, rel=1e-3)
    arguments = (1e-3, 10**6, 1, 1.0, 1.0, Noise("triangular", 30.0), 3, 9.0)
    assert theory.theorem5_bound(*arguments) > 0


def test_theory_compares_no_names_of_laws():
    """A law is known by its row, so no file of theory may ask for its name."""
    names = {"gaussian", "laplace", "logistic", "uniform"}
    for path in pathlib.Path(theory.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                inside = list(ast.walk(node))
                assert not any(
                    (isinstance(part, ast.Constant) and part.value in names)
                    or (isinstance(part, ast.Attribute) and part.attr == "name")
                    for part in inside
                ), f"{path}, line {node.lineno}"
