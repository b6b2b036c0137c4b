"""Which split is farthest, and claims about noise and buckets that can fail."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("flax")

from experiments.common.training.outcomes import Chosen
from experiments.methods import heterogeneity

MEASURED = {
    "s = 0": {"label divergence": 0.8, "G": 2.0},
    "s = 0.5": {"label divergence": 0.4, "G": 1.0},
    "s = 1": {"label divergence": 0.1, "G": 0.5},
}


def claims(**far):
    """Claims where a rule reaches .9 at the nearest split and ``far`` at the last."""
    reached = {}
    for name, accuracy in far.items():
        last = dict(zip(MEASURED, (accuracy, 0.7, 0.9), strict=True))
        reached[name.replace("_", " ").replace("  ", ", ")] = {
            split: Chosen("", {}, value + np.array([-0.01, 0.0, 0.01]))
            for split, value in last.items()
        }
    found = heterogeneity._claims(heterogeneity.Config(), reached, MEASURED)
    return {claim.statement: claim for claim in found[len(far) :]}


def test_noise_has_to_halve_the_loss():
    (name,) = claims(median=0.5, noisy_median__systematic=0.8)
    assert name.startswith("From s = 1 to s = 0 noise halves")
    for accuracy, holds in ((0.8, True), (0.6, False)):
        (claim,) = claims(median=0.5, noisy_median__systematic=accuracy).values()
        assert claim.holds is holds
        assert claim.here.startswith("0.400 without")


def test_buckets_must_not_add_to_the_loss():
    for accuracy, holds in ((0.6, True), (0.5, True), (0.4, False)):
        (claim,) = claims(Krum=0.5, Krum_after_bucketing=accuracy).values()
        assert "Krum loses no more after bucketing" in claim.statement
        assert claim.holds is holds


def test_seeds_that_disagree_show_nothing_of_buckets():
    plain, bucketed = np.array([0.5, 0.5, 0.5]), np.array([0.2, 0.5, 0.75])
    (claim,) = claims(Krum=plain, Krum_after_bucketing=bucketed).values()
    assert claim.holds is None
    better = np.array([0.6, 0.7, 0.6])
    (claim,) = claims(Krum=plain, Krum_after_bucketing=better).values()
    assert claim.holds is True


def test_one_split_is_compared_with_nothing():
    last = heterogeneity.Chosen("", {}, np.array([0.8, 0.9]))
    reached = {rule: {"s = 0": last} for rule in ("vote", "noisy vote, systematic")}
    measured = {"s = 0": MEASURED["s = 0"]}
    found = heterogeneity._claims(heterogeneity.Config(), reached, measured)
    assert [claim.statement for claim in found] == [
        f"{rule}: last test accuracy" for rule in reached
    ]
    with pytest.raises(ValueError, match="must name a split"):
        heterogeneity.Config(alphas=(), similarities=())
