"""Attacks against the formulas they are named after, written out in NumPy float64."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from harness import enable_x64, first_update, params_like
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M = 7
HOSTILE = [1, 4]
HONEST = [0, 2, 3, 5, 6]


def gradients(size=40, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, size=(M, size)).astype(dtype)


def largest_scale(num_workers, num_hostile):
    """Baruch et al., Algorithm 3."""
    import scipy.stats

    supporters = num_workers // 2 + 1 - num_hostile
    honest = num_workers - num_hostile
    return scipy.stats.norm.ppf((honest - supporters) / honest)


# attack -> (transform, what the hostile send, given the honest rows)
FORMULAS = {
    "sign_flip": (jm.attacks.sign_flip(HOSTILE), lambda honest: -honest.mean(axis=0)),
    "inner_product_manipulation": (
        jm.attacks.inner_product_manipulation(HOSTILE, scale=0.7),
        lambda honest: -0.7 * honest.mean(axis=0),
    ),
    "a_little_is_enough": (
        jm.attacks.a_little_is_enough(HOSTILE, scale=1.5),
        lambda honest: honest.mean(axis=0) + 1.5 * honest.std(axis=0, ddof=1),
    ),
    "a_little_is_enough, its own scale": (
        jm.attacks.a_little_is_enough(HOSTILE),
        lambda honest: (
            honest.mean(axis=0) + largest_scale(M, 2) * honest.std(axis=0, ddof=1)
        ),
    ),
    "mimic": (jm.attacks.mimic(HOSTILE, target=2), lambda honest: honest[2]),
    "inf": (
        jm.attacks.inf(HOSTILE, sign=-1),
        lambda honest: np.full(honest.shape[1], -np.inf),
    ),
    "nan": (jm.attacks.nan(HOSTILE), lambda honest: np.full(honest.shape[1], np.nan)),
}


@jax.jit
def send_all(grads, mask):
    return {
        name: attack.update(grads, attack.init(None), worker_mask=mask)[0]
        for name, (attack, _) in FORMULAS.items()
    }


# --- formulas -------------------------------------------------------------------------


def test_the_hostile_send_the_formula_and_the_honest_their_own():
    grads = gradients()
    for name, sent in send_all(grads, np.ones(M, bool)).items():
        sent = np.asarray(sent)
        np.testing.assert_array_equal(sent[HONEST], grads[HONEST], err_msg=name)
        expected = FORMULAS[name][1](grads[HONEST].astype(np.float64))
        for worker in HOSTILE:
            np.testing.assert_allclose(
                sent[worker], expected, rtol=2e-6, atol=1e-6, err_msg=name
            )


def test_in_float64_the_formulas_hold_to_1e_12():
    with enable_x64(True):
        grads = gradients(dtype=np.float64)
        for name, sent in send_all(grads, np.ones(M, bool)).items():
            assert sent.dtype == np.float64
            expected = FORMULAS[name][1](grads[HONEST])
            np.testing.assert_allclose(
                sent[HOSTILE[0]], expected, rtol=1e-12, atol=1e-12, err_msg=name
            )


def test_the_absent_are_neither_honest_nor_hostile():
    grads = gradients()
    mask = np.array([True, True, False, True, False, True, True])
    grads[2] = np.nan  # an absent worker must not spoil the statistics
    others = [0, 2, 3, 4, 5, 6]
    for name, sent in send_all(grads, mask).items():
        sent = np.asarray(sent)
        expected = FORMULAS[name][1](grads[[0, 3, 5, 6]].astype(np.float64))
        np.testing.assert_allclose(
            sent[1], expected, rtol=2e-6, atol=1e-6, err_msg=name
        )
        np.testing.assert_array_equal(sent[others], grads[others], err_msg=name)


def test_gaussian_numbers_are_the_documented_ones():
    """Worker i sends what `add_worker_noise` with the same key adds to zeros."""
    grads = gradients(500)
    sent = first_update(jm.attacks.gaussian(HOSTILE, 5, scale=3.0, mean=2.0), grads)
    key = jax.random.fold_in(jax.random.key(5), np.uint32(reference.HOSTILE_NOISE))
    noise = jm.add_worker_noise(jm.noise.gaussian(3.0), key)
    expected = 2.0 + first_update(noise, np.zeros_like(grads))
    np.testing.assert_allclose(sent[HOSTILE], expected[HOSTILE], rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(sent[HONEST], grads[HONEST])
    deviation = 3.0 / np.sqrt(2 * 500)
    assert abs(sent[HOSTILE].mean() - 2.0) < 6 * deviation


# --- who is hostile -------------------------------------------------------------------


def who_is_nan(sent):
    return np.flatnonzero(np.isnan(sent).all(axis=1))


def drawn(key, *, step, num_workers, count, present=None):
    """The documented choice: the first present ones of the step's permutation."""
    step_key = jax.random.fold_in(key, step)
    order = jax.random.permutation(
        jax.random.fold_in(step_key, np.uint32(reference.HOSTILE_CHOICE)), num_workers
    )
    taken = [int(i) for i in order if present is None or present[int(i)]]
    return np.sort(taken[:count])


def test_workers_are_drawn_anew_each_step():
    key = jax.random.key(3)
    attack = jm.attacks.nan(3, key)
    grads = gradients(4)
    params = params_like(grads)
    state = attack.init(params)
    update = jax.jit(attack.update)
    seen = set()
    for step in range(20):
        sent, state = update(grads, state, params)
        expected = drawn(key, step=step, num_workers=M, count=3)
        np.testing.assert_array_equal(who_is_nan(np.asarray(sent)), expected)
        seen.update(expected.tolist())
    assert seen == set(range(M))


def test_workers_are_drawn_among_those_present():
    key = jax.random.key(3)
    mask = np.array([True, False, True, True, False, False, False])
    for count in (1, 2, 5):
        attack = jm.attacks.nan(count, key)
        sent = first_update(attack, gradients(4), worker_mask=mask)
        expected = drawn(key, step=0, num_workers=M, count=count, present=mask)
        np.testing.assert_array_equal(who_is_nan(sent), expected)
        assert len(expected) == min(count, 3)


def test_attacks_stand_in_a_chain_and_a_tree():
    grads = {"w": gradients(6).reshape(M, 2, 3), "b": gradients(1)[:, 0]}
    chain = optax.chain(jm.attacks.sign_flip(HOSTILE), jm.worker_mean())
    update = first_update(chain, grads)
    for name, leaf in grads.items():
        honest = leaf[HONEST].astype(np.float64)
        expected = honest.mean(axis=0) * (5 - 2) / 7
        np.testing.assert_allclose(update[name], expected, rtol=1e-5, atol=1e-6)


def test_a_scale_may_be_traced():
    grads = gradients()

    @jax.jit
    def send(scale):
        attack = jm.attacks.inner_product_manipulation(HOSTILE, scale=scale)
        return attack.update(grads, attack.init(None))[0]

    sent = jax.vmap(send)(jnp.float32([0.0, 3.0]))
    np.testing.assert_array_equal(sent[0, HOSTILE], np.zeros((2, 40)))
    expected = -3.0 * grads[HONEST].mean(axis=0)
    np.testing.assert_allclose(sent[1, 4], expected, rtol=1e-5, atol=1e-6)


def test_attacks_on_a_mesh_send_what_they_send_on_one_device():
    num_workers, hostile = 8, [1, 6]
    grads = np.random.default_rng(2).normal(size=(num_workers, 33)).astype(np.float32)
    mask = np.arange(num_workers) != 3
    noise = jm.noise.gaussian(0.5)

    def attacks(axis_name):
        on = {"axis_name": axis_name}
        return {
            "sign_flip": jm.attacks.sign_flip(hostile, **on),
            "a_little_is_enough": jm.attacks.a_little_is_enough(
                hostile, scale=1.5, **on
            ),
            "mimic": jm.attacks.mimic(hostile, target=3, **on),
            "gaussian": jm.attacks.gaussian(2, 0, **on),
            "nan": jm.attacks.nan(3, 1, **on),
            "near_tie_collusion": jm.attacks.near_tie_collusion(hostile, **on),
            "pivotal_votes": jm.attacks.pivotal_votes(hostile, noise, 0, **on),
        }

    def send_all(axis_name):
        def send(grads, mask):
            return {
                name: attack.update(grads, attack.init(None), worker_mask=mask)[0]
                for name, attack in attacks(axis_name).items()
            }

        return send

    expected = jax.jit(send_all(None))(grads, mask)
    mesh = jax.make_mesh(
        (4,), ("w",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
    )
    on_mesh = jax.shard_map(send_all("w"), mesh=mesh, in_specs=P("w"), out_specs=P("w"))
    got = jax.jit(on_mesh)(grads, mask)
    for name in expected:
        exact = name not in ("sign_flip", "a_little_is_enough")
        tolerance = 0 if exact else 2e-6
        np.testing.assert_allclose(
            got[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


# --- attacks on votes -----------------------------------------------------------------


def test_near_tie_collusion_is_the_slow_loop():
    grads = gradients(300)
    sent = first_update(jm.attacks.near_tie_collusion(HOSTILE, margin=1), grads)
    lies = 0
    for j in range(grads.shape[1]):
        honest = grads[HONEST, j].astype(np.float64)
        if abs(np.sign(honest).sum()) <= 1:
            lies += 1
            expected = np.full(2, -np.sign(honest.mean()) * np.inf)
        else:
            expected = grads[HOSTILE, j]
        np.testing.assert_array_equal(sent[HOSTILE, j], expected)
    np.testing.assert_array_equal(sent[HONEST], grads[HONEST])
    assert 50 < lies < 250


def test_near_tie_collusion_turns_every_vote_it_can():
    """f liars turn a count below f, and the others are not worth a lie."""
    grads = gradients(2000)
    vote = jm.majority_vote()
    honest_vote = np.sign(np.sign(grads[HONEST]).sum(axis=0))
    chain = optax.chain(jm.attacks.near_tie_collusion(HOSTILE), vote)
    result = first_update(chain, grads)
    against_mean = -np.sign(grads[HONEST].mean(axis=0, dtype=np.float64))
    close = np.abs(np.sign(grads[HONEST]).sum(axis=0)) < 2
    assert close.sum() > 300
    np.testing.assert_array_equal(result[close], against_mean[close])
    np.testing.assert_array_equal(result[~close], honest_vote[~close])


@pytest.mark.parametrize(
    ("noise", "ties"),
    [
        (None, "zero"),
        (jm.noise.gaussian(2.0), "random"),
        (jm.noise.uniform(2.0, "systematic"), "positive"),
    ],
)
def test_pivotal_votes_do_the_harm_of_lying_always_with_the_fewest_lies(noise, ties):
    num_workers, hostile = 10, [2, 3, 7]
    rng = np.random.default_rng(4)
    grads = rng.normal(0.3, 1.0, size=(num_workers, 2000)).astype(np.float32)
    grads[:, :200] = rng.integers(-1, 2, size=(num_workers, 200))  # zeros and ties
    key = 5 if noise is not None or ties == "random" else None
    vote = jm.majority_vote(noise, key, ties=ties)
    attack = jm.attacks.pivotal_votes(hostile, noise, key, ties=ties)
    honest = [i for i in range(num_workers) if i not in hostile]
    means = grads[honest].mean(axis=0, dtype=np.float64)
    means[np.abs(means) < 1e-6] = 0  # sums of integers, exact in float32
    always = grads.copy()
    always[np.ix_(hostile, np.flatnonzero(means))] = (
        -np.sign(means[means != 0]) * np.inf
    )
    truthful = first_update(vote, grads)
    all_lies = first_update(vote, always)
    sent = first_update(attack, grads)
    harmed = first_update(vote, sent)
    np.testing.assert_array_equal(harmed, all_lies)
    np.testing.assert_array_equal(sent[honest], grads[honest])
    lies = (sent != grads)[hostile]
    assert not lies[:, truthful == all_lies].any()  # the truth would have done
    assert (lies.sum(axis=0) > 0).sum() > 100
    # No choice of fewer liars does as much: try them all.
    fewest = np.full(grads.shape[1], len(hostile))
    for size in (2, 1, 0):
        for liars in itertools.combinations(hostile, size):
            some = grads.copy()
            some[list(liars)] = always[list(liars)]
            fewest[first_update(vote, some) == all_lies] = size
    np.testing.assert_array_equal(lies.sum(axis=0), fewest)
    assert lies.mean() < 0.45  # of the coordinates, against all of them


def by_groups(tx):
    """One label a leaf: `optax.partition` hides the leaves of other groups."""
    return optax.partition({"x": tx, "y": tx}, {"a": "x", "b": "y"})


def test_pivotal_votes_know_the_noise_of_each_group_of_a_partition():
    noise = jm.noise.gaussian(1.0)
    grads = {"a": gradients(400), "b": gradients(400, seed=1)}
    ends = []
    for attack in (
        jm.attacks.pivotal_votes(HOSTILE, noise, 0),
        jm.attacks.inner_product_manipulation(HOSTILE, scale=1e30),  # who lies always
    ):
        attacked = optax.chain(attack, jm.majority_vote(noise, 0))
        ends.append(first_update(by_groups(attacked), grads))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_gaussian_numbers_of_groups_are_those_of_the_whole_tree():
    grads = {"a": gradients(40), "b": gradients(40, seed=1)}
    tx = jm.attacks.gaussian(HOSTILE, 0, scale=2.0)
    whole, groups = first_update(tx, grads), first_update(by_groups(tx), grads)
    jax.tree.map(np.testing.assert_array_equal, whole, groups)
    assert not np.array_equal(whole["a"][1], whole["b"][1])


@pytest.mark.parametrize("name", ["near_tie_collusion", "pivotal_votes"])
def test_attacks_that_count_heads_refuse_weights(name):
    tx = getattr(jm.attacks, name)(HOSTILE)
    with pytest.raises(ValueError, match=f"`{name}` takes no `worker_weights`"):
        tx.update(gradients(), tx.init(None), worker_weights=jnp.ones(M))


def test_pivotal_votes_follow_the_vote_from_step_to_step():
    noise = jm.noise.gaussian(2.0)
    chain = optax.chain(
        jm.attacks.pivotal_votes([0, 1], noise, 5), jm.majority_vote(noise, 5)
    )
    grads = gradients(500)
    always = grads.copy()
    always[[0, 1]] = -np.sign(grads[2:].mean(axis=0, dtype=np.float64)) * np.inf
    vote = jm.majority_vote(noise, 5)
    params = params_like(grads)
    state, vote_state = chain.init(params), vote.init(params)
    for _ in range(3):
        got, state = jax.jit(chain.update)(grads, state, params)
        expected, vote_state = jax.jit(vote.update)(always, vote_state, params)
        np.testing.assert_array_equal(got, expected)


# --- labels ---------------------------------------------------------------------------


def test_labels_are_flipped_of_the_hostile_alone():
    labels = np.random.default_rng(0).integers(0, 10, size=(M, 5))
    data = {"x": jnp.ones((M, 5, 2)), "labels": jnp.asarray(labels)}
    batches = jm.attacks.label_flip(jm.full_batch(data), HOSTILE, num_classes=10)
    batch = jax.jit(lambda batches: batches(jax.random.key(0), 0))(batches)
    expected = labels.copy()
    expected[HOSTILE] = 9 - labels[HOSTILE]
    np.testing.assert_array_equal(batch["labels"], expected)
    np.testing.assert_array_equal(batch["x"], data["x"])


def test_labels_may_stand_anywhere_in_a_batch_and_workers_be_drawn():
    labels = jnp.zeros((M, 5), jnp.int32)

    def next_batch(key, step):
        return jnp.ones((M, 5, 2)), labels

    key = jax.random.key(1)
    batches = jm.attacks.label_flip(next_batch, 2, 4, key, labels=1)
    for step in (0, 1):
        x, flipped = batches(jax.random.key(0), jnp.int32(step))
        assert x.shape == (M, 5, 2)
        expected = drawn(key, step=step, num_workers=M, count=2)
        np.testing.assert_array_equal(np.flatnonzero(flipped[:, 0] == 3), expected)
    alone = jm.attacks.label_flip(jm.full_batch(labels), [0], 4, labels=None)
    assert alone(None, 0).sum() == 15


def test_a_run_learns_from_flipped_labels():
    """One worker, all of whose labels are turned round, learns the opposite."""
    data = {"labels": jnp.array([[0, 0, 0, 1]] * 3)}

    def loss(params, batch):
        return jnp.mean(jnp.square(params - batch["labels"].astype(jnp.float32)))

    def final(batches):
        result = jm.run(
            loss,
            optax.chain(jm.worker_mean(), optax.sgd(0.25)),
            jnp.float32(0.5),
            batches,
            60,
            jax.random.key(0),
        )
        return float(result.params)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        honest = final(jm.full_batch(data))
        flipped = final(jm.attacks.label_flip(jm.full_batch(data), [2], 2))
    assert abs(honest - 0.25) < 1e-4
    assert abs(flipped - (0.25 * 2 + 0.75) / 3) < 1e-4


# --- errors ---------------------------------------------------------------------------


def test_bad_workers_are_refused():
    with pytest.raises(TypeError, match="`sign_flip`: `workers` must be numbers of"):
        jm.attacks.sign_flip("both")
    with pytest.raises(TypeError, match=r"or how many to draw each step; got 0\.5"):
        jm.attacks.sign_flip(0.5)
    with pytest.raises(ValueError, match="must be different numbers >= 0"):
        jm.attacks.sign_flip([1, 1])
    with pytest.raises(ValueError, match="must be different numbers >= 0"):
        jm.attacks.sign_flip([-1])
    with pytest.raises(ValueError, match="`workers` must be >= 0; got -2"):
        jm.attacks.sign_flip(-2, 0)
    attack = jm.attacks.sign_flip([0, 3])
    with pytest.raises(ValueError, match=r"numbers from 0 to 2 here; got \[0, 3\]"):
        attack.update(jnp.ones((3, 2)), attack.init(None))
    attack = jm.attacks.sign_flip(3, 0)
    with pytest.raises(ValueError, match="at least one honest worker: 3 of 3"):
        attack.update(jnp.ones((3, 2)), attack.init(None))


def test_keys_without_use_and_missing_keys_are_refused():
    with pytest.raises(ValueError, match="`nan` was given a `key` but nothing to draw"):
        jm.attacks.nan([0], 5)
    with pytest.raises(ValueError, match="`nan` needs a `key` for what it draws"):
        jm.attacks.nan(2)
    with pytest.raises(ValueError, match="`gaussian` needs a `key`"):
        jm.attacks.gaussian([0], None)
    with pytest.raises(ValueError, match="`pivotal_votes` needs a `key`"):
        jm.attacks.pivotal_votes([0], jm.noise.gaussian(0.1))
    with pytest.raises(ValueError, match="`pivotal_votes` needs a `key`"):
        jm.attacks.pivotal_votes(2, jm.noise.gaussian(0.1), 0)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="`scale` must be finite"):
        jm.attacks.inner_product_manipulation([0], scale=float("nan"))
    with pytest.raises(TypeError, match="`scale` must be a number"):
        jm.attacks.a_little_is_enough([0], scale="1")
    with pytest.raises(ValueError, match="`sign` must be 1 or -1; got 0"):
        jm.attacks.inf([0], sign=0)
    with pytest.raises(ValueError, match="`margin` must be >= 0"):
        jm.attacks.near_tie_collusion([0], margin=-1)
    with pytest.raises(ValueError, match="`ties` must be one of"):
        jm.attacks.pivotal_votes([0], ties="never")
    for scale in (jm.noise.relative(0.1), jm.noise.per_coordinate(1.0, "sd")):
        with pytest.raises(ValueError, match="`pivotal_votes` must have a number or"):
            jm.attacks.pivotal_votes([0], jm.noise.gaussian(scale), 0)
    attack = jm.attacks.mimic([0], target=2)
    with pytest.raises(ValueError, match="`target` 2 is none of the 2 honest workers"):
        attack.update(jnp.ones((3, 2)), attack.init(None))
    attack = jm.attacks.a_little_is_enough([0, 1, 2])
    with pytest.raises(ValueError, match="need nobody's support: pass one"):
        attack.update(jnp.ones((4, 2)), attack.init(None))
    attack = jm.attacks.a_little_is_enough([1])
    with pytest.raises(ValueError, match=r"1 hostile of 2 .* that of 1 of 1 honest"):
        attack.update(jnp.ones((2, 2)), attack.init(None))


@pytest.mark.parametrize("num_workers", [5, 8, 10, 11, 20])
@pytest.mark.parametrize("num_hostile", [1, 2, 3])
def test_a_little_that_would_be_nothing_wants_a_scale(num_workers, num_hostile):
    """By the formula of Baruch et al. few hostile send the mean, or less."""
    attack = jm.attacks.a_little_is_enough(range(num_hostile))
    rows = np.random.default_rng(num_workers).normal(size=(num_workers, 3))
    rows = rows.astype(np.float32)
    honest = rows[num_hostile:]
    supporters = np.floor(num_workers / 2 + 1) - num_hostile
    if supporters <= 0 or supporters / len(honest) >= 0.5:
        with pytest.raises(ValueError, match="has no `scale` of its own"):
            attack.update(jnp.asarray(rows), attack.init(None))
        return
    sent = np.asarray(attack.update(jnp.asarray(rows), attack.init(None))[0])[0]
    assert (sent > honest.mean(axis=0)).all()


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_without_hostile_workers_a_little_is_not_asked_for_its_scale(num_workers):
    attack = jm.attacks.a_little_is_enough([])
    grads = jnp.arange(2.0 * num_workers).reshape(num_workers, 2)
    sent, _ = attack.update(grads, attack.init(None))
    assert sent.tolist() == grads.tolist()


def test_labels_of_no_class_stay_and_batches_keep_their_kind():
    """Padding of -1, and a label beyond the classes; an OrderedDict stays one."""
    labels = jnp.array([[-1, 0, 2, 3]] * 2, jnp.int8)
    data = collections.OrderedDict(images=jnp.zeros((2, 4)), labels=labels)
    batches = jm.attacks.label_flip(jm.full_batch(data), [1], 3)
    batch = batches(None, 0)
    assert type(batch) is collections.OrderedDict
    assert list(batch) == ["images", "labels"]
    assert batch["labels"].tolist() == [[-1, 0, 2, 3], [-1, 2, 0, 3]]
    assert data["labels"] is labels
    with pytest.raises(ValueError, match="got 129 classes for labels of int8, which"):
        jm.attacks.label_flip(jm.full_batch(data), [1], 129)(None, 0)


def test_bad_labels_are_refused():
    batches = jm.full_batch({"y": jnp.ones((M, 2), jnp.int32)})
    with pytest.raises(ValueError, match="finds no labels at 'labels'"):
        jm.attacks.label_flip(batches, [0], 3)(None, 0)
    with pytest.raises(TypeError, match=r"expects integer labels .* got float32"):
        jm.attacks.label_flip(jm.full_batch(jnp.ones((M, 2))), [0], 3, labels=None)(
            None, 0
        )
    with pytest.raises(ValueError, match="`num_classes` must be at least 1"):
        jm.attacks.label_flip(batches, [0], 0)
