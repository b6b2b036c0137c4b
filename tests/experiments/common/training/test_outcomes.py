"""Tuned runs: the grid, the choice on validation digits, and who is ahead."""

import doctest

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("flax")

from experiments.common.training import outcomes
from experiments.methods import subsampling
from experiments.paper import sweep


def runs():
    """Two settings, three seeds, two edges; the second setting validates best."""
    validation = np.array([[[0.1, 0.9]] * 3, [[0.2, 0.95]] * 3])
    test = np.array(
        [[[0.0, 0.8], [0.0, 0.9], [0.0, 1.0]], [[0.0, 0.2], [0.0, 0.3], [0.0, 0.4]]]
    )
    metrics = {
        "validation_accuracy": validation,
        "test_accuracy": test,
        "step": np.broadcast_to([5, 10], (2, 3, 2)),
    }
    return outcomes.Runs({"rate": np.array([0.1, 1.0])}, metrics)


def test_the_choice_is_by_validation_and_never_by_test():
    chosen = runs().chosen()
    assert chosen.setting == "rate 1"
    assert chosen.last.tolist() == [0.2, 0.3, 0.4]
    np.testing.assert_allclose(chosen.curve["test_accuracy"], [0.0, 0.3])
    np.testing.assert_allclose(
        chosen.curve["test_accuracy_error"], [0.0, 0.1 / np.sqrt(3)]
    )
    assert chosen.curve["step"].tolist() == [5, 10]


def test_one_seed_has_no_standard_error():
    assert np.isnan(outcomes.standard_error(np.ones((1, 4)))).all()
    assert outcomes.report(np.array([0.5, 0.7])) == "0.600 +- 0.100"
    assert outcomes.report(np.array([0.5]), 2) == "0.50"
    claim = outcomes.claim_ahead("A", np.array([0.9]), np.array([0.3]), judged=True)
    assert (claim.holds, claim.here) == (None, "by 60.00 points")


def test_a_grid_has_every_combination():
    found = outcomes.grid(rate=(0.1, 1.0), scale=(2.0, 3.0, 4.0))
    pairs = set(zip(found["rate"].tolist(), found["scale"].tolist(), strict=True))
    assert pairs == {(r, s) for r in (0.1, 1.0) for s in (2.0, 3.0, 4.0)}


def test_who_is_ahead_is_judged_by_paired_differences():
    worse = np.array([0.1, 0.5, 0.9])
    claim = outcomes.claim_ahead("A beats B", worse + 0.1, worse, judged=True)
    assert claim.holds is True
    assert claim.here == "by 10.00 +- 0.00 points"
    assert claim.statement == "A beats B (two standard errors)"
    even = outcomes.claim_ahead("A beats B", worse, worse[::-1], judged=True)
    assert even.holds is False
    assert outcomes.claim_ahead("A beats B", worse, worse, False).holds is None


def test_docstring_examples():
    assert doctest.testmod(outcomes).failed == 0


def test_what_is_compared_on_test_images_is_chosen_on_validation_ones():
    """Of three sizes and of three b the second validates best and tests worst."""
    validated = {1: 0.5, 2: 0.9, 4: 0.5}
    tested = {1: [0.90, 0.91], 2: [0.30, 0.31], 4: [0.60, 0.61]}

    def found(sizes):
        metrics = {
            "validation_accuracy": np.array([[[validated[n]]] * 2 for n in sizes]),
            "test_accuracy": np.array([[[x] for x in tested[n]] for n in sizes]),
        }
        return outcomes.Runs({"scale": np.array(sizes, float)}, metrics)

    config = subsampling.Config(rules=("vote",), batch_sizes=(1, 2, 4))
    runs = {f"vote, batch {n}": found([n]) for n in validated}
    gaps = dict.fromkeys(validated, 1.0)
    assert subsampling._claims(config, runs, gaps)[-1].holds is False
    best = sweep._claims(sweep.Config(scales=(1, 2, 4)), found([1, 2, 4]), 1.0)[-1]
    assert (best.holds, best.here) == (False, "0.305 +- 0.005 at b = 2")


def test_a_goal_is_met_by_more_than_noise_or_not_judged():
    assert outcomes.within(np.array([0.0, 0.2]), 0.4) is True
    assert outcomes.within(np.array([-3.0, 6.0]), 2.0) is False
    assert outcomes.within(np.array([0.0]), 1.0) is None
    assert outcomes.within(np.array([0.0, np.nan]), 1.0) is None


def test_chance_takes_few_seeds_farther_than_many():
    few, many = (outcomes.chance(np.array([0.0, 2.0] * n)) for n in (1, 50))
    np.testing.assert_allclose(few, 12.7062, rtol=1e-5)  # t of .975, one degree
    np.testing.assert_allclose(many, 1.98422 / np.sqrt(99), rtol=1e-4)
    assert np.isnan(outcomes.chance(np.ones((1, 3)))).all()


def test_one_batch_size_is_compared_with_nothing():
    config = subsampling.Config(rules=("vote",), batch_sizes=(16,))
    assert subsampling._claims(config, {}, {16: 1.0}) == ()


def swept(*accuracies):
    rows = np.array(accuracies)[:, None, None] + np.zeros((1, 2, 1))
    return outcomes.Runs({}, {"test_accuracy": rows, "validation_accuracy": rows})


def test_the_smallest_scale_is_so_by_value_and_no_noise_is_0():
    config = sweep.Config(scales=(0.1, 0.0, 0.3))
    _, plain, best = sweep._claims(config, swept(0.9, 0.2, 0.5), 1.0)
    assert (plain.holds, plain.here) == (True, "0.200 +- 0.000 at b = 0")
    assert best.holds is True
    config = sweep.Config(scales=(0.3, 0.1, 1.0))
    _, best = sweep._claims(config, swept(0.5, 0.9, 0.2), 1.0)
    assert best.holds is False
    for scales in ((), (-1.0,), (np.nan,)):
        with pytest.raises(ValueError, match="`scales` must be finite and >= 0"):
            sweep.Config(scales=scales)
