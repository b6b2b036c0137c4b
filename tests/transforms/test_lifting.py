"""`per_worker`: one optimizer state a worker, and a key of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import first_update

import jaxmedian as jm

M, SIZE = 4, 6


def gradients(num_steps=3):
    return np.random.default_rng(0).normal(size=(num_steps, M, SIZE)).astype(np.float32)


def run_steps(transform, grads, params, **extra_args):
    update, state, results = jax.jit(transform.update), transform.init(params), []
    for g in grads:
        updates, state = update(g, state, params, **extra_args)
        results.append(np.asarray(updates))
    return results, state


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize(
    "inner",
    [optax.trace(0.9), optax.scale_by_adam(), optax.clip_by_global_norm(0.5)],
    ids=["trace", "adam", "clip"],
)
def test_every_worker_has_the_transform_to_itself(inner):
    grads, params = gradients(), jnp.zeros(SIZE)
    together, _ = run_steps(jm.per_worker(inner, M), grads, params)
    for worker in range(M):
        alone, _ = run_steps(inner, grads[:, worker], params)
        for step in range(3):
            np.testing.assert_allclose(
                together[step][worker], alone[step], rtol=1e-5, atol=1e-7
            )


def test_every_leaf_of_the_state_gets_a_worker_axis():
    params = {"w": jnp.zeros((2, 3))}
    state = jm.per_worker(optax.trace(0.9), M).init(params)
    assert state.inner.trace["w"].shape == (M, 2, 3)
    adam = jm.per_worker(optax.scale_by_adam(), M).init(params)
    assert adam.inner.count.shape == (M,)


def test_signum_is_momentum_a_worker_then_a_vote():
    grads, params = gradients(), jnp.zeros(SIZE)
    signum = optax.chain(jm.per_worker(optax.trace(0.9), M), jm.majority_vote())
    votes, _ = run_steps(signum, grads, params)
    momentum = np.zeros((M, SIZE))
    for g, vote in zip(grads, votes, strict=True):
        momentum = g + 0.9 * momentum
        np.testing.assert_array_equal(vote, np.sign(np.sign(momentum).sum(axis=0)))


def test_distributed_lion_is_a_vote_on_lion_updates():
    grads, params = gradients(5), jnp.zeros(SIZE)
    lion = optax.chain(
        jm.per_worker(optax.scale_by_lion(b1=0.9, b2=0.99), M),
        jm.majority_vote(),
        optax.scale(-0.1),
    )
    updates, _ = run_steps(lion, grads, params)
    momentum = np.zeros((M, SIZE))
    for g, update in zip(grads, updates, strict=True):
        votes = np.sign(0.9 * momentum + 0.1 * g)
        momentum = 0.99 * momentum + 0.01 * g
        expected = -0.1 * np.sign(votes.sum(axis=0))
        np.testing.assert_allclose(update, expected, rtol=1e-6)


def inner_with_key(key):
    """A transform that owns a key, as a typed key or as legacy words."""

    def init_fn(params):
        return {"rng_key": key, "numbers": jnp.zeros(2, jnp.uint32)}

    def update_fn(updates, state, params=None):
        noise = jax.random.normal(state["rng_key"], updates.shape, jnp.float32)
        return updates + noise, state

    return optax.GradientTransformation(init_fn, update_fn)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_key_in_the_state_is_folded_with_the_number_of_the_worker(legacy):
    key = jax.random.PRNGKey(3) if legacy else jax.random.key(3)
    transform = jm.per_worker(inner_with_key(key), M)
    got = first_update(transform, np.zeros((M, SIZE), np.float32))
    for worker in range(M):
        expected = jax.random.normal(jax.random.fold_in(key, worker), (SIZE,))
        np.testing.assert_allclose(got[worker], expected, rtol=1e-6)
    state = transform.init(jnp.zeros(SIZE))
    np.testing.assert_array_equal(state.inner["numbers"], np.zeros((M, 2)))


@pytest.mark.parametrize(
    "held",
    [
        lambda key: {"rng": key},
        lambda key: {"seeds": key},
        lambda key: (jnp.zeros([], jnp.int32), key),
        lambda key: key,
    ],
    ids=["rng", "seeds", "no name", "alone"],
)
def test_legacy_keys_are_known_by_other_names_too(held):
    """Or else all workers would draw the same numbers."""

    def init_fn(params):
        return held(jax.random.PRNGKey(3))

    def update_fn(updates, state, params=None):
        key = jax.tree.leaves(state)[-1]
        return updates + jax.random.normal(key, updates.shape, jnp.float32), state

    transform = jm.per_worker(optax.GradientTransformation(init_fn, update_fn), M)
    got = first_update(transform, np.zeros((M, SIZE), np.float32))
    for worker in range(M):
        key = jax.random.fold_in(jax.random.PRNGKey(3), worker)
        expected = jax.random.normal(key, (SIZE,))
        np.testing.assert_allclose(got[worker], expected, rtol=1e-6)


@pytest.mark.usefixtures("promoting")
def test_optax_add_noise_draws_other_numbers_for_every_worker():
    transform = jm.per_worker(optax.add_noise(eta=1.0, gamma=0.5, key=0), M)
    got = first_update(transform, np.zeros((M, SIZE), np.float32))
    assert len({row.tobytes() for row in got}) == M
    assert np.abs(got).min() > 0


def test_parameters_and_extra_arguments_reach_every_worker():
    def update_fn(updates, state, params, *, value, **extra_args):
        return updates * value + params, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update_fn)
    transform = jm.per_worker(inner, M)
    grads, params = gradients(1), jnp.arange(float(SIZE))
    (got,), _ = run_steps(transform, grads, params, value=np.float32(2))
    np.testing.assert_allclose(got, 2 * grads[0] + np.arange(SIZE), rtol=1e-6)


def test_a_clip_before_the_vote_is_one_norm_for_all_unless_per_worker():
    """The composition trap and its remedy."""
    grads = np.float32([[3, 4], [0.3, 0.4], [30, 40]])
    alone = first_update(jm.per_worker(optax.clip_by_global_norm(1.0), 3), grads)
    np.testing.assert_allclose(alone, [[0.6, 0.8], [0.3, 0.4], [0.6, 0.8]], rtol=1e-6)
    together = first_update(optax.clip_by_global_norm(1.0), grads)
    assert np.linalg.norm(together[1]) < 0.02


@pytest.mark.parametrize(
    ("num_workers", "error", "message"),
    [
        (0, ValueError, "`num_workers` must be at least 1; got 0"),
        (-1, ValueError, "`num_workers` must be at least 1; got -1"),
        (2.0, TypeError, "`num_workers` must be an int; got 2.0"),
        (True, TypeError, "`num_workers` must be an int; got True"),
        (None, TypeError, "`num_workers` must be an int; got None"),
    ],
)
def test_bad_numbers_of_workers_are_refused(num_workers, error, message):
    with pytest.raises(error, match=message):
        jm.per_worker(optax.trace(0.9), num_workers)


def test_what_is_no_transformation_is_refused():
    with pytest.raises(TypeError, match="`inner` must be an optax gradient"):
        jm.per_worker(lambda params: params, 3)


def test_another_number_of_workers_than_the_states_is_refused():
    transform = jm.per_worker(optax.trace(0.9), 5)
    state = transform.init(jnp.zeros(SIZE))
    with pytest.raises(ValueError, match=r"states of 5 workers.*updates have 4"):
        transform.update(gradients(1)[0], state, jnp.zeros(SIZE))


@pytest.mark.parametrize("legacy", [False, True])
def test_an_absent_worker_keeps_its_state_keys_included(legacy):
    key = jax.random.PRNGKey(3) if legacy else jax.random.key(3)

    def update_fn(updates, state, params=None):
        drawn = {"rng_key": jax.random.fold_in(state["rng_key"], 1), "sum": None}
        return updates, drawn | {"sum": state["sum"] + updates}

    inner = optax.GradientTransformation(
        lambda params: {"rng_key": key, "sum": jnp.zeros_like(params)}, update_fn
    )
    transform, params = jm.per_worker(inner, M), jnp.zeros(SIZE)
    grads, mask = gradients(1)[0], np.array([True, False, True, False])
    grads[~mask] = np.nan
    state = transform.init(params)
    _, after = jax.jit(transform.update)(grads, state, params, worker_mask=mask)
    np.testing.assert_array_equal(after.inner["sum"], np.where(mask[:, None], grads, 0))
    words = [jax.random.key_data(s.inner["rng_key"]) for s in (state, after)]
    np.testing.assert_array_equal((words[0] == words[1]).all(axis=1), ~mask)


TREE = {"w": jnp.ones((4, 5)), "v": jnp.ones((5, 3))}


def stacked_tree():
    rng = np.random.default_rng(0)
    return {
        k: rng.normal(size=(M, *p.shape)).astype(np.float32) for k, p in TREE.items()
    }


@pytest.mark.usefixtures("promoting")
def test_muon_for_parameters_in_a_tree_names_what_it_lacks():
    """Its default fails without `per_worker` too: `jax.tree.map(..., tree, None)`."""
    muon = optax.contrib.scale_by_muon()
    with pytest.raises(ValueError, match=r"pytree structure|Expected dict"):
        muon.update(TREE, muon.init(TREE), TREE)
    transform = jm.per_worker(muon, M)
    with pytest.raises(
        ValueError, match="`per_worker`: its inner transformation"
    ) as error:
        transform.update(stacked_tree(), transform.init(TREE), TREE)
    assert "`weight_dimension_numbers`" in str(error.value)


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize(
    "inner",
    [
        optax.contrib.scale_by_muon(
            weight_dimension_numbers=lambda tree: jax.tree.map(
                lambda _: optax.contrib.MuonDimensionNumbers(), tree
            )
        ),
        optax.contrib.muon(0.1),
        optax.lamb(0.1),
        optax.adafactor(0.1),
    ],
    ids=["scale_by_muon", "muon", "lamb", "adafactor"],
)
def test_transforms_that_look_at_the_tree_of_parameters_serve_each_worker(inner):
    together, grads = jm.per_worker(inner, M), stacked_tree()
    got, _ = jax.jit(together.update)(grads, together.init(TREE), TREE)
    for worker in range(M):
        alone = jax.tree.map(lambda g, worker=worker: g[worker], grads)
        expected, _ = jax.jit(inner.update)(alone, inner.init(TREE), TREE)
        for leaf in TREE:
            np.testing.assert_allclose(
                got[leaf][worker], expected[leaf], rtol=1e-4, atol=1e-5
            )
