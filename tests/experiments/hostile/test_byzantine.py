"""Attacks of one compile, choices of settings, and claims that can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("flax")

import jaxmedian as jm
from experiments.common.training.outcomes import Runs
from experiments.common.training.rules import RULES, place_rule, rule_noise
from experiments.hostile import byzantine
from experiments.hostile.byzantine import attacks, trials, worst_cases

WORKERS = (3, 4)
GRADS = jax.random.normal(jax.random.key(0), (5, 6))
PARAMS = jnp.zeros(6)


def scene(rule="noisy vote", scale=0.1):
    key = jax.random.key(1)
    placed = place_rule(RULES[rule], 5, 2, key, scale=scale)
    return attacks.Scene(
        WORKERS, jax.random.key(2), rule_noise(RULES[rule], key, scale), placed
    )


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_an_attack_replaces_the_hostile_alone(name):
    attack = attacks.ATTACKS[name]
    tx = attacks.attack_gradients([attack], scene(), 0)
    sent, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(sent[:3], GRADS[:3])
    if attack.gradients is None:
        np.testing.assert_array_equal(sent, GRADS)
    elif name != "near-tie collusion":  # which may find nothing to turn
        assert not np.array_equal(sent[3:], GRADS[3:])


def test_one_of_applies_one_and_leaves_the_others_where_they_were():
    choice = [attacks.ATTACKS[name] for name in ("Gaussian", "sign flip")]
    alone = jm.attacks.gaussian(WORKERS, jax.random.key(2), scale=10.0)

    @jax.jit
    def twice(which):
        tx = attacks.attack_gradients(choice, scene(), which)
        first, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        second, state = tx.update(GRADS, state, PARAMS)
        return first, second, state[0].count

    first, second, count = twice(0)
    assert count == 2
    expected, state = jax.jit(lambda: alone.update(GRADS, alone.init(PARAMS)))()
    np.testing.assert_array_equal(first, expected)
    expected, _ = jax.jit(alone.update)(GRADS, state)
    np.testing.assert_array_equal(second, expected)
    flipped, _, count = twice(1)
    assert count == 0
    np.testing.assert_allclose(flipped[3], -GRADS[:3].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("num_classes", [10, 3])
def test_labels_are_flipped_under_that_attack_only(num_classes):
    labels_of = jnp.arange(10).reshape(5, 2) % num_classes
    batch = {"labels": labels_of, "images": jnp.ones((5, 2, 1))}
    choice = list(attacks.ATTACKS.values())
    flip = list(attacks.ATTACKS).index("label flip")

    def labels(which):
        serve = jm.full_batch(batch)
        spoilt = attacks.spoil_batches(
            choice, WORKERS, num_classes, serve, jnp.int32(which)
        )
        return np.asarray(spoilt(jax.random.key(0), 0)["labels"])

    np.testing.assert_array_equal(labels(flip - 1), batch["labels"])
    np.testing.assert_array_equal(labels(flip)[:3], batch["labels"][:3])
    flipped = num_classes - 1 - batch["labels"][3:]
    np.testing.assert_array_equal(labels(flip)[3:], flipped)


def test_the_honest_share_all_digits_and_the_hostile_know_all():
    config = byzantine.Config(num_workers=7, hostile=(2,))
    labels = np.random.default_rng(0).integers(0, 10, 300)
    split = trials.share_out(labels, config, alpha=0.1, f=2)
    held = np.split(split.order, split.offsets[1:-1])
    assert len(held) == 7
    assert sorted(np.concatenate(held[:5])) == list(range(300))
    assert all(sorted(row) == list(range(300)) for row in held[5:])
    assert trials.hostile_workers(config, 2) == (5, 6)


def trial(**reached):
    """Test accuracy = validation accuracy, of two settings and three seeds."""
    runs = {}
    for name, accuracy in reached.items():
        rows = np.array(accuracy)[:, None, None] + np.array([-0.01, 0, 0.01])[:, None]
        runs[name.replace("_", " ")] = Runs(
            {"scale": np.array([0.1, 0.2])},
            {"validation_accuracy": rows, "test_accuracy": rows},
        )
    return trials.Trial("vote", "alpha = 0.1", 2, runs)


def test_the_prepared_take_the_best_worst_case_and_the_unprepared_the_best():
    found = trial(none=[0.9, 0.8], sign_flip=[0.2, 0.6], mimic=[0.85, 0.5])
    assert found.unprepared() == 0
    assert found.prepared() == 1
    name, accuracy = found.worst(0)
    assert name == "sign flip"
    np.testing.assert_allclose(accuracy, [0.19, 0.2, 0.21])
    assert found.worst(1)[0] == "mimic"


def test_no_attack_is_never_the_worst_attack():
    assert trial(none=[0.1, 0.1], mimic=[0.5, 0.5]).worst(0)[0] == "mimic"


def test_claims_can_fail():
    broken, sound = (
        {"inf": [0.1, 0.1], "NaN": [0.1, 0.1]},
        {
            "inf": [0.8, 0.8],
            "NaN": [0.8, 0.8],
        },
    )
    none = {"none": [0.9, 0.9]}
    met = {"mean": trial(**none, **broken), "vote": trial(**none, **sound)}
    assert worst_cases.broken_claim(met, "", judged=True).holds is True
    met["vote"] = trial(**none, **broken)
    assert worst_cases.broken_claim(met, "", judged=True).holds is False
    assert worst_cases.broken_claim({"vote": met["vote"]}, "", judged=True) is None

    def voters(everywhere, deciding):
        runs = trial(
            none=[0.9, 0.9], everywhere=everywhere, pivotal_votes=deciding
        ).runs
        runs = {**runs, "inner product, 1e6": runs["everywhere"]}
        return {"vote": trials.Trial("vote", "alpha = 0.1", 2, runs)}

    same, milder = voters([0.4, 0.4], [0.4, 0.4]), voters([0.4, 0.4], [0.6, 0.6])
    assert worst_cases.pivotal_claim(same, "", judged=True).holds is True
    assert worst_cases.pivotal_claim(milder, "", judged=True).holds is False


def test_the_price_of_noise_is_that_of_the_setting_chosen_in_peace():
    plain = trial(none=[0.8, 0.8], mimic=[0.6, 0.6])
    noisy = trial(none=[0.9, 0.8], mimic=[0.3, 0.7])  # better only if prepared
    found = worst_cases.price_claim({"median": plain, "noisy median": noisy}, "", True)
    assert found.holds is True
    assert "noisy median 0.300 +- 0.000 below" in found.here
    sturdy = trial(none=[0.9, 0.8], mimic=[0.65, 0.7])
    found = worst_cases.price_claim({"median": plain, "noisy median": sturdy}, "", True)
    assert found.holds is False
    same = trial(none=[0.9, 0.8], mimic=[0.5, 0.3])  # peace and attack choose alike
    met = {"median": plain, "noisy median": same}
    assert worst_cases.price_claim(met, "", True) is None


def test_what_is_refused():
    with pytest.raises(ValueError, match="`hostile` must be numbers from 1 to 5"):
        byzantine.Config(hostile=(6,))
    with pytest.raises(ValueError, match="--attacks takes some of"):
        attacks.chosen_attacks(["none"])
    assert list(attacks.chosen_attacks(["mimic"])) == ["none", "mimic"]
