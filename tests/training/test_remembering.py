"""Equal settings compile once, long runs keep their memory, nothing is kept alive."""

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmedian as jm
from jaxmedian.training.remembering import remember

DATA = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)


def new_loss():
    def loss(params, batch):
        return 0.5 * jnp.mean(jnp.square(params[None] - batch))

    return loss


def train(loss, optimizer, num_steps=4, **options):
    params = jnp.zeros(3)
    batches = jm.mini_batches(jnp.asarray(DATA), 2)
    return jm.run(loss, optimizer, params, batches, num_steps, 0, chunk=2, **options)


def step_once(loss, optimizer, **options):
    params = jnp.zeros(3)
    step = jm.make_step(loss, optimizer, **options)
    return step(params, optimizer.init(params), jnp.asarray(DATA))


def step_on_mesh(loss, optimizer, **options):
    params, mesh = jnp.zeros(3), jm.sharding.workers_mesh(5)
    step = jm.sharding.shard_step(loss, optimizer, mesh, **options)
    return step(params, optimizer.init(params), jnp.asarray(DATA))


def compiles(caplog, function):
    """Returns what a call compiled."""
    caplog.clear()
    with jax.log_compiles():
        function()
    return [text for text in caplog.messages if text.startswith("Compiling")]


@pytest.mark.parametrize("take", [train, step_once, step_on_mesh])
def test_equal_settings_compile_once(take, caplog):
    axis_name = "workers" if take is step_on_mesh else None
    loss, optimizer = new_loss(), jm.sign_sgd(0.1, axis_name=axis_name)
    first = compiles(caplog, lambda: take(loss, optimizer))
    assert any("advance" in text or "step" in text for text in first)
    take(loss, optimizer)  # JAX's own small programs have all been seen
    assert not compiles(caplog, lambda: take(loss, optimizer))
    others = {
        "another loss": lambda: take(new_loss(), optimizer),
        "another optimizer": lambda: take(loss, jm.sign_sgd(0.2, axis_name=axis_name)),
        "other settings": lambda: take(loss, optimizer, num_workers=5),
    }
    for name, other in others.items():
        assert compiles(caplog, other), name


def test_a_run_over_a_mesh_compiles_once(caplog):
    loss, optimizer = new_loss(), jm.sign_sgd(0.1, axis_name="workers")
    mesh = jm.sharding.workers_mesh(5)
    for _ in range(2):
        result = train(loss, optimizer, mesh=mesh)
    assert not compiles(caplog, lambda: train(loss, optimizer, mesh=mesh))
    np.testing.assert_array_equal(result.params, train(loss, jm.sign_sgd(0.1)).params)


def test_what_differs_is_told_apart():
    """Losses of one code and other closures, metrics, shapes: each its own numbers."""
    optimizer = optax.chain(jm.worker_mean(), optax.sgd(0.5))

    def loss_towards(goal):
        return lambda params, batch: 0.5 * jnp.sum(jnp.square(params - goal))

    for goal in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0):
        result = train(loss_towards(goal), optimizer, num_steps=40)
        np.testing.assert_allclose(result.params, goal, rtol=1e-6)
    loss = loss_towards(7.0)
    for factor in (1.0, 2.0):
        metric = lambda params, grads, updates, k=factor: {"k": k * params[0]}  # noqa: E731
        measured = train(loss, optimizer, num_steps=40, metrics=[metric]).metrics
        np.testing.assert_allclose(measured["k"][-1], 7 * factor, rtol=1e-6)


@pytest.mark.parametrize("name", ["next_batch", "extra_args"])
def test_the_data_of_few_functions_live_as_long_as_their_optimizer(name):
    """A function for each round, each of new data, as in a loop over folds."""
    optimizer, loss = jm.median_sgd(0.1), new_loss()
    size = 31_007  # as no other array has

    def held():
        gc.collect()
        return sum(array.size == 5 * size for array in jax.live_arrays())

    for number in range(14):
        data = jnp.full((5, size), float(number))
        functions = {
            "next_batch": lambda key, step, data=data: jnp.asarray(DATA) + data[0, 0],
            "extra_args": lambda key, step, data=data: {"worker_mask": data[:, 0] >= 0},
        }
        batches = functions[name] if name == "next_batch" else jm.full_batch(DATA)
        options = {} if name == "next_batch" else {name: functions[name]}
        jm.run(loss, optimizer, jnp.zeros(3), batches, 1, 0, **options)
        del functions, batches, options, data
    assert 0 < held() <= 2 * 8  # programs that are kept, each with a copy or two
    del optimizer
    assert held() == 0


def test_losses_live_no_longer_than_their_optimizer():
    optimizer = jm.sign_sgd(0.1)
    losses = [new_loss() for _ in range(12)]
    for loss in losses:
        step_once(loss, optimizer)
    seen = [weakref.ref(loss) for loss in losses]
    del loss, losses
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= 8
    del optimizer
    gc.collect()
    assert not any(ref() for ref in seen)


@pytest.mark.parametrize("name", ["evaluate", "next_batch", "extra_args"])
def test_data_of_functions_live_no_longer_than_their_optimizer(name):
    """A test set, say, that `evaluate` closes over."""
    loss, seen = new_loss(), []
    for _ in range(3):
        data = np.ones((2, 1, 3), np.float32)
        seen.append(weakref.ref(data))
        function = {
            "evaluate": lambda params, data=data: {"sum": jnp.asarray(data).sum()},
            "next_batch": lambda key, step, data=data: jnp.asarray(data),
            "extra_args": lambda key, step, data=data: {"more": jnp.asarray(data)},
        }[name]
        options = {"next_batch": lambda key, step: jnp.ones((2, 1, 3)), name: function}
        jm.run(
            loss, jm.sign_sgd(0.1), jnp.zeros(3), num_steps=2, key=0, chunk=2, **options
        )
        del data, function, options
    gc.collect()
    assert not any(ref() is not None for ref in seen)


def test_threads_share_what_is_remembered(monkeypatch):
    """Each forgets what others have asked for: there are more than are kept."""
    optimizer = jm.sign_sgd(0.1)

    def ask(start):
        for number in range(start, start + 2000):
            setting = number % 12
            assert remember(optimizer, (setting,), lambda k=setting: [k]) == [setting]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
    finally:
        sys.setswitchinterval(interval)


def test_a_list_of_metrics_may_change_later():
    """Another call of equal settings measures what it was given itself."""
    optimizer, loss = jm.sign_sgd(0.1), new_loss()
    one, two = (lambda *args, k=k: {f"metric {k}": jnp.float32(k)} for k in (1, 2))
    metrics = [one]
    train(loss, optimizer, metrics=metrics, num_workers=5)
    metrics.append(two)
    other_data = jm.mini_batches(jnp.ones((5, 4, 3)), 2)  # is traced anew
    options = {"chunk": 2, "num_workers": 5, "metrics": [one]}
    result = jm.run(loss, optimizer, jnp.zeros(3), other_data, 4, 0, **options)
    assert "metric 1" in result.metrics
    assert "metric 2" not in result.metrics


def test_what_has_no_hash_is_built_each_time():
    """An update that is an object of its own, a loss without a hash."""

    class Loss:
        __hash__ = None

        def __call__(self, params, batch):
            return 0.5 * jnp.mean(jnp.square(params[None] - batch))

    class Update:
        __slots__ = ()

        def __call__(self, *args, **kwargs):
            return inner.update(*args, **kwargs)

    inner = jm.sign_sgd(0.1)
    expected = step_once(new_loss(), inner)[0]
    np.testing.assert_array_equal(step_once(Loss(), inner)[0], expected)
    foreign = optax.GradientTransformationExtraArgs(inner.init, Update())
    np.testing.assert_array_equal(step_once(new_loss(), foreign)[0], expected)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_twenty_thousand_steps_keep_their_memory():
    def resident_mib():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20

    seen = []
    jm.run(
        new_loss(),
        jm.noisy_sign_sgd(1e-3, jm.noise.gaussian(0.1), 0),
        jnp.zeros(3),
        jm.mini_batches(jnp.asarray(DATA), 2),
        20_000,
        0,
        chunk=50,
        on_chunk=lambda step, row: seen.append(resident_mib()),
    )
    assert len(seen) == 400
    early, late = np.median(seen[40:80]), np.median(seen[-40:])
    assert late - early < 8  # a row of numbers for each of 320 chunks is below .2 MiB
