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
