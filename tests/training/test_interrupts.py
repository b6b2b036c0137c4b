"""Ctrl-C at any moment: `run` returns, and what it left goes on to the same bits."""

import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmedian as jm
from experiments.systems.killable import bits
from jaxmedian.training.interrupts import wait_until_ready

pytestmark = pytest.mark.usefixtures("compiled_once", "promoting")

NUM_STEPS, CHUNK = 20, 4


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Whoever started the tests may have ignored SIGINT, as shells do in background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


DATA = np.random.default_rng(0).normal(size=(3, 8, 30)).astype(np.float32)


def loss(params, batch):
    return 0.5 * jnp.mean((params - batch) ** 2)


def train(*, loss_fn=loss, next_batch=None, **options):
    """A run with momentum, noise and mini-batches: all that must be continued."""
    optimizer = optax.chain(
        jm.per_worker(optax.trace(0.9), 3),
        jm.majority_vote(jm.noise.uniform(0.1), 1),
        optax.adam(0.01),
    )
    next_batch = next_batch or jm.mini_batches(DATA, 4)
    options = {"chunk": CHUNK} | options
    start = jnp.zeros(30)
    return jm.run(loss_fn, optimizer, start, next_batch, NUM_STEPS, 0, **options)


@pytest.fixture(scope="module")
def unbroken():
    return bits(train())


def assert_same_bits(result, expected):
    got = bits(result)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].tobytes() == array.tobytes(), name


def press():
    signal.raise_signal(signal.SIGINT)


# --- one Ctrl-C -----------------------------------------------------------------------


def test_ctrl_c_while_compiling_ends_at_the_first_edge(unbroken, tmp_path):
    pressed = []

    def pressing(params, batch):
        if not pressed:
            pressed.append(press())
        return loss(params, batch)

    result = train(loss_fn=pressing, checkpoint=tmp_path)
    assert result.step == CHUNK
    assert_same_bits(train(checkpoint=tmp_path), unbroken)


def test_ctrl_c_before_the_first_edge_returns_the_start_with_names(unbroken):
    optimizer = jm.sign_sgd(0.1)
    pressing = optax.GradientTransformation(
        lambda params: (press(), optimizer.init(params))[1], optimizer.update
    )
    sample = {"sample": lambda grads: jm.diagnostics.sample_coordinates(grads, 2, 0)}
    result = jm.run(
        loss,
        pressing,
        jnp.ones(30),
        jm.full_batch(DATA),
        NUM_STEPS,
        0,
        metrics=[lambda p, grads, u: {n: f(grads) for n, f in sample.items()}],
    )
    assert result.step == 0
    np.testing.assert_array_equal(result.params, np.ones(30))
    assert {"step", "loss", "gradient_norm", "sample"} <= set(result.metrics)
    shapes = {name: column.shape for name, column in result.metrics.items()}
    assert shapes.pop("sample") == (0, 3, 2)
    assert set(shapes.values()) == {(0,)}
    assert result.metrics["loss"].dtype == unbroken["[2]['loss']"].dtype


def test_ctrl_c_in_on_chunk_stops_there(unbroken, tmp_path, capfd):
    def on_chunk(step, row):
        if step == 8:
            press()

    first = train(on_chunk=on_chunk, checkpoint=tmp_path)
    assert first.step == 8
    shown = capfd.readouterr().err
    assert "again to end at once" in shown
    assert "Interrupted: returning the run at step 8" in shown
    assert_same_bits(train(checkpoint=tmp_path), unbroken)


@pytest.mark.parametrize("method", ["save", "restore", "close"])
def test_ctrl_c_while_a_checkpoint_is_handled(method, unbroken, tmp_path, monkeypatch):
    """Before and after orbax does its part, on the way out and on the way in."""
    orbax = pytest.importorskip("orbax.checkpoint")
    train(checkpoint=tmp_path, on_chunk=lambda step, row: step >= 12)
    real = getattr(orbax.CheckpointManager, method)

    def pressing(self, *args, **options):
        monkeypatch.setattr(orbax.CheckpointManager, method, real)
        thread = threading.Timer(0.005, press)  # in the main thread, some time during
        thread.start()
        result = real(self, *args, **options)
        thread.join()
        return result

    monkeypatch.setattr(orbax.CheckpointManager, method, pressing)
    stopped = train(checkpoint=tmp_path)
    assert stopped.step == {"save": 16, "restore": 12, "close": NUM_STEPS}[method]
    assert_same_bits(train(checkpoint=tmp_path), unbroken)


def test_ctrl_c_at_random_moments(unbroken, tmp_path):
    """Each interrupted run returns; the last to go on ends as nobody's would."""
    pytest.importorskip("orbax.checkpoint")
    rng = np.random.default_rng(0)
    start = time.monotonic()
    train(checkpoint=tmp_path / "timed")
    longest = time.monotonic() - start

    def press_inside(number, frame):  # a run: before and after, it would hit the test
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            press()

    before = signal.signal(signal.SIGALRM, press_inside)
    reached = []
    try:
        for attempt in range(12):
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.01, longest))
            reached.append(train(checkpoint=tmp_path / "run"))
            signal.setitimer(signal.ITIMER_REAL, 0)
            if reached[-1].step == NUM_STEPS:
                assert_same_bits(reached[-1], unbroken)
                (tmp_path / "run").rename(tmp_path / str(attempt))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert any(result.step < NUM_STEPS for result in reached)
    assert_same_bits(train(checkpoint=tmp_path / "run"), unbroken)


# --- two of them ----------------------------------------------------------------------


def test_a_second_ctrl_c_ends_at_once_and_the_folder_goes_on(unbroken, tmp_path):
    def on_chunk(step, row):
        if step == 8:
            press()
            press()
            pytest.fail("the second one did not raise")

    with pytest.raises(KeyboardInterrupt):
        train(on_chunk=on_chunk, checkpoint=tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_bits(train(checkpoint=tmp_path), unbroken)


def test_a_second_ctrl_c_while_a_chunk_computes_ends_the_run(monkeypatch):
    """Pressed twice while one long chunk computes: the first would end it normally."""
    from jaxmedian.training import loop as module

    waiting, rows = threading.Event(), []

    def note_and_wait(row):
        rows.append(row)
        waiting.set()
        wait_until_ready(row)

    monkeypatch.setattr(module, "wait_until_ready", note_and_wait)

    def slow_loss(params, batch):
        return jnp.mean(jnp.sin(params @ params) * batch)

    def press_twice():
        if waiting.wait(60):
            for _ in range(2):
                time.sleep(0.1)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=press_twice).start()
    start, batches = jnp.ones((500, 500)), jm.full_batch(jnp.ones(3))
    with pytest.raises(KeyboardInterrupt):
        jm.run(slow_loss, jm.sign_sgd(0.1), start, batches, 200, 0, chunk=200)
    assert len(rows) == 1
    jax.block_until_ready(rows)


def test_a_second_ctrl_c_inside_a_callback_is_one_too():
    """JAX turns what a callback raises into an error of its own."""

    def on_host():
        press()
        press()

    def next_batch(key, step):
        jax.debug.callback(on_host)
        return jnp.ones((3, 30))

    with pytest.raises(KeyboardInterrupt):
        jm.run(loss, jm.sign_sgd(0.1), jnp.zeros(30), next_batch, 2, 0)
    jax.effects_barrier()


# --- other handlers -------------------------------------------------------------------


def with_handler(handler, **options):
    """Trains under a handler of the program's own; returns the result."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        result = train(**options)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    return result


def press_at_8(step, row):
    if step == 8:
        press()


def test_a_handler_that_deals_with_the_signal_lets_the_run_go_on(unbroken):
    seen = []
    result = with_handler(lambda *args: seen.append(args), on_chunk=press_at_8)
    assert [number for number, _ in seen] == [signal.SIGINT]
    assert_same_bits(result, unbroken)


def test_a_handler_that_raises_stops_the_run():
    def handler(number, frame):
        raise KeyboardInterrupt

    assert with_handler(handler, on_chunk=press_at_8).step == 8

    def leave(number, frame):
        raise SystemExit(3)

    before = signal.signal(signal.SIGINT, leave)
    try:
        with pytest.raises(SystemExit):
            train(on_chunk=press_at_8)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored(unbroken):
    assert_same_bits(with_handler(signal.SIG_IGN, on_chunk=press_at_8), unbroken)


def test_a_run_inside_a_run_stops_both():
    inner = []

    def on_chunk(step, row):
        inner.append(train(on_chunk=press_at_8).step)

    assert train(on_chunk=on_chunk).step == CHUNK
    assert inner == [8]


def test_a_run_in_another_thread_is_left_alone(unbroken):
    results = []
    thread = threading.Thread(target=lambda: results.append(train()))
    thread.start()
    thread.join()
    assert_same_bits(results[0], unbroken)
