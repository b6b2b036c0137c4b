"""Attacks that look at the distances of the honest, or try the rule before they act."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import enable_x64, first_update, params_like
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M = 7
HOSTILE = [1, 4]
HONEST = [0, 2, 3, 5, 6]
MINIMAX = {"min_max": jm.attacks.min_max, "min_sum": jm.attacks.min_sum}
DIRECTIONS = ("deviation", "mean", "sign")


def gradients(size=40, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, size=(M, size)).astype(dtype)


# --- distances ------------------------------------------------------------------------


def direction_of(honest, name):
    mean = honest.mean(axis=0)
    return {"deviation": -honest.std(axis=0), "mean": -mean, "sign": -np.sign(mean)}[
        name
    ]


def excess(name, point, honest):
    """How far the point is beyond what the attack allows, in squared distance."""
    squared = np.square(point - honest).sum(axis=1)
    apart = np.square(honest[:, None] - honest[None]).sum(axis=2)
    if name == "min_max":
        return squared.max() - apart.max()
    return squared.sum() - apart.sum(axis=1).max()


def farthest(name, honest, direction):
    """Bisection for the scale, as the authors search for it."""
    mean, path = honest.mean(axis=0), direction_of(honest, direction)
    low, high = 0.0, 1.0
    while excess(name, mean + high * path, honest) <= 0:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if excess(name, mean + middle * path, honest) <= 0:
            low = middle
        else:
            high = middle
    return mean + low * path


@jax.jit
def send_all(grads, mask):
    attacks = {
        (name, direction): attack(HOSTILE, direction=direction)
        for name, attack in MINIMAX.items()
        for direction in DIRECTIONS
    }
    return {
        "/".join(name): attack.update(grads, attack.init(None), worker_mask=mask)[0]
        for name, attack in attacks.items()
    }


def test_the_hostile_go_as_far_as_the_distances_allow():
    rng = np.random.default_rng(0)
    with enable_x64(True):
        for trial in range(10):
            x = rng.normal(rng.normal(), 1.0, (M, 6)) * rng.uniform(0.1, 3, (M, 1))
            mask = np.ones(M, bool)
            if trial % 2:
                mask[[3, 4]] = False
                x[3] = np.nan
            honest = x[[i for i in HONEST if mask[i]]]
            for name, sent in send_all(x, mask).items():
                expected = farthest(*name.split("/")[:1], honest, name.split("/")[1])
                sent = np.asarray(sent)
                np.testing.assert_allclose(
                    sent[1], expected, rtol=1e-9, atol=1e-9, err_msg=name
                )
                others = [i for i in range(M) if i not in HOSTILE or not mask[i]]
                np.testing.assert_array_equal(sent[others], x[others])


def test_in_float32_the_distances_hold_beside_a_common_mean():
    x = 100 + gradients(3000)
    for name, attack in MINIMAX.items():
        sent = first_update(attack(HOSTILE), {"a": x[:, :7], "b": x[:, 7:]})
        point = np.concatenate([sent["a"][1], sent["b"][1]]).astype(np.float64)
        honest = x[HONEST].astype(np.float64)
        allowed = np.square(honest[:, None] - honest[None]).sum(axis=2)
        scale = allowed.max() if name == "min_max" else allowed.sum(axis=1).max()
        assert abs(excess(name, point, honest)) < 1e-4 * scale


def test_where_there_is_no_way_to_go_the_mean_is_sent():
    everybody = np.ones(M, bool)
    with enable_x64(True):  # the program of the test above
        same = np.ones((M, 6))
        for sent in send_all(same, everybody).values():
            np.testing.assert_array_equal(sent, same)
        opposite = np.array([1.0, 9, -1, 0, 9, 2, -2])[:, None] * np.arange(6.0)
        for name, sent in send_all(opposite, everybody).items():
            if name.endswith(("mean", "sign")):
                np.testing.assert_allclose(
                    np.asarray(sent)[HOSTILE], np.zeros((2, 6)), atol=1e-12
                )


# --- the strongest of several scales --------------------------------------------------

SCALES = [0.3, 1.0, 3.0, 0.1, 10.0, -1.0]


FORMULAS = {  # (scale, honest rows) -> what the hostile send
    jm.attacks.inner_product_manipulation: lambda s, x: -s * x.mean(axis=0),
    jm.attacks.a_little_is_enough: lambda s, x: x.mean(axis=0) + s * x.std(0, ddof=1),
}


def reference_strongest(attack, rule_of_array, grads, scales):
    """Tries one scale after the other; the first of the most harmful."""
    honest = grads[HONEST].astype(np.float64)
    harm, tried = [], []
    for scale in scales:
        sent = grads.astype(np.float64)
        sent[HOSTILE] = FORMULAS[attack](scale, honest)
        tried.append(sent)
        harm.append(np.linalg.norm(rule_of_array(sent) - honest.mean(axis=0)))
    return tried[int(np.argmax(harm))]


@pytest.mark.parametrize("attack", FORMULAS)
def test_the_most_harmful_scale_is_taken(attack):
    rules = {
        "trimmed": (jm.trimmed_mean(2), lambda x: np.sort(x, axis=0)[2:-2].mean(0)),
        "median": (jm.coordinate_median(), lambda x: np.median(x, axis=0)),
        "mean": (jm.worker_mean(), lambda x: x.mean(axis=0)),
    }

    @jax.jit
    def send_all(grads):
        found = {}
        for name, (rule, _) in rules.items():
            tx = jm.attacks.strongest(attack, rule, HOSTILE, scales=SCALES)
            found[name] = tx.update(grads, tx.init(None))[0]
        return found

    for seed in range(5):
        grads = gradients(seed=seed)
        for name, sent in send_all(grads).items():
            rule = rules[name][1]
            expected = reference_strongest(attack, rule, grads, SCALES)
            np.testing.assert_allclose(
                sent, expected, rtol=1e-5, atol=1e-5, err_msg=name
            )


def test_of_equal_harm_the_first_scale_is_taken_and_no_number_is_the_worst():
    grads = gradients()
    far = jm.attacks.strongest(
        jm.attacks.inner_product_manipulation,
        jm.trimmed_mean(2),
        HOSTILE,
        scales=[0.0, 500.0, 400.0],
    )
    sent = first_update(far, grads)
    expected = -500.0 * grads[HONEST].mean(axis=0)
    np.testing.assert_allclose(sent[1], expected, rtol=1e-4)
    overflow = jm.attacks.strongest(
        jm.attacks.inner_product_manipulation,
        jm.worker_mean(),
        HOSTILE,
        scales=[1e3, 3e38, 1e4],
    )
    assert np.isinf(first_update(overflow, grads)[1]).any()


def test_the_state_of_the_aggregator_is_followed_from_step_to_step():
    """Its noise, its buckets and its centre are those that are tried."""
    key = jax.random.key(3)
    rules = {
        "noise": jm.coordinate_median(jm.noise.gaussian(2.0), key),
        "buckets": optax.chain(jm.bucketing(2, key), jm.coordinate_median()),
        "centre": jm.centered_clipping(1.0),
    }
    for name, rule in rules.items():
        attack = jm.attacks.strongest(
            jm.attacks.inner_product_manipulation, rule, HOSTILE, scales=SCALES
        )
        params = jnp.zeros(40)
        state, rule_state = attack.init(params), rule.init(params)
        update, aggregate = jax.jit(attack.update), jax.jit(rule.update)
        picked = []
        for step in range(3):
            grads = gradients(seed=step)
            sent, state = update(grads, state, params)
            mean = grads[HONEST].mean(axis=0)
            harm = []
            for scale in SCALES:
                tried = grads.copy()
                tried[HOSTILE] = np.float32(-scale) * mean
                result, _ = aggregate(tried, rule_state, params)
                harm.append(np.linalg.norm(result - mean))
            worst = SCALES[int(np.argmax(harm))]
            picked.append(worst)
            np.testing.assert_allclose(
                sent[1], -worst * mean, rtol=1e-4, atol=1e-5, err_msg=name
            )
            _, rule_state = aggregate(sent, rule_state, params)
            for mine, theirs in zip(
                jax.tree.leaves(state.aggregator),
                jax.tree.leaves(rule_state),
                strict=True,
            ):
                if jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
                    mine, theirs = (
                        jax.random.key_data(mine),
                        jax.random.key_data(theirs),
                    )
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_drawn_workers_masks_and_a_chain():
    mask = np.arange(M) != 2
    rule = jm.trimmed_mean(2)
    attack = jm.attacks.strongest(
        jm.attacks.a_little_is_enough, rule, 2, 5, scales=SCALES
    )
    plain = [jm.attacks.a_little_is_enough(2, 5, scale=scale) for scale in SCALES]
    chain = optax.chain(attack, rule)
    params = jnp.zeros(40)
    state, states = chain.init(params), [tx.init(params) for tx in plain]
    update = jax.jit(chain.update)
    seen = set()
    for step in range(3):
        grads = gradients(seed=step)
        got, state = update(grads, state, params, worker_mask=mask)
        tried = []
        for i, tx in enumerate(plain):
            sent, states[i] = tx.update(grads, states[i], params, worker_mask=mask)
            tried.append(np.asarray(sent))
        hostile = np.flatnonzero((tried[0] != grads).any(axis=1))
        seen.update(hostile.tolist())
        honest = np.setdiff1d(np.flatnonzero(mask), hostile)
        mean = grads[honest].mean(axis=0)
        results = [np.sort(x[mask], axis=0)[2:-2].mean(axis=0) for x in tried]
        worst = np.argmax([np.linalg.norm(r - mean) for r in results])
        np.testing.assert_allclose(got, results[worst], rtol=1e-4, atol=1e-5)
    assert len(seen) > 2


def test_a_mesh_finds_the_scale_of_one_device():
    num_workers, hostile = 8, [1, 6]
    grads = np.random.default_rng(2).normal(1.0, size=(num_workers, 33))
    grads = grads.astype(np.float32)
    mask = np.arange(num_workers) != 3

    def send_all(axis_name):
        on = {"axis_name": axis_name}
        attacks = {
            "min_max": jm.attacks.min_max(hostile, **on),
            "min_sum": jm.attacks.min_sum(2, 0, **on),
            "strongest": jm.attacks.strongest(
                jm.attacks.a_little_is_enough,
                jm.trimmed_mean(2, **on),
                hostile,
                scales=SCALES,
                **on,
            ),
        }

        def send(grads, mask):
            return {
                name: attack.update(grads, attack.init(None), worker_mask=mask)[0]
                for name, attack in attacks.items()
            }

        return send

    mesh = jax.make_mesh(
        (4,), ("w",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
    )
    on_mesh = jax.shard_map(send_all("w"), mesh=mesh, in_specs=P("w"), out_specs=P("w"))
    got, expected = jax.jit(on_mesh)(grads, mask), jax.jit(send_all(None))(grads, mask)
    for name in expected:
        np.testing.assert_allclose(
            got[name], expected[name], rtol=5e-6, atol=5e-6, err_msg=name
        )


def test_scales_may_be_traced_and_vmapped():
    grads = gradients()
    rule = jm.coordinate_median()

    def send(scales):
        attack = jm.attacks.strongest(
            jm.attacks.inner_product_manipulation, rule, HOSTILE, scales=scales
        )
        return attack.update(grads, attack.init(None))[0]

    many = jax.jit(jax.vmap(send))(jnp.float32([[0.1, 0.2], [2.0, 1.0]]))
    mean = grads[HONEST].mean(axis=0)
    for sent, scales in zip(many, ([0.1, 0.2], [2.0, 1.0]), strict=True):
        expected = reference_strongest(
            jm.attacks.inner_product_manipulation,
            lambda x: np.median(x, axis=0),
            grads,
            scales,
        )
        np.testing.assert_allclose(sent, expected, rtol=1e-5, atol=1e-5)
        assert np.sign(sent[1] @ mean) == -1


# --- errors ---------------------------------------------------------------------------


def test_bad_arguments_are_refused():
    strongest, attack = jm.attacks.strongest, jm.attacks.a_little_is_enough
    rule = jm.worker_mean()
    for name, minimax in MINIMAX.items():
        with pytest.raises(ValueError, match="`direction` must be one of 'deviation'"):
            minimax([0], direction="down")
        with pytest.raises(ValueError, match=f"`{name}` needs a `key`"):
            minimax(2)
    with pytest.raises(ValueError, match="`scales` must be at least one number"):
        strongest(attack, rule, [0], scales=[])
    with pytest.raises(ValueError, match=r"got an array of shape \(\)"):
        strongest(attack, rule, [0], scales=3.0)
    with pytest.raises(ValueError, match="`scales` must be finite"):
        strongest(attack, rule, [0], scales=[1.0, np.nan])
    with pytest.raises(TypeError, match="`scales` must be numbers"):
        strongest(attack, rule, [0], scales=["large"])
    for unfit in (attack([0]), jm.attacks.sign_flip):  # built already, without scale
        with pytest.raises(TypeError, match="`attack` of `strongest` must be a func"):
            strongest(unfit, rule, [0])
    with pytest.raises(TypeError, match="`aggregator` must be an optax gradient"):
        strongest(attack, lambda x: x, [0])
    with pytest.raises(ValueError, match="`strongest`: `workers` must be different"):
        strongest(attack, rule, [0, 0])
    no_rule = strongest(attack, jm.clip_workers(1.0), [0])
    with pytest.raises(ValueError, match="`strongest` expects updates of the parame"):
        no_rule.update(
            jnp.ones((3, 2)), no_rule.init(None), params_like(jnp.ones((3, 2)))
        )
