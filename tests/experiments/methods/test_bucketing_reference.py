"""The long tail: who holds what, how test digits count, and claims that can fail."""

import doctest
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("flax")

from experiments.common.training.outcomes import Chosen
from experiments.methods import bucketing_reference

TAIL = 0.5


def test_class_i_keeps_its_share_and_workers_hold_sorted_blocks():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), [96, 100, 96, 80, 64]))
    split = bucketing_reference.sorted_tail(labels, TAIL, 7)
    kept = labels[split.order]
    assert np.bincount(kept).tolist() == [96, 50, 24, 10, 4]
    assert len(set(split.order.tolist())) == split.order.size
    assert split.sizes.max() - split.sizes.min() <= 1
    blocks = np.split(kept, split.offsets[1:-1])
    for block, after in itertools.pairwise(blocks):
        assert block.max() <= after.min()


def test_weighted_digits_count_as_on_a_long_tailed_test_set():
    """Expected accuracy where class i appears n_i TAIL^i times."""
    pytest.importorskip("sklearn")
    problem = bucketing_reference.Config(hidden=4, num_seeds=1).problem()
    test = bucketing_reference._with_long_tails(problem, TAIL).test
    labels = np.asarray(test["labels"])

    @jax.jit
    def accuracy(weights):
        return problem.model.accuracy(problem.model.params, test | {"weights": weights})

    by_class = [accuracy(jnp.float32(labels == c)) for c in range(10)]
    shares = np.bincount(labels) * TAIL ** np.arange(10)
    expected = np.average(by_class, weights=shares)
    np.testing.assert_allclose(accuracy(test["weights"]), expected, rtol=1e-5)


def reached(**accuracy):
    return {
        name.replace("_", " "): Chosen("", {}, np.array([a - 0.01, a, a + 0.01]))
        for name, a in accuracy.items()
    }


def test_the_order_is_judged_by_paired_differences():
    config = bucketing_reference.Config()
    held = reached(mean=0.9, median_after_bucketing=0.8, median=0.85)
    *_, first, second = bucketing_reference._claims(config, held)
    assert first.holds is True
    assert second.holds is False
    assert "by 10.00 +- 0.00 points" in first.here
    assert first.paper == "by 3.16 points"


def test_what_is_refused():
    with pytest.raises(ValueError, match="`tail` must be above 0"):
        bucketing_reference.Config(tail=0.0)


def test_docstring_examples():
    assert doctest.testmod(bucketing_reference).failed == 0
