"""How a row of the table is chosen, measured and explained."""

import numpy as np
import pytest

import jaxmedian as jm
from experiments.common.training.outcomes import Runs
from experiments.theory import coupling_in_training as experiment

CONFIG = experiment.Config(scales=(0.1, 0.3), num_seeds=2, vote_rates=(1.0, 2.0))


def test_rates_are_chosen_on_validation_digits_at_every_b():
    validation = np.array([[0.5, 0.5], [0.6, 0.5], [0.9, 0.9], [0.1, 0.8]])
    test = np.array([[0.9, 0.9], [0.3, 0.4], [0.5, 0.6], [1.0, 1.0]])
    runs = Runs(
        {"scale": np.array([0.1, 0.1, 0.3, 0.3]), "rate": np.array([1, 2, 1, 2])},
        {
            "validation_accuracy": validation[:, :, None],
            "test_accuracy": test[:, :, None],
        },
    )
    found = experiment._best_rates(CONFIG, runs)
    np.testing.assert_array_equal(found, [[0.3, 0.4], [0.5, 0.6]])


def cells(ahead, independent, systematic):
    accuracy = {"independent": np.zeros_like(ahead), "systematic": ahead}
    expected = {"independent": independent, "systematic": systematic}
    return experiment.Cells(accuracy, {k: np.array(v) for k, v in expected.items()})


def test_every_cell_behind_is_named_with_what_theory_expects():
    ahead = np.array([[-0.10, -0.11], [-0.2, 0.1]])
    claim = experiment._row_claim(
        CONFIG, "vote, M = 3, uniform", cells(ahead, [0.5, 0.3], [0.4, 0.35])
    )
    assert claim.here == "b = 0.1: -10.5 +- 0.5; b = 0.3: -5.0 +- 15.0"
    assert claim.reason == (
        "behind at b = 0.1; theory: systematic is worse there, descent 0.4 against "
        "0.5; behind at b = 0.3, within chance; theory: systematic is better there, "
        "descent 0.35 against 0.3"
    )


def test_one_seed_has_neither_error_nor_chance():
    claim = experiment._row_claim(
        CONFIG, "vote, M = 3, uniform", cells(np.array([[-0.2], [0.1]]), [1, 1], [0, 0])
    )
    assert claim.here == "b = 0.1: -20.0; b = 0.3: +10.0"
    assert claim.reason.startswith("behind at b = 0.1, by one seed; theory:")


def test_theory_expects_the_plain_mean_sign_to_descend_fully():
    """One worker without noise: vote and median are the mean."""
    u = np.array([[1.0, -2.0, 3.0]])
    config = experiment.Config(scales=(0.0,))
    assert experiment._expect(config, "vote", "uniform", u)["independent"] == 1.0
    median = experiment._expect(config, "median", "uniform", u)
    np.testing.assert_allclose(median["independent"], 0.0, atol=1e-12)


def test_a_scale_for_every_coordinate_is_one_scale_in_each():
    """The descent, coordinate by coordinate, with b times its root mean square."""
    u = np.random.default_rng(0).normal(size=(5, 3)) * [0.1, 1.0, 10.0]
    config = experiment.Config(scales=(0.5, 2.0), per_coordinate=True)
    got = experiment._expect(config, "vote", "uniform", u)["independent"]
    for b, share in zip(config.scales, got, strict=True):
        moved = 0.0
        for column in u.T:
            noise = jm.noise.uniform(b * np.sqrt(np.mean(column**2)))
            vote = jm.theory.vote_probability(column[:, None], noise)
            moved += column.mean() * float((vote.plus - vote.minus)[0])
        np.testing.assert_allclose(share, moved / np.abs(u.mean(axis=0)).sum())


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="--rules"):
        experiment.Config(rules=("mean",))
