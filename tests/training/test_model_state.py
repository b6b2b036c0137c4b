"""Models with state, per worker or averaged, against a loop over workers in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmedian as jm

M, STEPS, RATE = 4, 5, 0.25
DATA = np.random.default_rng(0).normal(size=(M, 6, 3)).astype(np.float32)
DATA *= np.float32([1, 2, 3, 4])[:, None, None]  # no two workers alike
KINDS = ("mean", "per_worker")
FIRST = {"seen": np.float32([0.5, -1, 2]), "batches": np.int32(3), "far": np.bool_(0)}
# Worker 1 leaves after three steps; worker 3 comes for the last two alone.
MASKS = np.bool_([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 1, 1]])
WEIGHTS = np.float32([1, 2.5, 0.3, 1.7])


def loss(params, model_state, batch):
    """Its gradient depends on the state."""
    value = 0.5 * jnp.mean(jnp.square((params + model_state["seen"])[None] - batch))
    now = jnp.mean(batch, axis=0)
    return value, {
        "seen": 0.75 * model_state["seen"] + 0.25 * now,
        "batches": model_state["batches"] + jnp.any(now > 0).astype(jnp.int32),
        "far": model_state["far"] | jnp.any(jnp.abs(batch) > 6),
    }


def first(kind):
    if kind == "mean":
        return FIRST
    return jax.tree.map(lambda leaf: np.stack([leaf] * M), FIRST)


def optimizer(axis_name=None):
    return optax.chain(
        jm.worker_mean(axis_name=axis_name), optax.scale_by_learning_rate(RATE)
    )


def median(axis_name=None):
    return jm.median_sgd(RATE, axis_name=axis_name)


def batches():
    return jm.mini_batches(DATA, 2)


def extra_args(key, step, weighted=True):
    mask = jnp.asarray(MASKS)[step]
    weights = {"worker_weights": jnp.asarray(WEIGHTS)} if weighted else {}
    return {"worker_mask": mask, **weights}


def train(kind, chain=None, run=jm.run, num_steps=STEPS, **options):
    mesh = options.get("mesh")
    chain = chain or optimizer(None if mesh is None else "workers")
    options = {
        "chunk": 2,
        "extra_args": extra_args,
        "model_state": first(kind),
        "state_over_workers": kind,
    } | options
    loss_fn = options.pop("loss_fn", loss)
    return run(loss_fn, chain, jnp.zeros(3), batches(), num_steps, 1, **options)


@functools.cache
def batch_of(step):
    key = jax.random.fold_in(jax.random.key(1), jm.noise.keys.RUN)
    return np.asarray(batches()(jax.random.fold_in(key, step), step))


@functools.cache
def by_hand(kind, num_steps=STEPS):
    """Worker by worker: parameters, and the state of each worker or of all."""
    params = np.zeros(3)
    states = [dict(FIRST) for _ in range(M)]
    for step in range(num_steps):
        present = np.flatnonzero(MASKS[step])
        grads, after = {}, {}
        for i in present:
            seen, batch = states[i]["seen"], np.float64(batch_of(step)[i])
            grads[i] = (params - batch + seen).mean(axis=0) / 3
            now = batch.mean(axis=0)
            after[i] = {
                "seen": 0.75 * seen + 0.25 * now,
                "batches": states[i]["batches"] + int((now > 0).any()),
                "far": states[i]["far"] | (np.abs(batch) > 6).any(),
            }
        share = WEIGHTS[present] / WEIGHTS[present].sum()
        params = params - RATE * sum(s * grads[i] for s, i in zip(share, present))  # noqa: B905
        if kind == "per_worker":
            for i in present:
                states[i] = after[i]
            continue
        shared = {
            "seen": sum(s * after[i]["seen"] for s, i in zip(share, present)),  # noqa: B905
            "batches": max(after[i]["batches"] for i in present),
            "far": any(after[i]["far"] for i in present),
        }
        states = [shared] * M
    stacked = {name: np.stack([state[name] for state in states]) for name in FIRST}
    if kind == "mean":
        stacked = {name: rows[0] for name, rows in stacked.items()}
    return params, stacked


def assert_as_by_hand(kind, params, model_state):
    expected = by_hand(kind)
    np.testing.assert_allclose(params, expected[0], rtol=2e-6)
    for name, leaf in expected[1].items():
        assert model_state[name].dtype == FIRST[name].dtype
        np.testing.assert_allclose(model_state[name], leaf, rtol=2e-6, err_msg=name)


def assert_same_bits(got, expected):
    for name in ("params", "opt_state", "model_state"):
        a, b = (jax.tree.leaves(getattr(end, name)) for end in (got, expected))
        for left, right in zip(a, b, strict=True):
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes(), name


# --- the state of each worker, and their mean -----------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("worker_chunk", [None, 1, 3])
def test_runs_keep_states_as_a_loop_over_workers_does(kind, worker_chunk):
    result = train(kind, worker_chunk=worker_chunk)
    assert_as_by_hand(kind, result.params, result.model_state)
    flags = by_hand(kind)[1]["far"]
    assert kind == "mean" or 0 < flags.sum() < M  # the test tells workers apart


@pytest.mark.parametrize("kind", KINDS)
def test_pure_runs_and_steps_do_as_runs(kind):
    result = train(kind, run=jm.run_pure)
    assert_as_by_hand(kind, result.params, result.model_state)
    chain = optimizer()
    step = jm.make_step(loss, chain, state_over_workers=kind, num_workers=M)
    params, model_state = jnp.zeros(3), first(kind)
    opt_state = chain.init(params)
    for number in range(STEPS):
        params, opt_state, model_state, metrics = step(
            params, opt_state, model_state, batch_of(number), **extra_args(0, number)
        )
    assert_as_by_hand(kind, params, model_state)
    assert [*metrics] == ["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_absent_workers_return_reaches_no_state(kind):
    spoilt = batch_of(0).copy()
    spoilt[3] = np.nan
    step = jm.make_step(loss, optimizer(), state_over_workers=kind)
    ends = [
        step(jnp.zeros(3), optimizer().init(jnp.zeros(3)), first(kind), batch, **mask)
        for mask in ({"worker_mask": MASKS[0]}, {"worker_mask": np.zeros(M, bool)})
        for batch in (batch_of(0), spoilt)
    ]
    for clean, bad in (ends[:2], ends[2:]):
        jax.tree.map(np.testing.assert_array_equal, clean[2], bad[2])
    jax.tree.map(np.testing.assert_array_equal, ends[2][2], first(kind))  # nobody came


def test_short_floats_are_averaged_in_float32_and_rounded_once():
    def counted(params, model_state, batch):
        return params * batch, model_state + batch.astype(jnp.bfloat16)

    step = jm.make_step(counted, optimizer(), state_over_workers="mean")
    params, batch = jnp.float32(0), jnp.array([0.0, 2.0, 2.0, 4.0])
    *_, state, _ = step(params, optimizer().init(params), jnp.bfloat16(256), batch)
    assert state.dtype == jnp.bfloat16
    assert float(state) == 258.0  # of 256, 258, 258, 260; their sum is 1032


# --- on a mesh ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "weighted"), [("mean", True), ("mean", False), ("per_worker", False)]
)
def test_a_mesh_ends_with_the_bits_of_one_device(kind, weighted):
    """Beside a median: the means of `optimizer` are equal up to rounding alone.

    So are weighted means of states, whose products some compilers round with the sum.
    """
    given = functools.partial(extra_args, weighted=weighted)
    options = {"worker_chunk": 1, "extra_args": given, "chunk": STEPS}
    expected = train(kind, median(), **options)
    mesh = jm.sharding.workers_mesh(4)
    got = train(kind, median("workers"), mesh=mesh, **options)
    if weighted:
        for name in ("params", "model_state"):
            pairs = getattr(got, name), getattr(expected, name)
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-5), *pairs
            )
    else:
        assert_same_bits(got, expected)
    rows = got.model_state["seen"].addressable_shards[0].data.shape
    assert rows == ((1, 3) if kind == "per_worker" else (3,))


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_of_a_mesh_takes_the_state_too(kind):
    chain = optimizer("workers")
    step = jm.sharding.shard_step(
        loss, chain, jm.sharding.workers_mesh(2), state_over_workers=kind
    )
    params, model_state = jnp.zeros(3), first(kind)
    opt_state = chain.init(params)
    for number in range(STEPS):
        params, opt_state, model_state, _ = step(
            params, opt_state, model_state, batch_of(number), **extra_args(0, number)
        )
    assert_as_by_hand(kind, params, model_state)


def test_steps_on_an_explicit_mesh_take_the_state_too():
    mesh = jax.make_mesh((2,), ("workers",), devices=jax.devices()[:2],
                         axis_types=(jax.sharding.AxisType.Explicit,))  # fmt: skip
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("workers"))
    batch, held = jax.device_put((batch_of(0), first("per_worker")), cut)
    step = jm.make_step(loss, optimizer(), state_over_workers="per_worker")
    start = jnp.zeros(3), optimizer().init(jnp.zeros(3))
    _, _, expected, _ = step(*start, first("per_worker"), batch_of(0))
    _, _, got, _ = step(*start, held, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected
    )
    assert got["seen"].sharding.spec[0] == "workers"


# --- saved, evaluated, and beside other things ----------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_states_resume_to_the_bit_on_another_number_of_devices(kind, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    options = {
        "worker_chunk": 1,
        "evaluate": lambda params, state: {"seen": -jnp.mean(jnp.abs(state["seen"]))},
        "keep_best": "seen",
        "extra_args": functools.partial(extra_args, weighted=False),
    }
    expected = train(kind, median(), num_steps=6, **options)
    for num_steps, num_devices in ((2, 2), (4, None), (6, 4)):
        mesh = num_devices and jm.sharding.workers_mesh(num_devices)
        chain = median(mesh and "workers")
        result = train(
            kind, chain, num_steps=num_steps, mesh=mesh,
            checkpoint=tmp_path / "run", **options,
        )  # fmt: skip
    assert_same_bits(result, expected)
    seen = [end.metrics["seen"] for end in (result, expected)]
    np.testing.assert_allclose(*seen, rtol=1e-6)  # sums over devices
    for end in (result, expected):
        best = -np.abs(np.asarray(end.best_model_state["seen"])).mean()
        assert best == pytest.approx(end.metrics["seen"].max(), rel=1e-6)
    saved = (result.params, result.opt_state, first(kind), result.best_params,
             first(kind))  # fmt: skip
    step, (_, _, restored, _, best) = jm.checkpoint.restore(tmp_path / "run", saved)
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, restored, result.model_state)
    jax.tree.map(np.testing.assert_array_equal, best, result.best_model_state)


def test_a_run_goes_on_from_a_state_in_memory():
    half = train("per_worker", num_steps=2)
    result = jm.run(
        loss,
        optimizer(),
        half.params,
        batches(),
        STEPS,
        1,
        chunk=2,
        extra_args=extra_args,
        model_state=half.model_state,
        state_over_workers="per_worker",
        opt_state=half.opt_state,
        step=2,
    )
    assert_same_bits(result, train("per_worker"))


@pytest.mark.parametrize("worker_chunk", [None, 2])
def test_auxiliary_output_and_keys_stand_beside_the_state(worker_chunk):
    def with_aux(params, model_state, batch, key):
        value, after = loss(params, model_state, batch)
        aux = {"first": batch[0, 0], "drawn": jax.random.uniform(key)}
        return value, (after, aux)

    result = train("mean", loss_fn=with_aux, has_aux=True, worker_chunk=worker_chunk)
    assert_as_by_hand("mean", result.params, result.model_state)
    present = np.flatnonzero(MASKS[2])  # an edge is measured on the batch that is next
    share = WEIGHTS[present] / WEIGHTS[present].sum()
    expected = share @ batch_of(2)[present, 0, 0]
    np.testing.assert_allclose(result.metrics["first"][0], expected, rtol=1e-5)
    assert len(set(result.metrics["drawn"].tolist())) == 3


# --- what is refused ------------------------------------------------------------------

CHANGES = [
    (
        lambda s: {**s, "seen": s["seen"][:2]},
        ValueError,
        r"\['seen'\]` is float32 \(2,",
    ),
    (
        lambda s: {**s, "batches": s["batches"].astype(jnp.float32)},
        ValueError,
        r"\['batches'\]` is float32 \(\), of one worker, before int32 \(\)",
    ),
    (
        lambda s: {"seen": s["seen"], "new": s["far"]},
        ValueError,
        r"\['batches'\]` is missing; .*\['far'\]` is missing; .*\['new'\]` is new",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), CHANGES)
@pytest.mark.parametrize("worker_chunk", [None, 1])
def test_a_state_of_another_form_is_refused_by_name(
    change, error, message, worker_chunk
):
    def changing(params, model_state, batch):
        value, after = loss(params, model_state, batch)
        return value, change(after)

    with pytest.raises(error, match=message):
        train("mean", loss_fn=changing, worker_chunk=worker_chunk)


@pytest.mark.parametrize(
    ("returned", "options", "message"),
    [
        (lambda value, after: value, {}, r"must return \(loss, model_state\)"),
        (lambda value, after: (value, after, 1), {}, "returned a tuple of 3"),
        (
            lambda value, after: (value, after),
            {"has_aux": True},
            r"must return \(loss, \(model_state, aux\)\)",
        ),
    ],
)
def test_a_loss_that_returns_no_state_is_refused(returned, options, message):
    def silent(params, model_state, batch):
        return returned(*loss(params, model_state, batch))

    with pytest.raises(TypeError, match=message):
        train("mean", loss_fn=silent, **options)


@pytest.mark.parametrize(
    ("state", "kind", "error", "message"),
    [
        (FIRST, "per_worker", ValueError, r"must have leaves \[M, ...\].*jnp.stack"),
        (
            {"seen": np.zeros((3, 3), np.float32)},
            "per_worker",
            ValueError,
            r"`model_state\['seen'\]` has the states of 3 workers.* batch has 4",
        ),
        ({"seen": jax.random.key(0)}, "mean", TypeError, "is a key: leave it out"),
        ({"seen": np.complex64(1)}, "mean", TypeError, r"\['seen'\]` is complex64"),
        ({"seen": "text"}, "per_worker", TypeError, "must be an array or a number"),
        (FIRST, "each", ValueError, "`state_over_workers` must be one of 'mean', 'per"),
    ],
)
def test_states_that_cannot_be_kept_are_refused(state, kind, error, message):
    with pytest.raises(error, match=message):
        train(kind, model_state=state)
    mesh = jm.sharding.workers_mesh(1)
    with pytest.raises(error, match=message):
        train(kind, model_state=state, mesh=mesh)


def test_runs_count_the_workers_of_a_batch():
    with pytest.raises(ValueError, match="`num_workers` is 24, but the batch"):
        train("mean", num_workers=24)
