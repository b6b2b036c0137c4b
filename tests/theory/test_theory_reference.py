"""The reference values of the project, digit by digit: u = (1, 2, 10), mean 13/3."""

import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise

VALUES = [1, 2, 10]

INDEPENDENT = [
    ("gaussian", 1, 2.1996412265, 0.7605021376, 0.9963905720),
    ("gaussian", 5, 3.7520870393, 13.7520318805, 0.8442074808),
    ("gaussian", 20, 4.2884566897, 182.2733138192, 0.6253104640),
    ("laplace", 1, 2.1896752710, 0.7740012533, 0.9964075491),
    ("laplace", 5, 3.5804839525, 12.2311151718, 0.8797851774),
    ("laplace", 20, 4.2560274734, 133.6880887239, 0.6756281312),
    ("logistic", 1, 2.1947864691, 0.7672299657, 0.9963705060),
    ("logistic", 5, 3.6887146195, 13.0842010367, 0.8540332276),
    ("logistic", 20, 4.2801021661, 160.8428724603, 0.6396865149),
    ("uniform", 1, 2.2077989476, 0.7490206498, 1.0000000000),
    ("uniform", 5, 3.8359010235, 14.4546135693, 0.8299358737),
    ("uniform", 20, 4.2945713702, 234.5808912593, 0.5936991374),
]

SYSTEMATIC = [
    ("gaussian", 1, 2.2451055442, 0.6948177280, 1),
    ("gaussian", 5, 4.3333333333, 9.2746718405, 0.9336765304),
    ("uniform", 1, 2.2698003589, 0.6574074074, 1),
    ("uniform", 20, 4.3333333333, 60.6666666667, 0.6876388375),
]

ALL = [(*row, "independent") for row in INDEPENDENT] + [
    (*row, "systematic") for row in SYSTEMATIC
]


@pytest.mark.parametrize(("law", "scale", "mean", "variance", "plus", "coupling"), ALL)
def test_reference_values(law, scale, mean, variance, plus, coupling):
    noise = Noise(law, float(scale), coupling)
    found = theory.median_moments(VALUES, noise)
    assert found == pytest.approx((mean, variance), rel=1e-10, abs=0)
    vote = theory.vote_probability(VALUES, noise)
    assert vote.plus == pytest.approx(plus, rel=1e-10, abs=0)
    # Proposition 1: sign(vote) = sign(median), whatever the noise.
    below = theory.median_cdf(VALUES, noise, 0.0)
    assert 1 - below == pytest.approx(vote.plus, abs=1e-14)


@pytest.mark.parametrize(("scale", "rest"), [(1, 2.1725), (5, 3.7667), (20, 4.2920)])
def test_rest_points_of_noisy_sign_sgd(scale, rest):
    found = theory.rest_point(VALUES, Noise("gaussian", float(scale)))
    assert found == pytest.approx(rest, abs=5e-5)


# E[median] - mean to 20 digits: 45-digit arithmetic (mpmath), direct quadrature.
BIASES = [
    ("gaussian", [1, 2, 10], 1e2, -0.0018213401764836508931),
    ("gaussian", [1, 2, 10], 1e3, -1.8224372066933166863e-5),
    ("gaussian", [1, 2, 10], 1e6, -1.8224482931887260477e-11),
    ("laplace", [1, 2, 10], 1e2, -0.0032943255919280763917),
    ("laplace", [1, 2, 10], 1e3, -3.3054357721460482097e-5),
    ("laplace", [1, 2, 10], 1e6, -3.3055555554349036511e-11),
    ("logistic", [1, 2, 10], 1e3, -2.1749497223829239536e-5),
    ("logistic", [1, 2, 10], 1e6, -2.1749683772584443558e-11),
    ("uniform", [1, 2, 10], 1e2, -0.0016323179276133704147),
    ("uniform", [1, 2, 10], 1e6, -1.652775731792761337e-11),
    ("gaussian", [0, 1, 3, 10], 1e3, -1.323180380778525356e-5),
    ("laplace", [0, 1, 3, 10], 1e4, -2.3999990247491317564e-7),
    ("logistic", [0, 1, 3, 10], 1e6, -1.5791367041592067008e-11),
    ("uniform", [0, 1, 3, 10], 1e3, -1.1984291261425798932e-5),
    ("laplace", [0, 1, 2, 5, 9], 1e3, -1.5049381623441699393e-5),
    ("uniform", [0, 1, 2, 5, 9], 1e3, -2.4130133266898137687e-8),
    ("uniform", [0, 1, 2, 5, 9], 1e6, -2.4180501454419444003e-17),
    ("uniform", [-3, -1, -1, 0, 5], 1e2, -1.5838866772159299393e-5),
    (
        "uniform",
        [0, 0, 1, 2, 2.5, 4, 9, 9, 10, 11, 30],
        1e3,
        -2.0127841239677564492e-11,
    ),
    ("laplace", [0, 0, 1, 2, 2.5, 4, 9, 9, 10, 11, 30], 1500, -3.343513805865946297e-4),
]


@pytest.mark.parametrize(("law", "values", "scale", "bias"), BIASES)
def test_bias_to_many_digits(law, values, scale, bias):
    found = theory.median_bias(values, Noise(law, float(scale)))
    assert found == pytest.approx(bias, rel=1e-9, abs=0)


# 1 + 5 + 5 = 2 + 3 + 6 and 1^3 + 5^3 + 5^3 = 2^3 + 3^3 + 6^3: mu3 = 0 without symmetry,
# so that the leading term of the bias is gone.
NO_THIRD_MOMENT = [1, 5, 5, 0, -2, -3, -6]


@pytest.mark.parametrize(
    ("law", "scale", "bias"),
    [
        ("uniform", 60, 1.5591504093962836628e-6),
        ("uniform", 1e5, 2.259886667572610119e-19),
        ("gaussian", 60, -1.400983610937268179e-6),
        ("gaussian", 1e3, -1.8214448351902498112e-11),
        ("gaussian", 1e5, -1.8214657245733668061e-19),
        ("laplace", 60, -1.6843199104467157028e-5),
        ("laplace", 1e5, -2.5110532371529239009e-18),
        ("logistic", 1e3, -3.5584781178908345121e-11),
    ],
)
def test_bias_where_its_leading_term_vanishes(law, scale, bias):
    found = theory.median_bias(NO_THIRD_MOMENT, Noise(law, float(scale)))
    assert found == pytest.approx(bias, rel=1e-6, abs=0)
