"""Momentum, EF21 and drift correction per worker, against loops over workers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M, STEPS = 5, 7
PARAMS = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(4), "dot": jnp.zeros(())}


def gradients(seed=0, num_steps=STEPS):
    rng = np.random.default_rng(seed)
    return [
        {
            k: rng.normal(size=(M, *p.shape)).astype(np.float32)
            for k, p in PARAMS.items()
        }
        for _ in range(num_steps)
    ]


def masks(seed=1, num_steps=STEPS):
    """Somebody is absent at every step; worker 4 at the first three."""
    masks = np.random.default_rng(seed).random((num_steps, M)) < 0.6
    masks[:3, 4], masks[0, 0] = False, True
    return masks


def results(transform, grads, worker_masks=None):
    """Runs the steps; returns what goes out at each, and the state after each."""
    update, state = jax.jit(transform.update), transform.init(PARAMS)
    sent, states = [], []
    for step, g in enumerate(grads):
        mask = {} if worker_masks is None else {"worker_mask": worker_masks[step]}
        out, state = update(g, state, PARAMS, **mask)
        sent.append(jax.tree.map(np.asarray, out))
        states.append(state)
    return sent, states


def assert_rows_close(got, expected, present, atol=1e-6):
    for leaf, rows in expected.items():
        np.testing.assert_allclose(
            got[leaf][present], rows[present], rtol=1e-5, atol=atol, err_msg=leaf
        )


# --- momentum -------------------------------------------------------------------------


def lion_loop(grads, worker_masks, b1, b2):
    """Lion's interpolation, worker by worker, in float64."""
    momentum = {k: np.zeros((M, *p.shape)) for k, p in PARAMS.items()}
    for g, mask in zip(grads, worker_masks, strict=True):
        out = {k: np.zeros_like(m) for k, m in momentum.items()}
        for worker in np.flatnonzero(mask):
            for leaf, m in momentum.items():
                out[leaf][worker] = b1 * m[worker] + (1 - b1) * g[leaf][worker]
                m[worker] = b2 * m[worker] + (1 - b2) * g[leaf][worker]
        yield out, {k: m.copy() for k, m in momentum.items()}


@pytest.mark.parametrize("masked", [False, True])
def test_interpolated_momentum_is_that_of_lion_before_its_sign(masked):
    here = masks() if masked else np.ones((STEPS, M), bool)
    transform = jm.interpolate_momentum(M, b1=0.8, b2=0.95)
    sent, states = results(transform, gradients(), here if masked else None)
    loop = lion_loop(gradients(), here, 0.8, 0.95)
    for step, (out, momentum) in enumerate(loop):
        assert_rows_close(sent[step], out, here[step])
        kept = jax.tree.map(np.asarray, states[step])
        assert_rows_close(kept.inner.momentum, momentum, slice(None))


def test_its_sign_is_that_of_optax_lion():
    ours = jm.interpolate_momentum(M, b1=0.9, b2=0.99)
    theirs = jm.per_worker(optax.scale_by_lion(0.9, 0.99), M)
    for got, expected in zip(
        results(ours, gradients())[0], results(theirs, gradients())[0], strict=True
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(np.sign(a), b), got, expected
        )


def test_momentum_of_half_precision_is_kept_in_float32():
    """In bfloat16 a hundredth of a gradient would be rounded off m = 1."""
    transform = jm.interpolate_momentum(1, b1=0.0, b2=0.999)
    state = transform.init(jnp.zeros(1, jnp.bfloat16))
    step = jax.jit(transform.update)
    for _ in range(1000):
        sent, state = step(jnp.ones((1, 1), jnp.bfloat16), state)
    assert sent.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.inner.momentum, 1 - 0.999**1000, rtol=1e-4)


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_bad_shares_are_refused(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be in \[0, 1\).*got 1.0"):
        jm.interpolate_momentum(M, **{name: 1.0})
    with pytest.raises(ValueError, match=rf"`{name}`.*got -0.1"):
        jm.interpolate_momentum(M, **{name: -0.1})
    with pytest.raises(TypeError, match=rf"`{name}` must be a number.*got None"):
        jm.interpolate_momentum(M, **{name: None})


# --- EF21 -----------------------------------------------------------------------------


def ef21_loop(grads, worker_masks):
    estimate = {k: np.zeros((M, *p.shape)) for k, p in PARAMS.items()}
    for g, mask in zip(grads, worker_masks, strict=True):
        for worker in np.flatnonzero(mask):
            for leaf, h in estimate.items():
                difference = g[leaf][worker] - h[worker]
                h[worker] += np.abs(difference).mean() * np.sign(difference)
        yield {k: h.copy() for k, h in estimate.items()}


@pytest.mark.parametrize("masked", [False, True])
def test_ef21_is_its_loop(masked):
    here = masks() if masked else np.ones((STEPS, M), bool)
    grads = gradients()
    sent, states = results(jm.ef21_sign(M), grads, here if masked else None)
    for step, estimate in enumerate(ef21_loop(grads, here)):
        assert_rows_close(sent[step], estimate, here[step])
        kept = jax.tree.map(np.asarray, states[step])
        assert_rows_close(kept.inner.estimate, estimate, slice(None))


def test_ef21_approaches_gradients_that_stand_still():
    """|g - h|^2 shrinks at least by 1 - |x|_1^2 / (d |x|_2^2), x = g - h, per step."""
    grads = gradients(num_steps=1)
    error = {k: g.astype(np.float64) for k, g in grads[0].items()}
    for sent in results(jm.ef21_sign(M), grads * 30)[0]:
        for leaf, g in grads[0].items():
            rows = error[leaf].reshape(M, -1)
            norm, size = (rows**2).sum(axis=1), np.abs(rows).sum(axis=1)
            expected = norm - size**2 / rows.shape[1]
            error[leaf] = g - sent[leaf].astype(np.float64)
            got = (error[leaf].reshape(M, -1) ** 2).sum(axis=1)
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)
    assert max(np.abs(e).max() for e in error.values()) < 0.01


def test_one_bad_gradient_leaves_the_estimates_finite():
    grads = gradients(num_steps=3)
    grads[1]["b"][2] = np.nan
    grads[1]["w"][1, 0] = np.inf
    grads[1]["w"][3] = 3e38
    sent, _ = results(jm.ef21_sign(M), grads)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sent))
    np.testing.assert_array_equal(sent[1]["b"][2], sent[0]["b"][2])
    np.testing.assert_array_equal(sent[1]["w"][1, 0], sent[0]["w"][1, 0])
    clean, _ = results(jm.ef21_sign(M), gradients(num_steps=3))
    np.testing.assert_array_equal(sent[2]["dot"], clean[2]["dot"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "build",
    [
        lambda: jm.interpolate_momentum(M),
        lambda: jm.correct_drift(jm.coordinate_median(), 2, M),
    ],
    ids=["interpolate_momentum", "correct_drift"],
)
def test_one_bad_gradient_goes_out_once_and_is_not_remembered(build, bad):
    """Behind a vote nobody would see that a worker votes one way ever after."""
    grads = gradients()
    grads[2]["w"][1, 0] = bad
    sent, states = results(build(), grads)
    finite = [np.isfinite(out["w"]) for out in sent]
    assert not finite[2][1, 0].any()
    finite[2][1, 0] = True
    assert all(rows.all() for rows in finite)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[3:]))


def test_a_worker_votes_on_its_gradients_again_after_a_bad_one():
    tx, params = jm.signum(1.0, num_workers=3), jnp.zeros(1)
    state, update = tx.init(params), jax.jit(tx.update)
    grads = jnp.array([[-1.0], [1.0], [-1.0]])
    for step in range(30):
        here = grads.at[0, 0].set(jnp.inf) if step == 0 else grads
        updates, state = update(here, state, params)
    assert updates.tolist() == [1.0]


@pytest.mark.parametrize("build", [jm.signum, jm.distributed_lion])
def test_what_float16_lacks_keeps_its_sign(build):
    """(1 - b1) g = 2e-8 is below its least number, 6e-8."""
    params, grads = jnp.zeros(2, jnp.float16), jnp.float16([[2e-7, -2e-7]] * 3)
    tx = build(1.0, num_workers=3)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("inner", ["momentum of each worker", "mean of means"])
def test_an_aggregator_with_state_corrects_half_precision(inner, dtype, promoting):
    """It hears the float32 that a worker remembers, and so do its own states."""
    aggregator = {
        "momentum of each worker": optax.chain(
            jm.per_worker(optax.trace(0.0), 3), jm.worker_mean()
        ),
        "mean of means": optax.chain(jm.worker_mean(), optax.ema(0.0)),
    }[inner]
    tx, params = jm.correct_drift(aggregator, 2, 3), jnp.zeros(1, dtype)
    state, update = tx.init(params), jax.jit(tx.update)
    grads = jnp.asarray([[1.0], [2.0], [-9.0]], dtype)
    for _ in range(3):
        sent, state = update(grads, state, params)
        assert sent.dtype == dtype
        assert sent.ravel().tolist() == [-2.0, -2.0, -2.0]


def test_a_robust_rule_after_ef21_moves_little_for_a_liar():
    """Quadratics whose minima differ: the mean of the honest, and one who sends 1e6."""
    minima = np.float32([[1.0], [2.0], [4.0], [5.0], [3.0]])

    def end(optimizer):
        def body(carry, _):
            x, state = carry
            g = (x[None] - minima).at[4].set(1e6)
            updates, state = optimizer.update(g, state, x)
            return (x + updates, state), None

        start = jnp.zeros(1), optimizer.init(jnp.zeros(1))
        (x, _), _ = jax.lax.scan(body, start, length=400)
        return float(x[0])

    # The lie is trimmed, and with it the lowest gradient, x - 5.
    robust = optax.chain(jm.ef21_sign(M), jm.trimmed_mean(1), optax.scale(-0.1))
    assert abs(end(robust) - (1 + 2 + 4) / 3) < 0.01
    spoilt = optax.chain(jm.ef21_sign(M), jm.worker_mean(), optax.scale(-0.1))
    assert abs(end(spoilt)) > 1e5


# --- drift ----------------------------------------------------------------------------


def drift_loop(grads, worker_masks, every, decay, rule):
    """The correction by its definition; yields the rows that go out."""
    zeros = {k: np.zeros((M, *p.shape)) for k, p in PARAMS.items()}
    momentum, anchor = zeros, {k: z.copy() for k, z in zeros.items()}
    center = {k: np.zeros(p.shape) for k, p in PARAMS.items()}
    met, anchored = set(), set()
    for step, (g, mask) in enumerate(zip(grads, worker_masks, strict=True)):
        present = np.flatnonzero(mask)
        for worker in present:
            for leaf, m in momentum.items():
                old, new = m[worker], g[leaf][worker].astype(np.float64)
                is_first = worker not in met
                m[worker] = new if is_first else decay * old + (1 - decay) * new
                if step % every == 0:
                    anchor[leaf][worker] = m[worker]
            met.add(worker)
            if step % every == 0:
                anchored.add(worker)
        if step % every == 0:
            center = {k: rule(h[present]) for k, h in anchor.items()}
        out = {k: np.zeros_like(m) for k, m in momentum.items()}
        for worker in present:
            for leaf, rows in out.items():
                rows[worker] = g[leaf][worker]
                if worker in anchored:
                    rows[worker] += center[leaf] - anchor[leaf][worker]
        yield out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("aggregator", "rule"),
    [
        (jm.worker_mean(), lambda rows: rows.mean(axis=0)),
        (jm.coordinate_median(), lambda rows: np.median(rows, axis=0)),
    ],
    ids=["mean", "median"],
)
def test_corrected_drift_is_its_loop(aggregator, rule, masked):
    here = masks() if masked else np.ones((STEPS, M), bool)
    grads = gradients()
    transform = jm.correct_drift(aggregator, every=3, num_workers=M, decay=0.8)
    sent, _ = results(transform, grads, here if masked else None)
    for step, out in enumerate(drift_loop(grads, here, 3, 0.8, rule)):
        assert_rows_close(sent[step], out, here[step])


def test_absent_workers_keep_what_they_remember():
    grads, here = gradients(), masks()
    transform = jm.correct_drift(jm.worker_mean(), 2, M)
    _, states = results(transform, grads, here)
    for before, after, mask in zip(states, states[1:], here[1:], strict=False):
        for old, new in zip(
            jax.tree.leaves(before.workers), jax.tree.leaves(after.workers), strict=True
        ):
            np.testing.assert_array_equal(old[~mask], new[~mask])
        assert int(after.count) == int(before.count) + 1


def test_a_worker_absent_in_pieces_does_not_poison_itself():
    grads = gradients()
    mask = np.ones((STEPS, M), bool)
    grads[2]["w"][3], mask[2, 3] = np.nan, False
    for transform in (
        jm.interpolate_momentum(M),
        jm.ef21_sign(M),
        jm.correct_drift(jm.worker_mean(), 2, M),
    ):
        sent, _ = results(transform, grads, mask)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sent[3:]))


def test_what_leaves_the_worker_axis_is_no_aggregator():
    grads, params = jnp.ones((3, 2)), jnp.zeros(2)
    for name, tx in {
        "correct_drift": jm.correct_drift(jm.clip_workers(1.0), 2, 3),
        "bucketing": jm.bucketing(2, 0, jm.clip_workers(1.0)),
    }.items():
        with pytest.raises(ValueError, match=f"`{name}` expects updates of the par"):
            tx.update(grads, tx.init(params), params)


def test_corrected_signs_vote_for_the_mean_where_plain_ones_do_not():
    """a = (1, 2, 10): the plain vote ends at the median 2, the corrected at 13/3."""
    minima = jnp.array([[1.0], [2.0], [10.0]])

    def end(optimizer):
        def body(carry, _):
            x, state = carry
            updates, state = optimizer.update(x[None] - minima, state, x)
            return (x + updates, state), None

        start = jnp.zeros(1), optimizer.init(jnp.zeros(1))
        (x, _), _ = jax.lax.scan(body, start, length=2000)
        return float(x[0])

    vote = optax.chain(jm.majority_vote(), optax.scale(-0.01))
    assert abs(end(vote) - 2) < 0.02
    corrected = optax.chain(jm.correct_drift(jm.worker_mean(), 10, 3), vote)
    assert abs(end(corrected) - 13 / 3) < 0.25


def test_drift_options_are_checked():
    with pytest.raises(ValueError, match="`every` must be at least 1; got 0"):
        jm.correct_drift(jm.worker_mean(), 0, M)
    with pytest.raises(TypeError, match="`aggregator` must be an optax gradient"):
        jm.correct_drift(None, 2, M)
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\)"):
        jm.correct_drift(jm.worker_mean(), 2, M, decay=1)


# --- all of them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [jm.interpolate_momentum, jm.ef21_sign, jm.signum, jm.distributed_lion],
)
def test_messages_name_what_was_called(build):
    options = {"num_workers": M}
    if build in (jm.signum, jm.distributed_lion):
        options["learning_rate"] = 0.1
    name = {
        jm.signum: "interpolate_momentum",
        jm.distributed_lion: "interpolate_momentum",
    }
    transform = build(**options)
    state = transform.init(PARAMS)
    with pytest.raises(
        ValueError, match=f"`{name.get(build, build.__name__)}` expects"
    ):
        transform.update(PARAMS, state, PARAMS)
    two = jax.tree.map(lambda g: g[:2], gradients(num_steps=1)[0])
    with pytest.raises(ValueError, match=r"states of 5 workers.*updates have 2"):
        transform.update(two, state, PARAMS)
    with pytest.raises(TypeError, match=r"`num_workers` must be an int; got 2\.0"):
        build(**options | {"num_workers": 2.0})


WORKERS = "workers"
ON_A_MESH = {
    "distributed_lion": lambda axis_name: jm.distributed_lion(
        0.1,
        num_workers=8,
        weight_decay=0.1,
        noise=jm.noise.uniform(0.5, "systematic"),
        key=3,
        ties="random",
        transport="packed",
        axis_name=axis_name,
    ),
    "ef21_sign": lambda axis_name: optax.chain(
        jm.ef21_sign(8), jm.coordinate_median(axis_name=axis_name)
    ),
    "correct_drift": lambda axis_name: optax.chain(
        jm.correct_drift(jm.coordinate_median(axis_name=axis_name), 2, 8),
        jm.majority_vote(axis_name=axis_name),
    ),
}


@pytest.mark.parametrize("name", ON_A_MESH)
def test_four_devices_give_the_bits_of_one(name):
    rng = np.random.default_rng(0)
    batch = [rng.normal(size=(8, 33)).astype(np.float32) for _ in range(3)]
    masks = np.ones((3, 8), bool)
    masks[1, 2] = masks[2, 6] = False
    mesh = jm.sharding.workers_mesh(4)
    params = jnp.ones(33)

    def loss(params, g):
        return jnp.vdot(params, g)

    single = jm.make_step(loss, ON_A_MESH[name](None), worker_chunk=1)
    optimizer = ON_A_MESH[name](WORKERS)
    spread = jm.sharding.shard_step(loss, optimizer, mesh, worker_chunk=1)
    ends = []
    for step in (jax.jit(single), spread):
        x, state = params, optimizer.init(params)
        for g, mask in zip(batch, masks, strict=True):
            with jax.numpy_dtype_promotion("standard"):
                x, state, _ = step(x, state, g, worker_mask=mask)
        ends.append((np.asarray(x), jax.tree.leaves(state)))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(a, b)


def sent_bytes(transform):
    """Bytes each of 8 devices sends in one update, one worker each."""
    size, mesh = 1024, jm.sharding.workers_mesh(8)
    params = jax.ShapeDtypeStruct((size,), jnp.float32)
    specs = jm.sharding.state_specs(transform, params, 8)
    update = jax.jit(
        jax.shard_map(
            lambda g, state: transform.update(g, state)[0],
            mesh=mesh,
            in_specs=(P(WORKERS), specs),
            out_specs=P(),
        )
    )
    state = jax.eval_shape(transform.init, params)
    rows = jax.ShapeDtypeStruct((8, size), jnp.float32)
    compiled = update.lower(rows, state).compile()
    return jm.diagnostics.wire_bytes(compiled, num_coordinates=size).total / size


def test_what_the_transforms_send_over_a_mesh():
    """EF21 sends floats; corrected drift sends the vote, and floats to refresh."""
    mean = jm.worker_mean(axis_name=WORKERS)
    vote = jm.majority_vote(axis_name=WORKERS)
    assert sent_bytes(optax.chain(jm.interpolate_momentum(8), vote)) == 2 * 7 / 8
    assert sent_bytes(optax.chain(jm.ef21_sign(8), mean)) == 2 * 7 / 8 * 4
    refreshed = optax.chain(jm.correct_drift(mean, 50, 8), vote)
    assert sent_bytes(refreshed) == 2 * 7 / 8 * (4 + 1)
