"""The rules that sweeps compare: their settings, buckets and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

import jaxmedian as jm
from experiments.common.training.rules import (
    RULES,
    build_rule,
    chosen_rules,
    noisy_rule,
    place_rule,
    rule_grid,
)


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
