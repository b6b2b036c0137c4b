"""Choosing noise: gradients of a known spread, and choices that scale with them."""

import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("mlxtend")

import jaxmedian as jm
from experiments.common.harness.misuse import Misuse
from experiments.common.harness.results import save
from experiments.theory import choose_noise
from experiments.theory.choose_noise import skewed, training_run
from experiments.theory.choose_noise.skewed import COUPLINGS
from experiments.theory.descents import expected_descent

TINY = choose_noise.PRESETS["tiny"]


@pytest.fixture(scope="module")
def result():
    return choose_noise.run(TINY)


@pytest.mark.parametrize("heterogeneity", [0.5, 8.0])
def test_skewed_gradients_have_the_mean_and_the_spread_they_should(heterogeneity):
    u = skewed.skewed_gradients(11, 6, heterogeneity, 0)
    np.testing.assert_allclose(u.mean(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(u.std(axis=0), heterogeneity, rtol=1e-12)
    skewness = (((u - 1) / heterogeneity) ** 3).mean(axis=0)
    assert skewness.mean() > 0.5  # the medians lie below the mean, most of them


def test_the_best_b_of_a_median_is_a_share_of_the_spread():
    values = {h: skewed.skewed_gradients(3, 2, h, 0) for h in (1.0, 10.0)}
    one, ten = (
        jm.theory.best_scale(u, "logistic").independent for u in values.values()
    )
    assert ten.scale == pytest.approx(10 * one.scale, rel=1e-3)
    assert ten.value == pytest.approx(100 * one.value, rel=1e-6)


def test_wrong_votes_are_those_against_the_sign_of_the_mean():
    u = np.array([[-1.0, 1.0, 1.0, -1.0], [-1.0, 1.0, 0.0, -2.0], [9.0, 1.0, -1.0, -1]])
    # Of the third coordinate the mean is 0, and the vote too.
    assert skewed.wrong_votes(u).tolist() == [True, False, False, False]


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_descent_is_the_expected_drop_per_unit_of_step(coupling):
    """Against all outcomes of the votes, with the mean loss summed by hand."""
    u = skewed.skewed_gradients(5, 3, 4.0, 1) * [1.0, -2.0, 0.5]
    noise = jm.noise.laplace(2.0, coupling)
    laws = [jm.theory.vote_probability(column, noise) for column in u.T]
    drop = 0.0
    for signs in itertools.product((1, -1), repeat=3):
        chance = 1.0
        for law, sign in zip(laws, signs, strict=True):
            chance *= law.plus if sign > 0 else law.minus
        drop += chance * float(np.dot(u.mean(axis=0), signs))
    expected = drop / np.abs(u.mean(axis=0)).sum()
    assert expected_descent(u, noise) == pytest.approx(expected)
    best = getattr(jm.theory.best_scale(u, "laplace", "descent"), coupling)
    assert best.value >= expected
    again = expected_descent(u, jm.noise.laplace(best.scale, coupling))
    assert again == pytest.approx(best.value)


def test_the_sampled_choice_of_the_digits_is_the_best_of_its_curve(result):
    curve, chosen = result.curves["digits"], result.extra["digits"]
    best = max(curve["independent"].max(), curve["systematic"].max())
    at_choice = np.interp(
        np.log(max(chosen["scale"], 1e-4)),
        np.log(curve["scale"]),
        curve[chosen["coupling"]],
    )
    assert at_choice == pytest.approx(best, abs=0.02)
    assert set(chosen["test_accuracy"]) == {"no noise", "best noise"}


def test_unknown_data_are_refused_before_anything_is_computed(capsys):
    with pytest.raises(Misuse, match="'nosuch'"):
        choose_noise.run(dataclasses.replace(TINY, data="nosuch"))
    assert not capsys.readouterr().out


def test_claims_of_a_tiny_run_promise_no_accuracy(result):
    *theory, _, trained = result.claims
    assert trained.holds is None
    assert theory[0].holds is True  # exact at any size
    assert len(theory) == 4


def test_a_run_is_saved_with_its_figure(result, tmp_path):
    figure = choose_noise.plot(result)
    assert len(figure.axes) == 3
    save(tmp_path, TINY, result, figure)
    chosen = json.loads((tmp_path / "summary.json").read_text())["digits"]
    assert chosen["scale"] == result.extra["digits"]["scale"]
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["curve"] == "vote, laplace"]
    assert [float(row["heterogeneity"]) for row in rows] == [0.5, 8.0]


def test_a_choice_that_is_worse_fails_the_claim(result):
    broken = dict(result.curves)
    curve = dict(broken["median, uniform"])
    curve["systematic_value"] = 1.01 * curve["independent_value"]
    broken["median, uniform"] = curve
    assert skewed.median_claim(broken).holds is False
    short = dataclasses.replace(TINY, train_steps=300)
    best = jm.theory.best_scale([1.0, 2.0, 10.0])
    tried = training_run.Trial(best, {"no noise": 0.1, "best noise": 0.5}, "digits")
    assert training_run.claims(short, tried)[-1].holds is False
