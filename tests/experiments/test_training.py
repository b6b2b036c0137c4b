"""Tuned runs: the grid, the choice on validation digits, batches without copies."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

import jaxmedian as jm
from experiments.common import training
from experiments.common.rules import RULES, build_rule, chosen_rules, rule_grid


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
    return training.Runs({"rate": np.array([0.1, 1.0])}, metrics)


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
    assert np.isnan(training.standard_error(np.ones((1, 4)))).all()
    assert training.report(np.array([0.5, 0.7])) == "0.600 +- 0.100"


def test_a_grid_has_every_combination():
    found = training.grid(rate=(0.1, 1.0), scale=(2.0, 3.0, 4.0))
    pairs = set(zip(found["rate"].tolist(), found["scale"].tolist(), strict=True))
    assert pairs == {(r, s) for r in (0.1, 1.0) for s in (2.0, 3.0, 4.0)}


def test_workers_are_served_their_own_samples():
    labels = np.repeat(np.arange(3), [10, 4, 1])
    split = jm.splits.by_label(labels, 3)
    samples = {"images": jnp.arange(15.0)[:, None], "labels": jnp.asarray(labels)}
    indices, sizes = training.padded(split, 15)
    next_batch = training.serve(samples, indices, sizes, 6)
    drawn = jax.vmap(lambda key: next_batch(key, 0))(
        jax.random.split(jax.random.key(0), 50)
    )
    for worker in range(3):
        assert (np.asarray(drawn["labels"])[:, worker] == worker).all()
        own = np.asarray(drawn["images"])[:, worker, :, 0].astype(int)
        assert set(own.ravel()) == set(np.flatnonzero(labels == worker))


def test_parts_are_disjoint_and_as_large_as_said():
    pytest.importorskip("sklearn")
    problem = training.load_problem("digits8x8", hidden=2, num_seeds=2)
    sizes = [len(part["labels"]) for part in problem[3:]]
    assert sizes == [1258, 179, 360]
    rows = [np.asarray(part["images"]) for part in problem[3:]]
    assert sum(map(len, rows)) == 1797
    assert jax.tree.leaves(problem.params)[0].shape[0] == 2
    first, second = jax.tree.leaves(problem.params)[-1]
    assert not np.array_equal(first, second)  # each seed has a network of its own


def test_every_rule_has_its_settings_and_unknown_ones_are_refused():
    for rule in RULES.values():
        settings = rule_grid(rule, (0.1,), (1.0, 2.0), (0.5, 0.6, 0.7))
        assert len(settings["rate"]) == (1 if rule.unit_steps else 2) * (
            3 if rule.coupling else 1
        )
        assert build_rule(rule, 10)(key=0, **{k: v[0] for k, v in settings.items()})
    assert list(chosen_rules(())) == list(RULES)
    with pytest.raises(ValueError, match="--rules"):
        chosen_rules(["krumm"])
    with pytest.raises(ValueError, match="`data`"):
        training.load_problem("imagenet", 2, 1)


def test_docstring_examples():
    assert doctest.testmod(training).failed == 0
