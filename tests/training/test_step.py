"""`make_step`: absent workers, donation, and what it says before it trains wrongly."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmedian as jm

M = 3
X = np.float32([[1, 4], [2, -3], [10, 6]])


def empty_loss(params, batch):
    """A mean over the samples that a worker has: 0 / 0 where it has none."""
    squares = jnp.sum((params - batch["x"]) ** 2) * batch["has"]
    return 0.5 * squares / batch["has"]


def keyed_momentum():
    """Momentum beside a typed key, which a mask must carry along too."""

    def init(params):
        return {"rng_key": jax.random.key(3), "trace": jnp.zeros_like(params)}

    def update(updates, state, params=None):
        trace = jnp.float32(0.5) * state["trace"] + updates
        return trace, {"rng_key": jax.random.split(state["rng_key"])[0], "trace": trace}

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("by", ["mask", "weights"])
@pytest.mark.parametrize("worker_chunk", [None, 1])
def test_an_absent_worker_s_nan_reaches_no_output(by, worker_chunk):
    """Its momentum and key stay as they were; the others go on as by themselves."""
    here = np.array([[True, False, True], [True, True, True]])
    optimizer = optax.chain(
        jm.per_worker(keyed_momentum(), M), jm.worker_mean(), optax.scale(-0.1)
    )
    step = jm.make_step(empty_loss, optimizer, worker_chunk=worker_chunk)
    params, state = jnp.zeros(2), optimizer.init(jnp.zeros(2))
    keys_before = jax.random.key_data(state[0].inner["rng_key"])
    momentum, expected = np.zeros((M, 2)), np.zeros(2)
    for present in here:
        name = {"mask": "worker_mask", "weights": "worker_weights"}[by]
        who = present if by == "mask" else present.astype(np.int32)
        batch = {"x": X, "has": present.astype(np.float32)}
        params, state, metrics = step(params, state, batch, **{name: who})
        losses = 0.5 * ((expected - X) ** 2).sum(axis=1)
        momentum[present] = 0.5 * momentum[present] + (expected - X)[present]
        expected = expected - 0.1 * momentum[present].mean(axis=0)
        np.testing.assert_allclose(metrics["loss"], losses[present].mean(), rtol=1e-5)
        np.testing.assert_allclose(params, expected, rtol=1e-5)
        np.testing.assert_allclose(state[0].inner["trace"], momentum, rtol=1e-5)
        if present is here[0]:
            keys_after = jax.random.key_data(state[0].inner["rng_key"])
            kept = (keys_after == keys_before).all(axis=1)
            np.testing.assert_array_equal(kept, ~present)


def test_on_a_mesh_an_absent_worker_keeps_its_state_too():
    optimizer = optax.chain(
        jm.per_worker(optax.trace(0.5), 2), jm.majority_vote(axis_name="workers")
    )
    mesh = jm.sharding.workers_mesh(2)
    step = jm.sharding.shard_step(empty_loss, optimizer, mesh)
    batch = {"x": X[:2], "has": np.float32([1, 0])}
    mask = np.array([True, False])
    start = jnp.zeros(2), optimizer.init(jnp.zeros(2))
    params, state, metrics = step(*start, batch, worker_mask=mask)
    np.testing.assert_array_equal(params, [-1, -1])
    np.testing.assert_array_equal(state[0].inner.trace, [[-1, -4], [0, 0]])
    assert float(metrics["loss"]) == 8.5


def test_local_steps_clips_and_measurements_leave_absent_workers_out():
    batch = {"x": X, "has": np.float32([1, 0, 1])}
    mask = np.array([True, False, True])
    moved = jm.worker_updates(empty_loss, optax.sgd(0.5), 2)(jnp.zeros(2), batch)
    assert np.isnan(moved[1]).all()
    for clip in (jm.clip_workers(1e6), jm.adaptive_clip_workers(0)):
        rule = optax.chain(clip, jm.worker_mean())
        mean, _ = rule.update(moved, rule.init(None), worker_mask=mask)
        np.testing.assert_allclose(mean, 0.75 * X[mask].mean(axis=0), rtol=1e-6)
    grads = np.where(mask[:, None], X, np.nan)
    mean, median = X[mask].mean(axis=0), np.median(X[mask], axis=0)
    for who in ({"worker_mask": mask}, {"worker_weights": mask.astype(np.float32)}):
        got = jm.diagnostics.of_step(grads, np.float32([1, -1]), **who)
        np.testing.assert_allclose(
            got["gradient_norm"], np.linalg.norm(mean), rtol=1e-6
        )
        np.testing.assert_allclose(
            got["mean_median_gap"], np.linalg.norm(mean - median), atol=1e-6
        )
        assert float(got["disagreement"]) == 0.5
    weighted = jm.diagnostics.gradient_norm(X, worker_weights=np.int32([1, 2, 0]))
    right = np.linalg.norm((X[0] + 2 * X[1]) / 3)
    np.testing.assert_allclose(weighted, right, rtol=1e-6)


def test_a_run_measures_those_present():
    batch = {"x": X, "has": np.float32([1, 0, 1])}
    mask = np.array([True, False, True])
    result = jm.run(
        empty_loss,
        jm.median_sgd(0.1),
        jnp.zeros(2),
        jm.full_batch(batch),
        1,
        0,
        extra_args=lambda key, step: {"worker_mask": jnp.asarray(mask)},
    )
    for column in result.metrics.values():
        assert np.isfinite(column).all()


def test_the_mean_of_16_bit_losses_neither_overflows_nor_stalls():
    """The sum of 8 losses of 30,000 is beyond float16; bfloat16 counts to 256."""
    for dtype, num_workers, size in ((jnp.float16, 8, 30_000), (jnp.bfloat16, 600, 1)):
        step = jm.make_step(lambda p, b: jnp.sum(p * b), jm.sign_sgd(0.1))
        batch = jnp.full((num_workers, 1), size, dtype)
        params = jnp.ones(1, dtype)
        _, _, metrics = step(params, jm.sign_sgd(0.1).init(params), batch)
        np.testing.assert_allclose(metrics["loss"], batch[0].astype(np.float32)[0])


def test_a_step_may_be_given_its_arguments_for_good_and_starts_afresh():
    optimizer = jm.noisy_sign_sgd(0.1, jm.noise.gaussian(0.1), jax.random.key(0))
    step = jm.make_step(lambda p, b: jnp.sum(p * b), optimizer, donate=True)
    ends = []
    for _ in range(2):
        params = jnp.zeros(2)
        end, _, _ = step(params, optimizer.init(params), X)
        assert params.is_deleted()
        ends.append(np.asarray(end))
    np.testing.assert_array_equal(*ends)


# --- silent misuse --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mask", "worker_mask"),
        ("worker_masks", "worker_mask"),
        ("workers_mask", "worker_mask"),
        ("participants", "worker_mask"),
        ("weights", "worker_weights"),
        ("worker_weight", "worker_weights"),
    ],
)
def test_an_extra_argument_that_is_almost_ours_is_refused(name, meant):
    """By a step whose chain would not look at it, too."""
    optimizer = optax.chain(jm.worker_mean(), optax.sgd(0.1))
    value = {name: np.ones(M, bool)}
    mesh = jm.sharding.workers_mesh(1)
    for step in (
        jm.make_step(lambda p, b: jnp.sum(p * b), optimizer),
        jm.sharding.shard_step(lambda p, b: jnp.sum(p * b), optimizer, mesh),
    ):
        with pytest.raises(TypeError, match=f"`{name}`.*Did you mean `{meant}`"):
            step(jnp.zeros(2), optimizer.init(jnp.zeros(2)), X, **value)


def test_a_batch_of_all_samples_in_one_axis_is_found_by_the_number_of_workers():
    optimizer, mesh = jm.sign_sgd(0.1), jm.sharding.workers_mesh(1)
    on_mesh = jm.sign_sgd(0.1, axis_name="workers")
    state, flat = optimizer.init(jnp.zeros(2)), np.ones((6, 2), np.float32)
    loss = lambda p, b: jnp.sum(p * b)  # noqa: E731
    for step in (
        jm.make_step(loss, optimizer, num_workers=M),
        jm.sharding.shard_step(loss, on_mesh, mesh, num_workers=M),
    ):
        with pytest.raises(ValueError, match=r"is 3, .* 6 workers.*reshape\(3, -1"):
            step(jnp.zeros(2), state, flat)
        step(jnp.zeros(2), state, X)
    with pytest.raises(TypeError, match="`num_workers` must be an int"):
        jm.make_step(loss, optimizer, num_workers=2.0)


def test_model_objects_for_parameters_are_named():
    class Model:
        pass

    step = jm.make_step(lambda p, b: jnp.sum(b), jm.sign_sgd(0.1))
    with pytest.raises(TypeError, match=r"`params\['net'\]` is of type Model.*nnx"):
        step({"net": Model()}, (), X)


def accumulated(rule, num_workers=M):
    steps = optax.MultiSteps(optax.identity(), 2).gradient_transformation()
    return optax.chain(jm.per_worker(steps, num_workers), rule, optax.sgd(0.1))


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("every", ["MultiSteps", "apply_every"])
def test_accumulation_in_front_of_running_scales_is_warned_of(every):
    noise = jm.noise.uniform(jm.noise.per_coordinate(1.0, "rms"), "systematic")
    if every == "MultiSteps":
        tx = accumulated(jm.majority_vote(noise, 0))
    else:
        held = jm.per_worker(optax.apply_every(2), M)
        tx = optax.chain(held, jm.majority_vote(noise, 0), optax.sgd(0.1))
    step = jm.make_step(lambda p, b: jnp.sum(p * b), tx)
    with pytest.warns(UserWarning, match="nothing but noise"):
        step(jnp.zeros(2), tx.init(jnp.zeros(2)), X)


NAMED = {
    "worker_mask": jnp.array([True, False, False]),
    "worker_weights": jnp.array([1.0, 2.0, 0.5]),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("chunk", [None, 1])
def test_an_extra_argument_that_a_wrapper_drops_is_missed(name, chunk):
    def without_extra_args(tx):
        return optax.GradientTransformation(
            tx.init, lambda updates, state, params=None: tx.update(updates, state)
        )

    lost = optax.chain(without_extra_args(jm.worker_mean()), optax.sgd(0.1))
    kept = optax.chain(jm.worker_mean(), without_extra_args(optax.sgd(0.1)))
    given = {name: NAMED[name]}
    for tx in (lost, kept):
        step = jm.make_step(
            lambda p, b: jnp.sum(p * b), tx, donate=False, worker_chunk=chunk
        )
        first = jnp.zeros(2), tx.init(jnp.zeros(2)), X
        step(*first)
        step(*first, **{name: None})
        if tx is kept:
            weights = np.float32(NAMED[name])
            expected = -0.1 * weights @ X / weights.sum()
            np.testing.assert_allclose(step(*first, **given)[0], expected, rtol=1e-6)
            continue
        with pytest.raises(TypeError, match=f"`{name}` was given.*did not reach `work"):
            step(*first, **given)


@pytest.mark.usefixtures("promoting")
def test_accumulation_in_front_of_noise_is_warned_of():
    noisy = accumulated(jm.majority_vote(jm.noise.gaussian(0.1), 0))
    step = jm.make_step(lambda p, b: jnp.sum(p * b), noisy)
    with pytest.warns(UserWarning, match="nothing but noise. Put `MultiSteps` behind"):
        step(jnp.zeros(2), noisy.init(jnp.zeros(2)), X)
    behind = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    for quiet in (
        accumulated(jm.majority_vote()),
        optax.chain(jm.majority_vote(jm.noise.gaussian(0.1), 0), behind),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step = jm.make_step(lambda p, b: jnp.sum(p * b), quiet)
            step(jnp.zeros(2), quiet.init(jnp.zeros(2)), X)


def test_the_recipe_for_frozen_parameters_keeps_them():
    frozen = {"trained": False, "frozen": True}
    optimizer = optax.chain(
        jm.majority_vote(jm.noise.gaussian(0.1), 0),
        optax.masked(optax.set_to_zero(), frozen),
        optax.sgd(0.1),
    )
    params = {"trained": jnp.zeros(2), "frozen": jnp.ones(2)}
    step = jm.make_step(lambda p, b: jnp.sum(p["trained"] * b), optimizer)
    after, _, _ = step(params, optimizer.init(params), X)
    np.testing.assert_array_equal(after["frozen"], params["frozen"])
    assert (after["trained"] != params["trained"]).all()


def squares(params, x):
    return jnp.sum(jnp.square(params - x))


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (np.float32([1, -1, 1]), "finite `worker_weights` >= 0"),
        ([1.0, float("nan"), 1.0], "finite `worker_weights` >= 0"),
        (np.zeros(3, np.float32), "do not sum to 0"),
        (np.int64([2**32 + 1, 1, 1]), "32 bits do not hold"),
    ],
)
@pytest.mark.parametrize("on_mesh", [False, True])
def test_weights_that_the_host_knows_are_checked_before_they_are_traced(
    weights, match, on_mesh
):
    optimizer = jm.sign_sgd(0.1, axis_name="workers" if on_mesh else None)
    step = jm.make_step(squares, optimizer)
    if on_mesh:
        step = jm.sharding.shard_step(squares, optimizer, jm.sharding.workers_mesh(3))
    params, batch = jnp.zeros(2), jnp.ones((3, 2))
    with pytest.raises(ValueError, match=match):
        step(params, optimizer.init(params), batch, worker_weights=weights)
    step(params, optimizer.init(params), batch, worker_weights=[1.0, 2.0, 3.0])


def test_a_step_is_traced_and_asked_for_its_shapes_like_any_jitted_function():
    optimizer = jm.sign_sgd(0.1)
    step = jm.make_step(squares, optimizer)
    args = jnp.zeros(2), optimizer.init(jnp.zeros(2)), jnp.ones((3, 2))
    assert step.eval_shape(*args)[0] == jax.ShapeDtypeStruct((2,), jnp.float32)
    compiled = step.trace(*args).lower().compile()
    np.testing.assert_array_equal(compiled(*args)[0], step(*args)[0])
