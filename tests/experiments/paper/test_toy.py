"""The toy experiment reaches the paper's end points, and can tell when it does not."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from experiments.paper import toy


@pytest.fixture(scope="module")
def result():
    return toy.run(dataclasses.replace(toy.Config(), scale=1.0, settle_steps=20_000))


def test_every_claim_of_the_toy_problem_holds(result):
    assert [claim.holds for claim in result.claims] == [True] * 4


def test_medians_and_votes_without_noise_end_where_exact_arithmetic_does(result):
    # Exact arithmetic, 10,000 steps: median 1.99990968, sign 1.9995 or 2.0005.
    assert result.curves["medianSGD"]["x"][-1] == pytest.approx(1.99990968, abs=2e-5)
    ends = np.array([1.9995, 2.0005])
    assert np.abs(ends - result.curves["signSGD"]["x"][-1]).min() < 2e-4


def test_the_mean_reaches_the_optimum(result):
    assert result.curves["mean"]["x"][-1] == pytest.approx(13 / 3, abs=1e-3)


def test_a_run_that_is_too_short_fails_its_claims():
    short = dataclasses.replace(toy.Config(), num_steps=100, settle_steps=100)
    assert [claim.holds for claim in toy.run(short).claims] == [False] * 4


def test_one_seed_is_not_judged_by_an_error_it_does_not_have(recwarn):
    one = dataclasses.replace(
        toy.Config(), num_seeds=1, num_steps=100, settle_steps=100, centres=(1.0, 3.0)
    )
    result = toy.run(one)
    assert [claim.holds for claim in result.claims[2:]] == [None, None]
    assert not [w for w in recwarn if "freedom" in str(w.message)]
    titles = [axes.get_title() for axes in toy.plot(result).axes]
    assert "x: the optimum is 2, the median 2" in titles
