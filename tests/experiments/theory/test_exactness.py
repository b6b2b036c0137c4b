"""The comparison of kernels and theory can tell when they differ."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import jaxmedian as jm
from experiments.theory import exactness

CONFIG = exactness.Config(num_workers=(4,), draws=100_000)
VALUES = np.array([-0.5, 0.0, 0.25, 2.0])


def test_the_kernels_draw_what_the_theory_says():
    scores = exactness._scores(CONFIG, VALUES, jm.noise.logistic(1.0))
    assert np.abs(scores).max() < 5


def test_a_scale_that_is_off_by_two_percent_is_noticed(monkeypatch):
    sampler = exactness._sampler
    monkeypatch.setattr(
        exactness, "_sampler", lambda u, noise: sampler(u, jm.noise.logistic(1.02))
    )
    scores = exactness._scores(CONFIG, VALUES, jm.noise.logistic(1.0))
    assert np.abs(scores[1]) > 5  # the variance, by 4 % in standard errors of .4 %


def test_the_draws_that_are_stated_are_those_that_are_drawn(monkeypatch):
    """Blocks of 25 for four workers: 110 draws take five of them."""
    monkeypatch.setattr(exactness, "_BLOCK", 100)
    config = exactness.Config(num_workers=(4,), draws=110)
    sizes = []

    def sampler(values, noise):
        return lambda key, size: sizes.append(size) or (np.zeros(size), np.ones(size))

    monkeypatch.setattr(exactness, "_sampler", sampler)
    claim = exactness.run(config).claims[0]
    assert sum(sizes) == 125 * len(exactness.LAWS)
    assert claim.statement.endswith("of the exact value, 125 draws")
    assert exactness._in_words([125, 110, 130]) == "110 to 130"
