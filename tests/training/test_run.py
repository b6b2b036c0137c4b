"""`make_step`, `run` and `run_pure` against training loops written in NumPy."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_orders import key_words, sample_at

import jaxmedian as jm

M, SAMPLES, FEATURES = 5, 8, 3
RATE = 0.05


def loss_fn(params, batch):
    """Least squares of one worker."""
    residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return 0.5 * jnp.mean(jnp.square(residual))


def worker_data():
    """Skewed targets, so that the median of the gradients is not their mean."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(M, SAMPLES, FEATURES)).astype(np.float32)
    shift = np.float32([0, 0.2, 0.5, 1, 6])[:, None]
    y = rng.normal(size=(M, SAMPLES)).astype(np.float32) + shift
    return {"x": x, "y": y}


def start():
    return {"b": jnp.float32(0.5), "w": jnp.array([1.0, -1.0, 0.25])}


def slow_losses_and_grads(params, batch):
    """Every worker's loss and gradient in float64, one sample at a time."""
    losses, grads = [], {"b": [], "w": []}
    for x, y in zip(np.float64(batch["x"]), np.float64(batch["y"]), strict=True):
        loss, grad_b, grad_w = 0.0, 0.0, np.zeros(FEATURES)
        for features, target in zip(x, y, strict=True):
            residual = features @ params["w"] + params["b"] - target
            loss += 0.5 * residual**2 / len(y)
            grad_b += residual / len(y)
            grad_w += residual * features / len(y)
        losses.append(loss)
        grads["b"].append(grad_b)
        grads["w"].append(grad_w)
    return np.array(losses), {name: np.array(rows) for name, rows in grads.items()}


def slow_run(batch_of_step, num_steps, rule):
    """Plain descent on what ``rule`` makes of the workers' gradients."""
    params = {name: np.float64(value) for name, value in start().items()}
    for step in range(num_steps):
        _, grads = slow_losses_and_grads(params, batch_of_step(step))
        params = {name: params[name] - RATE * rule(grads[name]) for name in params}
    return params


def median(rows):
    return np.median(rows, axis=0)


def majority(rows):
    return np.sign(np.sign(rows).sum(axis=0))


def assert_close(got, expected, atol=2e-6):
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=atol)


# --- gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("worker_chunk", [None, 1, 2, 5, 100])
def test_worker_gradients_are_those_of_the_slow_loop(worker_chunk):
    batch = worker_data()
    losses, grads = slow_losses_and_grads(start(), batch)
    value_and_grads = jm.worker_value_and_grads(loss_fn, worker_chunk=worker_chunk)
    got_losses, got = jax.jit(value_and_grads)(start(), batch)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-5)
    assert_close(got, grads, atol=1e-5)
    only_grads = jax.jit(jm.worker_grads(loss_fn, worker_chunk=worker_chunk))
    assert_close(only_grads(start(), batch), grads, atol=1e-5)


@pytest.mark.parametrize("worker_chunk", [None, 2])
def test_auxiliary_output_gets_a_worker_axis(worker_chunk):
    def with_aux(params, batch):
        return loss_fn(params, batch), {"first": batch["y"][0]}

    batch = worker_data()
    options = {"has_aux": True, "worker_chunk": worker_chunk}
    grads, aux = jm.worker_grads(with_aux, **options)(start(), batch)
    assert grads["w"].shape == (M, FEATURES)
    np.testing.assert_array_equal(aux["first"], batch["y"][:, 0])
    value, _ = jm.worker_value_and_grads(with_aux, **options)(start(), batch)
    losses, aux = value
    assert losses.shape == (M,)
    np.testing.assert_array_equal(aux["first"], batch["y"][:, 0])


# --- one step -------------------------------------------------------------------------


@pytest.mark.parametrize("worker_chunk", [None, 2])
@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [(jm.sign_sgd(RATE), majority), (jm.median_sgd(RATE), median)],
)
def test_a_step_is_that_of_the_slow_loop(optimizer, rule, worker_chunk):
    batch = worker_data()
    step = jm.make_step(loss_fn, optimizer, worker_chunk=worker_chunk)
    params, opt_state = start(), optimizer.init(start())
    for _ in range(3):
        losses, _ = slow_losses_and_grads(params, batch)
        params, opt_state, metrics = step(params, opt_state, batch)
        np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-5)
    assert_close(params, slow_run(lambda step: batch, 3, rule))
    assert set(metrics) == {"loss"}


def test_a_step_passes_extra_arguments_on_and_measures_who_is_present():
    batch, mask = worker_data(), np.array([True, False, True, True, False])
    batch["y"][1] = np.nan
    optimizer = jm.median_sgd(RATE)
    step = jm.make_step(loss_fn, optimizer)
    state = optimizer.init(start())
    params, _, metrics = step(start(), state, batch, worker_mask=mask)
    losses, grads = slow_losses_and_grads(start(), batch)
    expected = {n: start()[n] - RATE * median(grads[n][mask]) for n in grads}
    assert_close(params, expected)
    np.testing.assert_allclose(metrics["loss"], losses[mask].mean(), rtol=1e-5)
    nobody = np.zeros(M, bool)
    params, _, metrics = step(start(), state, batch, worker_mask=nobody)
    assert_close(params, start())
    assert np.isnan(metrics["loss"])


def test_a_step_of_nobody_is_no_lowest_loss(promoting):
    """Neither to what lowers the rate on a plateau, nor to the best parameters."""
    plateau = optax.contrib.reduce_on_plateau(patience=5)
    result = jm.run(
        lambda params, batch: (loss_fn(params, batch), params["b"]),
        optax.chain(jm.median_sgd(RATE), plateau),
        start(),
        jm.full_batch(worker_data()),
        12,
        0,
        chunk=4,
        has_aux=True,
        extra_args=lambda key, step: {
            "worker_mask": jnp.full(M, (step != 3) & (step != 8))
        },
        keep_best="-loss",
    )
    losses, aux = result.metrics["loss"], result.metrics["aux"]
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
    np.testing.assert_array_equal(np.isnan(aux), [False, True, False])
    assert float(result.opt_state[1].scale) == 1
    assert float(result.opt_state[1].best_value) > 0
    np.testing.assert_array_equal(result.best_params["b"], result.params["b"])


def test_a_step_returns_auxiliary_output():
    def with_aux(params, batch):
        return loss_fn(params, batch), jnp.max(batch["y"])

    optimizer = jm.sign_sgd(RATE)
    step = jm.make_step(with_aux, optimizer, has_aux=True)
    batch = worker_data()
    _, _, metrics = step(start(), optimizer.init(start()), batch)
    np.testing.assert_array_equal(metrics["aux"], batch["y"].max(axis=1))
    assert metrics["loss"].shape == ()


def test_complex_auxiliary_output_is_refused_by_runs():
    def with_phase(params, batch):
        return loss_fn(params, batch), {
            "phase": jax.lax.complex(params["b"], params["b"])
        }

    batches = jm.full_batch(worker_data())
    with pytest.raises(TypeError, match=r"With `has_aux`, `loss_fn` .*as 'phase'"):
        jm.run(with_phase, jm.sign_sgd(RATE), start(), batches, 1, 0, has_aux=True)


def test_a_step_compiles_once():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss_fn(params, batch)

    optimizer = jm.noisy_sign_sgd(RATE, jm.noise.uniform(0.1), 0)
    step = jm.make_step(counted, optimizer)
    params, state = start(), optimizer.init(start())
    params, state, _ = step(params, state, worker_data())
    first = len(traces)
    for _ in range(3):
        params, state, _ = step(params, state, worker_data())
    assert len(traces) == first


# --- runs -----------------------------------------------------------------------------


def drawn_batches(key, batch_size):
    """Mini-batches by the documented keys, one sample at a time."""
    data = worker_data()
    key = jax.random.fold_in(key, 3 * 2**30 + 9)  # the branch of a run

    def batch_of_step(step):
        picked = []
        for i in range(M):
            words = key_words(key, step, 3 * 2**30 + 3, i)
            picked.append([sample_at(j, words, SAMPLES) for j in range(batch_size)])
        return {
            name: np.stack([leaf[i][picked[i]] for i in range(M)])
            for name, leaf in data.items()
        }

    return batch_of_step


def test_a_run_is_the_slow_loop_with_its_measurements_at_the_edges():
    """Ten steps in chunks of four: edges at 4, 8 and the remainder 10."""
    key = jax.random.key(3)
    batches = jm.mini_batches(worker_data(), 4)
    result = jm.run(loss_fn, jm.median_sgd(RATE), start(), batches, 10, key, chunk=4)
    slow_batches = drawn_batches(key, 4)
    assert_close(result.params, slow_run(slow_batches, 10, median), atol=1e-5)
    assert result.step == 10
    assert result.metrics["step"].tolist() == [4, 8, 10]
    expected_names = {"step", "loss", "gradient_norm", "mean_median_gap"}
    assert set(result.metrics) == expected_names | {"disagreement", "ties"}
    for row, edge in enumerate((4, 8, 10)):  # parameters at the edge, the next batch
        params = slow_run(slow_batches, edge, median)
        losses, grads = slow_losses_and_grads(params, slow_batches(edge))
        rows = np.concatenate([grads["b"][:, None], grads["w"]], axis=1)
        mean, middle = rows.mean(axis=0), median(rows)
        measured = {name: column[row] for name, column in result.metrics.items()}
        assert measured["loss"] == pytest.approx(losses.mean(), rel=1e-4)
        assert measured["gradient_norm"] == pytest.approx(
            np.linalg.norm(mean), rel=1e-4
        )
        gap = np.linalg.norm(middle - mean)
        assert measured["mean_median_gap"] == pytest.approx(gap, rel=1e-4)
        assert measured["disagreement"] == np.mean(mean * middle < 0)
        assert measured["ties"] == 0


def noisy_run(num_steps=10, run=jm.run, **options):
    """A run whose noise and batches both depend on the step."""
    optimizer = jm.noisy_median_sgd(RATE, jm.noise.uniform(0.3), 1)
    batches = jm.mini_batches(worker_data(), 4)
    return run(loss_fn, optimizer, start(), batches, num_steps, 2, **options)


@pytest.fixture(scope="module")
def whole_run():
    return noisy_run(chunk=10)


@pytest.fixture(scope="module")
def chunked_run():
    return noisy_run(chunk=4)


def test_chunking_does_not_change_the_run(chunked_run, whole_run):
    """Neither the noise nor the batches: edges at 4, 8 and the remainder 10."""
    result = chunked_run
    jax.tree.map(np.testing.assert_array_equal, result.params, whole_run.params)
    assert int(optax.tree_utils.tree_get(result.opt_state, "count")) == 10
    assert result.metrics["step"].tolist() == [4, 8, 10]
    for name, column in result.metrics.items():
        assert isinstance(column, np.ndarray)
        assert column.shape == (3,)
        np.testing.assert_allclose(column[-1], whole_run.metrics[name][-1], rtol=1e-6)


def test_run_pure_is_run(chunked_run):
    pure, host = noisy_run(run=jm.run_pure, chunk=4), chunked_run
    assert_close(pure.params, host.params)
    assert pure.step == host.step == 10
    assert set(pure.metrics) == set(host.metrics)
    for name, column in host.metrics.items():
        assert isinstance(pure.metrics[name], jax.Array)
        np.testing.assert_allclose(pure.metrics[name], column, rtol=1e-4, atol=1e-6)
    count = optax.tree_utils.tree_get(pure.opt_state, "count")
    assert int(count) == 10


def test_run_pure_may_be_vmapped_over_seeds_and_scales():
    batches = jm.full_batch(worker_data())

    def train(scale, noise_key):
        optimizer = jm.noisy_median_sgd(RATE, jm.noise.uniform(scale), noise_key)
        run = jm.run_pure(loss_fn, optimizer, start(), batches, 4, 0, chunk=2)
        return run.params, run.metrics["loss"]

    scales = jnp.array([0.0, 0.5, 0.5])
    keys = jax.vmap(jax.random.key)(jnp.array([0, 0, 1]))
    params, losses = jax.jit(jax.vmap(train))(scales, keys)
    assert losses.shape == (3, 2)
    plain = slow_run(lambda step: worker_data(), 4, median)
    assert_close({name: rows[0] for name, rows in params.items()}, plain, atol=1e-5)
    one, _ = jax.jit(train)(scales[2], keys[2])
    assert_close({name: rows[2] for name, rows in params.items()}, one, atol=1e-5)
    assert np.abs(params["w"][1] - params["w"][2]).max() > 1e-3


def test_the_batch_function_gets_each_step_number_once_with_its_own_key():
    key = jax.random.key(9)

    def next_batch(key, step):
        draw = jax.random.uniform(key, (3,))
        return step.astype(jnp.float32) + draw

    def linear(params, batch):  # its gradient is the batch
        return params * batch

    result = jm.run(
        linear,
        optax.chain(jm.worker_mean(), optax.scale(-1.0)),
        jnp.float32(0),
        next_batch,
        7,
        key,
        chunk=3,
    )
    key = jax.random.fold_in(key, 3 * 2**30 + 9)  # the branch of a run
    drawn = [jax.random.uniform(jax.random.fold_in(key, s), (3,)) for s in range(7)]
    expected = -sum(s + float(np.mean(d)) for s, d in enumerate(drawn))
    assert float(result.params) == pytest.approx(expected, rel=1e-6)


def test_the_counterexample_of_the_paper_ends_where_its_arithmetic_says():
    """a = (1, 2, 10), 10,000 steps of 0.001: 2, and a mean gradient of 7/3."""
    batches = jm.full_batch(jnp.array([1.0, 2.0, 10.0]))

    def quadratic(x, a):
        return 0.5 * jnp.square(x - a)

    ends = {}
    for name, optimizer in (
        ("sign", jm.sign_sgd(1e-3)),
        ("median", jm.median_sgd(1e-3)),
    ):
        ends[name] = jm.run(
            quadratic, optimizer, jnp.float32(5e-4), batches, 10_000, 0, chunk=5_000
        )
        gradient = ends[name].metrics["gradient_norm"][-1]
        assert gradient == pytest.approx(7 / 3, abs=1e-3)
        assert ends[name].metrics["mean_median_gap"][-1] == pytest.approx(
            7 / 3, abs=1e-3
        )
    assert float(ends["median"].params) == pytest.approx(1.99990968, abs=1e-4)
    assert float(ends["sign"].params) == pytest.approx(2.0, abs=7e-4)


def test_metrics_of_the_user_see_params_grads_and_updates():
    def metric(params, grads, updates):
        assert grads["w"].shape == (M, FEATURES)
        return {"bias": params["b"], "moves": jnp.sum(jnp.abs(updates["w"]))}

    result = jm.run(
        loss_fn,
        jm.sign_sgd(RATE),
        start(),
        jm.full_batch(worker_data()),
        3,
        0,
        chunk=2,
        metrics=[metric, lambda params, grads, updates: {"one": jnp.float32(1)}],
    )
    assert result.metrics["bias"][-1] == pytest.approx(float(result.params["b"]))
    np.testing.assert_allclose(result.metrics["moves"], [3 * RATE] * 2, rtol=1e-5)
    assert result.metrics["one"].tolist() == [1, 1]


def test_a_metric_may_be_an_array():
    def sample(params, grads, updates):
        return {"sample": jm.diagnostics.sample_coordinates(grads, 2, key=1)}

    rows = []
    options = {"chunk": 2, "metrics": [sample]}
    arguments = (jm.sign_sgd(RATE), start(), jm.full_batch(worker_data()), 4, 0)
    result = jm.run(
        loss_fn, *arguments, on_chunk=lambda step, row: rows.append(row), **options
    )
    assert result.metrics["sample"].shape == (2, M, 2)
    assert result.metrics["sample"].dtype == np.float32
    assert type(rows[0]["sample"]) is np.ndarray
    assert type(rows[0]["loss"]) is float
    np.testing.assert_array_equal(rows[1]["sample"], result.metrics["sample"][1])
    _, grads = slow_losses_and_grads(result.params, worker_data())
    sampled = sample(None, {n: np.float32(g) for n, g in grads.items()}, None)
    np.testing.assert_allclose(rows[1]["sample"], sampled["sample"], atol=1e-5)
    pure = jm.run_pure(loss_fn, *arguments, **options)
    np.testing.assert_allclose(
        pure.metrics["sample"], result.metrics["sample"], atol=1e-6
    )


def test_a_run_of_no_steps_returns_the_start():
    for run in (jm.run, jm.run_pure):
        result = noisy_run(0, run=run)
        assert_close(result.params, start())
        assert result.step == 0
        assert all(len(column) == 0 for column in result.metrics.values())


def test_a_run_in_worker_chunks_is_the_same_run(whole_run):
    result = noisy_run(chunk=10, worker_chunk=2)
    assert_close(result.params, whole_run.params, atol=1e-5)


# --- the host -------------------------------------------------------------------------


def plain_run(num_steps=10, **options):
    """A run that compiles quickly."""
    batches = jm.mini_batches(worker_data(), 4)
    optimizer = jm.sign_sgd(RATE, ties="positive")
    return jm.run(loss_fn, optimizer, start(), batches, num_steps, 2, **options)


@pytest.fixture(scope="module")
def plain_end():
    return plain_run(chunk=10)


@pytest.mark.parametrize("chunk", [1, 100])
def test_any_chunk_gives_the_same_parameters(chunk, plain_end):
    result = plain_run(chunk=chunk)
    jax.tree.map(np.testing.assert_array_equal, result.params, plain_end.params)
    assert result.metrics["step"].tolist() == [*range(chunk, 10, chunk), 10]


def test_on_chunk_is_called_at_each_edge_and_stops_the_run_by_true(plain_end):
    calls = []

    def on_chunk(step, row):
        calls.append((step, row))
        return step >= 8

    result = plain_run(chunk=4, on_chunk=on_chunk)
    assert [step for step, _ in calls] == [4, 8]
    assert all(type(step) is int for step, _ in calls)
    assert all(type(value) is float for _, row in calls for value in row.values())
    assert result.step == 8
    assert result.metrics["step"].tolist() == [4, 8]
    assert calls[1][1]["loss"] == result.metrics["loss"][1]
    assert_close(result.params, plain_run(8, chunk=8).params)
    assert np.abs(result.params["w"] - plain_end.params["w"]).max() > 1e-4


def test_ctrl_c_returns_a_usable_partial_run(capsys):
    def on_chunk(step, row):
        if step == 6:
            raise KeyboardInterrupt

    result = plain_run(chunk=3, on_chunk=on_chunk)
    assert result.step == 6
    assert "step 6" in capsys.readouterr().err
    assert result.metrics["step"].tolist() == [3, 6]
    assert_close(result.params, plain_run(6, chunk=6).params)
    again = jm.run(
        loss_fn,
        jm.sign_sgd(RATE),
        result.params,
        jm.full_batch(worker_data()),
        1,
        0,
    )
    assert np.isfinite(again.params["w"]).all()


def test_other_errors_of_on_chunk_are_raised():
    def on_chunk(step, row):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        plain_run(chunk=3, on_chunk=on_chunk)


def test_progress_is_shown_on_request_only(capsys, plain_end):
    pytest.importorskip("tqdm")
    result = plain_run(chunk=10, progress=True)
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "loss" in shown
    assert_close(result.params, plain_end.params)
    plain_run(chunk=10)
    assert capsys.readouterr().err == ""


def test_progress_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        plain_run(progress=True)


# --- from where an earlier run ended --------------------------------------------------


@pytest.mark.parametrize("split", [4, 6])
def test_a_run_goes_on_from_memory_to_the_same_bits(split, chunked_run):
    """On an edge of the grid of four, and beside it."""
    first = noisy_run(split, chunk=4)
    optimizer = jm.noisy_median_sgd(RATE, jm.noise.uniform(0.3), 1)
    batches = jm.mini_batches(worker_data(), 4)
    for run in (jm.run, jm.run_pure):
        second = run(
            loss_fn,
            optimizer,
            first.params,
            batches,
            10,
            2,
            chunk=4,
            opt_state=first.opt_state,
            step=first.step,
        )
        assert second.step == 10
        assert second.metrics["step"].tolist() == [8, 10]
        if run is jm.run:
            pairs = zip(
                *map(jax.tree.leaves, (second[:2], chunked_run[:2])), strict=True
            )
            assert all(bool((a == b).all()) for a, b in pairs)
            for name, column in second.metrics.items():
                np.testing.assert_array_equal(column, chunked_run.metrics[name][1:])
        else:
            assert_close(second.params, chunked_run.params)


def test_states_of_other_optimizers_and_steps_out_of_order_are_refused():
    batches = jm.full_batch(worker_data())
    other = optax.chain(jm.majority_vote(), optax.adam(0.1))
    for state, message in (
        (other.init(start()), "`opt_state` must be a state of this optimizer"),
        (
            optax.chain(jm.majority_vote(), optax.trace(0.9)).init(
                {"b": jnp.zeros(2), "w": jnp.zeros(3)}
            ),
            r"is float32 \(2,\), of this optimizer and these parameters float32 \(\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            jm.run(
                loss_fn,
                optax.chain(jm.majority_vote(), optax.trace(0.9)),
                start(),
                batches,
                2,
                0,
                opt_state=state,
            )
    with pytest.raises(ValueError, match="`num_steps` 3 is before `step` 4"):
        noisy_run(3, step=4)
    with pytest.raises(TypeError, match=r"`step` must be an int; got 1\.0"):
        noisy_run(3, step=1.0)


# --- donation -------------------------------------------------------------------------


def test_a_run_leaves_the_arrays_it_is_given_alone(chunked_run):
    """JAX's and NumPy's, parameters and state; one array twice is no trouble."""
    optimizer = optax.chain(jm.median_sgd(RATE), optax.trace(0.9))
    weights = jnp.array([1.0, -1.0, 0.25])
    host = np.float32(0.5)
    params = {"b": host, "w": weights}
    state = optimizer.init({"b": jnp.float32(0.5), "w": weights})
    state = (state[0], optax.TraceState({"b": jnp.float32(0), "w": weights}))
    ends = []
    for donate in (True, False):
        result = jm.run(
            loss_fn,
            optimizer,
            params,
            jm.full_batch(worker_data()),
            8,
            0,
            chunk=4,
            opt_state=state,
            donate=donate,
        )
        ends.append(result)
        assert not weights.is_deleted()
        np.testing.assert_array_equal(weights, [1, -1, 0.25])
        assert host == 0.5
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("donate", "most"), [(True, 2), (False, 3)])
def test_donation_saves_a_copy_of_the_parameters(donate, most, monkeypatch):
    """While a chunk computes: the user's, the new ones, and else those before."""
    from jaxmedian.training import loop as module

    counts, shape = [], (1237,)

    def count_and_wait(row):
        counts.append(sum(array.shape == shape for array in jax.live_arrays()))

    monkeypatch.setattr(module, "wait_until_ready", count_and_wait)
    jm.run(
        lambda params, batch: 0.5 * jnp.mean(jnp.square(params - batch)),
        jm.sign_sgd(RATE),
        jnp.zeros(shape),
        jm.full_batch(jnp.ones(3)),
        6,
        0,
        chunk=2,
        donate=donate,
    )
    assert max(counts) == most


@pytest.mark.parametrize("donate", [True, False])
def test_a_step_overwrites_what_it_is_given_only_if_asked(donate):
    optimizer = optax.chain(jm.sign_sgd(RATE), optax.trace(0.9))
    step = jm.make_step(loss_fn, optimizer, donate=donate)
    params = jax.tree.map(jnp.copy, start())
    state = optimizer.init(params)
    step(params, state, worker_data())
    for leaf in jax.tree.leaves((params, state)):
        assert leaf.is_deleted() == donate


# --- the loss -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_losses_of_16_bits_are_averaged_in_32(dtype):
    """1,001 losses of 100 add up beyond float16; 300 ones stall bfloat16 at 256."""
    for count, value in ((1001, 100), (300, 1)):

        def loss(params, batch):
            return (params * 0 + batch).astype(dtype)

        optimizer = jm.sign_sgd(0.1)
        params = jnp.zeros((), dtype)
        batch = jnp.full(count, value, dtype)
        step = jm.make_step(loss, optimizer)
        _, _, metrics = step(params, optimizer.init(params), batch)
        assert metrics["loss"].dtype == jnp.float32
        assert float(metrics["loss"]) == value


def test_the_optimizer_gets_the_mean_loss_of_those_present():
    """As `value`, unless the caller gives one."""

    def update(updates, state, params=None, *, value, **extra_args):
        del params, extra_args
        return updates, value

    keep = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), update)
    optimizer = optax.chain(jm.median_sgd(RATE), keep)
    batch, mask = worker_data(), np.array([True, False, True, True, False])
    step = jm.make_step(loss_fn, optimizer)
    losses, _ = slow_losses_and_grads(start(), batch)
    state = optimizer.init(start())
    seen = [
        step(start(), state, batch, **arguments)[1][-1]
        for arguments in ({}, {"worker_mask": mask}, {"value": jnp.float32(7)})
    ]
    expected = [losses.mean(), losses[mask].mean(), 7]
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


def test_reduce_on_plateau_works_in_a_run():
    """A constant loss: the first step sets the best, then two more halve the scale."""

    def constant(params, batch):
        return jnp.mean(batch["y"]) + 0 * params["b"]

    optimizer = optax.chain(
        jm.sign_sgd(RATE),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=2),
    )
    batches = jm.full_batch(worker_data())
    with jax.numpy_dtype_promotion("standard"):
        for run in (jm.run, jm.run_pure):
            result = run(constant, optimizer, start(), batches, 5, 0)
            assert float(result.opt_state[-1].scale) == 0.25
        with pytest.raises(
            TypeError, match=r"takes the loss as `value`\. Where gradients are"
        ):
            jm.run(constant, optimizer, start(), batches, 5, 0, worker_chunk=2)


# --- errors ---------------------------------------------------------------------------


def test_an_optimizer_without_an_aggregator_is_refused():
    params = start()
    optimizer = optax.sgd(RATE)
    step = jm.make_step(loss_fn, optimizer)
    with pytest.raises(ValueError, match="the chain has no aggregator") as error:
        step(params, optimizer.init(params), worker_data())
    assert "`['w']` has shape (5, 3), its parameter (3,)" in str(error.value)
    for run in (jm.run, jm.run_pure):
        with pytest.raises(ValueError, match="the chain has no aggregator"):
            run(loss_fn, optimizer, params, jm.full_batch(worker_data()), 2, 0)


def test_a_batch_without_a_worker_axis_is_refused():
    optimizer = jm.sign_sgd(RATE)
    step = jm.make_step(loss_fn, optimizer)
    batch = worker_data() | {"y": np.float32(1.0)}
    with pytest.raises(ValueError, match="batch must have a leading worker axis"):
        step(start(), optimizer.init(start()), batch)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": -1}, ValueError, "`num_steps` must be .*; got -1"),
        ({"num_steps": 1.5}, TypeError, "`num_steps` must be an int; got 1.5"),
        ({"num_steps": 0.0}, TypeError, "`num_steps` must be an int; got 0.0"),
        ({"num_steps": False}, TypeError, "`num_steps` must be an int; got False"),
        ({"chunk": 0}, ValueError, "`chunk` must be at least 1; got 0"),
        ({"chunk": "all"}, TypeError, "`chunk` must be an int; got 'all'"),
        ({"worker_chunk": 0}, ValueError, "`worker_chunk` must be at least 1; got 0"),
        ({"worker_chunk": 1.0}, TypeError, "`worker_chunk` must be an int; got 1.0"),
        ({"metrics": ["loss"]}, TypeError, "`metrics` must be functions"),
        ({"metrics": None}, TypeError, "`metrics` must be a sequence.* Leave it out"),
        ({"state_over_workers": "sum"}, ValueError, "`state_over_workers` must be one"),
        (
            {"extra_args": lambda key, step: jnp.ones(M, bool)},
            TypeError,
            "`extra_args` must return a dictionary",
        ),
    ],
)
def test_bad_options_of_a_run_are_refused(options, error, message):
    for run in (jm.run, jm.run_pure):
        with pytest.raises(error, match=message):
            noisy_run(run=run, **options)


def test_bad_keys_of_a_run_are_refused():
    batches = jm.full_batch(worker_data())
    for run in (jm.run, jm.run_pure):
        with pytest.raises(TypeError, match="`key` must be a JAX key or an int"):
            run(loss_fn, jm.sign_sgd(RATE), start(), batches, 2, None)


def test_bad_worker_chunks_are_refused_early():
    for build in (jm.worker_grads, jm.worker_value_and_grads):
        with pytest.raises(
            ValueError, match="`worker_chunk` must be at least 1; got -2"
        ):
            build(loss_fn, worker_chunk=-2)
    with pytest.raises(TypeError, match="`worker_chunk` must be an int; got True"):
        jm.make_step(loss_fn, jm.sign_sgd(RATE), worker_chunk=True)
