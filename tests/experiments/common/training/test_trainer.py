"""Tuned runs: the grid, the choice on validation digits, batches without copies."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

import jaxmedian as jm
from experiments.common.training import trainer
from experiments.common.training.rules import (
    RULES,
    build_rule,
    chosen_rules,
    noisy_rule,
    place_rule,
    rule_grid,
)


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
    return trainer.Runs({"rate": np.array([0.1, 1.0])}, metrics)


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
    assert np.isnan(trainer.standard_error(np.ones((1, 4)))).all()
    assert trainer.report(np.array([0.5, 0.7])) == "0.600 +- 0.100"


def test_a_grid_has_every_combination():
    found = trainer.grid(rate=(0.1, 1.0), scale=(2.0, 3.0, 4.0))
    pairs = set(zip(found["rate"].tolist(), found["scale"].tolist(), strict=True))
    assert pairs == {(r, s) for r in (0.1, 1.0) for s in (2.0, 3.0, 4.0)}


def test_workers_are_served_their_own_samples():
    labels = np.repeat(np.arange(3), [10, 4, 1])
    split = jm.splits.by_label(labels, 3)
    samples = {"images": jnp.arange(15.0)[:, None], "labels": jnp.asarray(labels)}
    indices, sizes = trainer.padded(split, 15)
    next_batch = trainer.serve(samples, indices, sizes, 6)
    drawn = jax.vmap(lambda key: next_batch(key, 0))(
        jax.random.split(jax.random.key(0), 50)
    )
    for worker in range(3):
        assert (np.asarray(drawn["labels"])[:, worker] == worker).all()
        own = np.asarray(drawn["images"])[:, worker, :, 0].astype(int)
        assert set(own.ravel()) == set(np.flatnonzero(labels == worker))


def test_parts_are_disjoint_and_as_large_as_said():
    pytest.importorskip("sklearn")
    problem = trainer.load_problem("digits8x8", hidden=2, num_seeds=2)
    sizes = [len(part["labels"]) for part in problem[3:]]
    assert sizes == [1258, 179, 360]
    rows = [np.asarray(part["images"]) for part in problem[3:]]
    assert sum(map(len, rows)) == 1797
    assert jax.tree.leaves(problem.params)[0].shape[0] == 2
    first, second = jax.tree.leaves(problem.params)[-1]
    assert not np.array_equal(first, second)  # each seed has a network of its own


def test_every_rule_has_its_settings_and_unknown_ones_are_refused():
    grads, params = jnp.ones((11, 3)), jnp.ones(3)
    for rule in RULES.values():
        settings = rule_grid(rule, (0.1,), (1.0, 2.0), (0.5, 0.6, 0.7), (8.0, 9.0))
        assert len(settings["rate"]) == (1 if rule.unit_steps else 2) * (
            3 if rule.coupling else 1
        ) * (2 if rule.clips else 1)
        build = build_rule(rule, num_steps=10, num_workers=11, f=2)
        tx = build(key=0, **{k: v[0] for k, v in settings.items()})
        updates = jax.eval_shape(
            lambda tx=tx: tx.update(grads, tx.init(params), params)[0]
        )
        assert updates.shape == params.shape
    left_out = set(RULES) - set(chosen_rules(()))
    assert left_out == {
        noisy_rule(name, coupling)
        for name in (
            *("geometric median", "Krum", "multi-Krum", "Bulyan"),
            "centered clipping",
        )
        for coupling in jm.noise.COUPLINGS
    }
    with pytest.raises(ValueError, match="--rules"):
        chosen_rules(["krumm"])
    with pytest.raises(ValueError, match="`data`"):
        trainer.load_problem("imagenet", 2, 1)


def test_a_rule_is_told_of_buckets_where_it_sees_buckets():
    assert RULES["trimmed mean"].terms(11, 4)[:2] == (11, 4)
    behind = RULES["Krum after bucketing"].terms(11, 2)
    assert (behind.num_workers, behind.f, behind.neighbors) == (6, 2, 2)
    # Four spoilt buckets of six are no minority: the most it can be told is two.
    assert RULES["trimmed mean after bucketing"].terms(11, 4).f == 2


@pytest.mark.parametrize("name", ["vote", "median", "trimmed mean", "Krum"])
def test_noise_of_scale_zero_changes_no_rule(name):
    grads, params = jax.random.normal(jax.random.key(1), (11, 5)), jnp.zeros(5)

    def updates(rule, **tuned):
        tx = place_rule(RULES[rule], 11, 2, jax.random.key(0), **tuned)
        return jax.jit(lambda: tx.update(grads, tx.init(params), params)[0])()

    noisy = updates(noisy_rule(name, "systematic"), scale=0.0)
    np.testing.assert_array_equal(noisy, updates(name))


def test_docstring_examples():
    assert doctest.testmod(trainer).failed == 0
