"""The gap experiment fits the orders of the exact bias, and notices wrong ones."""

import dataclasses
import doctest

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from experiments.theory import density, gap, power_laws

TINY = gap.PRESETS["tiny"]
# E[median(1, 2, 10 + b xi)] at b = 5 and 20, from the project's reference table.
REFERENCE = {
    "gaussian": (3.7520870393, 4.2884566897),
    "laplace": (3.5804839525, 4.2560274734),
    "logistic": (3.6887146195, 4.2801021661),
    "uniform": (3.8359010235, 4.2945713702),
}


@pytest.fixture(scope="module")
def near():
    """Scales about the spread, where no power law holds yet."""
    ends = {"least_scale": 5 / 9, "greatest_scale": 20 / 9, "num_scales": 2}
    return gap.run(dataclasses.replace(TINY, **ends))


def test_curves_pass_through_the_reference_values(near):
    for law, means in REFERENCE.items():
        bias = near.curves[f"M = 3, {law}"]["bias"]
        np.testing.assert_allclose(bias, np.array(means) - 13 / 3, atol=1e-9)


def test_near_the_spread_the_claims_about_orders_fail(near):
    assert [claim.holds for claim in near.claims] == [False, False, False, True]


def test_far_from_it_every_claim_holds():
    assert [claim.holds for claim in gap.run(TINY).claims] == [True] * 4


def test_medians_with_noise_of_another_scale_are_noticed(monkeypatch):
    draw = power_laws._draw

    def too_noisy(law, rows, scale, key):
        return draw(law, rows, 1.5 * scale, key)

    monkeypatch.setattr(power_laws, "_draw", too_noisy)
    assert gap.run(TINY).claims[-1].holds is False


@pytest.mark.parametrize("config", [gap.Config, density.Config])
def test_values_without_a_gap_are_refused(config):
    with pytest.raises(ValueError, match="`three` must hold 3 values"):
        config(three=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="`five` must hold 5 values"):
        config(five=(1.0, 2.0, 10.0))


@pytest.mark.parametrize("exponent", [-3.0, -0.25, 2.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_slope_of_a_power_law(exponent, sign):
    x = np.array([0.5, 2.0, 3.0, 40.0])
    assert power_laws.slope(x, sign * 7 * x**exponent) == pytest.approx(exponent)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2], [1, -1]), ([1, 2], [0, 1]), ([0, 1], [1, 2]), ([1, 1], [1, 2])],
)
def test_no_slope_where_there_is_none(x, y):
    with pytest.raises(ValueError, match="`x`"):
        power_laws.slope(x, y)


def test_docstring_examples():
    assert doctest.testmod(power_laws) == doctest.TestResults(failed=0, attempted=2)
