"""Exact curves against what they are computed from, and claims that can fail."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("flax")

from experiments.hostile import robustness_price
from experiments.hostile.robustness_price import shifts, trade_off, trained

TINY = robustness_price.PRESETS["tiny"]


def test_without_noise_one_of_three_shifts_to_the_nearer_honest_value():
    values = shifts.median_values(TINY)[:2]  # the last of three is hostile
    curve = shifts.median_curves(TINY)["median, independent, f = 1"]
    half = np.ptp(values, axis=0) / 2
    assert curve["shift_up"][0] == pytest.approx(half.mean())
    assert curve["shift_down"][0] == pytest.approx(-half.mean())
    assert curve["rmse"][0] == pytest.approx(np.sqrt((half**2).mean()))


def test_without_noise_the_vote_needs_both_honest_workers():
    values = shifts.vote_values(TINY)[:2]
    curve = shifts.vote_curves(TINY)["vote, systematic, f = 1"]
    agree = (np.sign(values[0]) == np.sign(values[1])).mean()
    assert curve["right"][0] == pytest.approx(agree)


def test_the_library_is_compared_and_a_wrong_law_is_noticed(monkeypatch):
    assert shifts.largest_deviation(TINY) < 5
    shift = shifts.jm.theory.hostile_median_shift

    def one_less(values, noise, f):
        return shift(values, noise, f - 1)

    monkeypatch.setattr(shifts.jm.theory, "hostile_median_shift", one_less)
    assert shifts.largest_deviation(TINY) > 5


def test_a_deviation_that_is_not_a_number_is_not_small(monkeypatch):
    shift = shifts.jm.theory.hostile_median_shift

    def unknown(values, noise, f):
        nan = np.full(1, np.nan)
        return shift(values, noise, f)._replace(up=nan)

    def median(rows, noise, key):
        return shifts.jax.random.normal(key)

    monkeypatch.setattr(shifts.jm.theory, "hostile_median_shift", unknown)
    monkeypatch.setattr(shifts.jm, "perturbed_median", median)
    deviation = shifts.largest_deviation(dataclasses.replace(TINY, draws=2))
    assert trade_off.simulation_claim(TINY, deviation).holds is False


def test_the_crossover_claim_fails_if_systematic_noise_is_worse_from_the_start():
    config = dataclasses.replace(TINY, median_workers=5, scales=(0.0, 1.0))
    better, worse = np.array([0.0, 1.0]), np.array([0.0, 2.0])
    curves = {}
    for f in range(3):
        names = [shifts.curve_name("median", c, f) for c in shifts.COUPLINGS]
        curves |= {names[0]: {"rmse": better}, names[1]: {"rmse": worse}}
    assert trade_off.crossover_claim(config, curves, "median").holds is False
    curves[shifts.curve_name("median", "systematic", 0)] = {"rmse": better / 2}
    found = trade_off.crossover_claim(config, curves, "median")
    assert found.holds is True
    assert "worse from f = 1 (b = 1)" in found.here


def test_what_is_refused():
    with pytest.raises(ValueError, match="`median_workers` must be odd"):
        robustness_price.Config(median_workers=4)
    with pytest.raises(ValueError, match="`draws` must be 2 or more"):
        robustness_price.Config(draws=1)
    with pytest.raises(ValueError, match="`rules` takes vote and median"):
        robustness_price.Config(rules=("mean",))
    with pytest.raises(ValueError, match="`digit_hostile` must be numbers from 0"):
        robustness_price.Config(digit_workers=3)


def test_the_cost_of_noise_is_against_the_b_that_validation_prefers():
    """Of three b: seed 0 prefers the first, seed 1 the second, not what tests best."""
    validated = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.3]])
    tested = np.array([[0.5, 0.9], [0.7, 0.6], [0.1, 0.2]])
    found = trained.cost_of_noise(tested, validated)
    np.testing.assert_allclose(found, [0.4, 0.4])


@pytest.mark.parametrize(
    ("hostile", "holds"),
    [([0.3, 0.4, 0.5], True), ([0.1, 0.9, -0.1], False), ([0.3], None)],
)
def test_noise_has_to_cost_more_than_chance_beside_hostile_workers(hostile, holds):
    config = robustness_price.Config(digit_hostile=(0, 1))
    alone = [0.1, 0.2, 0.3][: len(hostile)]
    costs = {
        shifts.curve_name("digits, vote", coupling, f): np.array(cost)
        for coupling in shifts.COUPLINGS
        for f, cost in enumerate((alone, hostile))
    }
    assert trade_off._cost_claim(config, "vote", costs).holds is holds
    nothing = dataclasses.replace(config, digit_hostile=(0,))
    assert trade_off._cost_claim(nothing, "vote", costs).holds is None
