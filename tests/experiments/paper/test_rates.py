"""Exact rates on quadratics against slow recursions, and the slopes they have."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import jaxmedian as jm
from experiments.common.harness.results import save
from experiments.paper import quadratics, rates

CENTRES = (1.0, 2.0, 10.0)
MEAN = 13 / 3


@pytest.mark.parametrize("num_steps", [1, 7, 300])
@pytest.mark.parametrize("coupling", ["independent", "systematic"])
def test_the_closed_form_of_the_median_is_the_sum_of_its_recursion(num_steps, coupling):
    noise = jm.noise.gaussian(3.0, coupling)
    rate, start = 0.03, -1.0
    rest, variance = jm.theory.median_moments(CENTRES, noise)
    mean, spread, total = start, 0.0, 0.0
    for _ in range(num_steps):
        total += (mean - MEAN) ** 2 + spread
        mean = mean - rate * (mean - rest)
        spread = (1 - rate) ** 2 * spread + rate**2 * variance
    got = quadratics.median_mean_square(CENTRES, noise, rate, start, num_steps)
    assert got == pytest.approx(total / num_steps, rel=1e-10)


@pytest.mark.parametrize("noise", [jm.noise.laplace(4.0), jm.noise.uniform(20.0)])
def test_the_chain_of_the_vote_is_followed_exactly(noise):
    """Against a dictionary of sites; 600 steps are more than one block of pairs."""
    rate, start, num_steps = 0.1, -1.0, 600
    x = start + rate * np.arange(-num_steps, num_steps + 1)
    up = jm.theory.vote_probability(x - np.array(CENTRES)[:, None], noise).minus
    law, total = {0: 1.0}, 0.0
    for _ in range(num_steps):
        after = {}
        for site, mass in law.items():
            total += mass * (start + rate * site - MEAN) ** 2
            rises = up[site + num_steps]
            after[site + 1] = after.get(site + 1, 0.0) + mass * rises
            after[site - 1] = after.get(site - 1, 0.0) + mass * (1 - rises)
        law = after
    got = quadratics.vote_mean_square(CENTRES, noise, rate, start, num_steps)
    assert got == pytest.approx(total / num_steps, rel=1e-10)


def test_what_the_chain_refuses():
    noise = jm.noise.gaussian(1.0)
    chain = quadratics.vote_mean_square
    with pytest.raises(ValueError, match="odd number of `centres`"):
        chain((1.0, 2.0), noise, 0.1, 0.0, 4)
    with pytest.raises(ValueError, match="even `num_steps`"):
        chain(CENTRES, noise, 0.1, 0.0, 5)
    with pytest.raises(ValueError, match="left the lattice"):
        chain(CENTRES, jm.noise.gaussian(1e9), 5.0, 0.0, 2000)


def test_the_slopes_are_those_of_the_theory_and_not_each_others():
    available = rates.settings(rates.Config())
    slopes = {
        name: rates.slope(rates._curve(rates.Config(vote_steps=1e4), setting))
        for name, setting in available.items()
        if "b = 1 T" not in name
    }
    assert slopes["median, b = 5 T^(1/6)"] == pytest.approx(-0.334, abs=0.002)
    assert slopes["median, b = 5 T^(1/10)"] == pytest.approx(-0.404, abs=0.002)
    assert slopes["vote, b = 5 T^(1/4)"] == pytest.approx(-1 / 4, abs=0.05)
    assert slopes["vote, b = 5 T^(1/6)"] == pytest.approx(-1 / 3, abs=0.05)
    for rule in ("median", "vote"):
        found = slopes[f"{rule}, systematic, constant b"]
        assert found == pytest.approx(-1 / 2, abs=0.03)


def test_the_unbiased_vote_keeps_the_promise_of_its_proof():
    """E[vote] = gradient / Q gives mean ||grad f||^2 <= Q sqrt(2 L d D / T)."""
    config = rates.Config()
    setting = rates.settings(config)["vote, systematic, constant b"]
    largest = 10.0 - config.start + config.margin
    initial = 0.5 * (config.start - MEAN) ** 2
    scale, rate = setting.schedule(5000)
    assert scale == pytest.approx(3 * largest / np.sqrt(3))
    assert rate == pytest.approx(np.sqrt(2 * initial / 5000))
    bound = largest * np.sqrt(2 * initial / 5000)
    assert 0.3 * bound < rates.exact(config, setting, 5000) < bound


def test_runs_of_the_library_agree_with_the_exact_values(tmp_path):
    config = rates.PRESETS["tiny"]
    result = rates.run(config)
    save(tmp_path, config, result, rates.plot(result))
    assert (tmp_path / "figure.png").exists()
    *others, agreement = result.claims
    assert agreement.holds is True
    assert [claim.holds for claim in others] == [None] * len(others)
    short = result.curves["simulated vote, b = 5 T^(1/4)"]
    assert short["standard_error"][0] < 0.05 * short[rates.MEASURE][0]


def test_one_seed_agrees_with_nothing():
    config = rates.Config(num_seeds=1)
    claim = rates._agreement(rates.settings(config), config, {})
    assert claim.holds is None
    assert "nan" not in claim.here
