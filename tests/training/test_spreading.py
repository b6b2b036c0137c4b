"""Runs over a mesh: the bits of one device, on as many devices as there are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmedian as jm
from jaxmedian.training import sources
from jaxmedian.training.feeds import build_feed
from jaxmedian.training.spreading import Spread

M, STEPS = 8, 5
DATA = np.random.default_rng(0).normal(size=(M, 6, 3)).astype(np.float32)
SIZES = [6, 2, 3, 6, 4, 5, 6, 2]


def loss(params, batch):
    return 0.5 * jnp.mean(jnp.square(batch @ params["w"] + params["b"] - 1))


def start():
    return {"b": jnp.float32(0.5), "w": jnp.array([1.0, -1.0, 0.25])}


def vote(axis_name):
    """With momentum per worker: state that lies where its worker is."""
    return optax.chain(
        jm.per_worker(optax.trace(0.9), M),
        jm.majority_vote(jm.noise.gaussian(0.3), 1, ties="random", axis_name=axis_name),
        optax.sgd(0.05, momentum=0.5),
    )


def median(axis_name):
    return jm.noisy_median_sgd(0.05, jm.noise.uniform(0.3), 1, axis_name=axis_name)


def of_a_function():
    data = jnp.asarray(DATA)

    def next_batch(key, step):
        return data[:, :4] + jax.random.uniform(key, (M, 1, 1))

    return next_batch


BATCHES = {
    "full_batch": lambda: jm.full_batch(DATA),
    "mini_batches": lambda: jm.mini_batches(DATA, 2, sizes=SIZES),
    "epochs": lambda: jm.epochs(DATA, 3, 7),
    "function": of_a_function,
    "iterator": lambda: (DATA[:, i : i + 2] for i in range(STEPS)),
}


def masks(key, step):
    return {"worker_mask": jm.participants(key, step, M, 6)}


def train(num_devices, chain=vote, batches="epochs", num_steps=STEPS, **options):
    mesh = None if num_devices is None else jm.sharding.workers_mesh(num_devices)
    optimizer = chain(None if mesh is None else "workers")
    options = {"chunk": 2, "worker_chunk": 1, "extra_args": masks} | options
    next_batch = BATCHES[batches]() if isinstance(batches, str) else batches
    options["mesh"] = mesh
    return jm.run(loss, optimizer, start(), next_batch, num_steps, 2, **options)


@functools.cache
def on_one_device(chain=vote, batches="epochs"):
    return train(None, chain, batches)


def assert_same_bits(got, expected):
    assert got.step == expected.step
    for a, b in zip(*map(jax.tree.leaves, (got[:2], expected[:2])), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# --- the same bits --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_devices", "chain", "batches"),
    [
        (2, vote, "epochs"),
        (4, vote, "epochs"),
        (4, median, "mini_batches"),
        (4, vote, "function"),
        (2, median, "iterator"),
    ],
)
def test_votes_and_medians_have_the_bits_of_one_device(num_devices, chain, batches):
    """Parameters and state, and measurements up to the order of sums."""
    got, expected = train(num_devices, chain, batches), on_one_device(chain, batches)
    assert_same_bits(got, expected)
    assert got.metrics.keys() == expected.metrics.keys()
    for name, column in expected.metrics.items():
        np.testing.assert_allclose(got.metrics[name], column, rtol=1e-5, atol=1e-7)
    assert len(got.params["w"].sharding.device_set) == num_devices
    moved = np.asarray(got.params["w"]) - np.asarray(start()["w"])
    assert np.abs(moved).min() > 1e-3


def test_batches_that_are_computed_in_one_call_have_the_bits_of_one_device(monkeypatch):
    """Those of five steps: the loader is faster than any device."""
    monkeypatch.setattr(sources, "_is_busy", lambda running: True)
    got = train(2, median, "iterator", chunk=STEPS)
    assert_same_bits(got, on_one_device(median, "iterator"))


def test_a_run_resumes_on_another_number_of_devices(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    options = {"checkpoint": tmp_path / "run"}
    train(2, num_steps=2, **options)
    train(4, num_steps=4, **options)
    result = train(1, **options)
    assert_same_bits(result, on_one_device())
    assert result.metrics["step"].tolist() == [2, 4, 5]


@pytest.mark.parametrize("batches", ["mini_batches", "full_batch"])
def test_a_device_holds_the_data_of_its_own_workers_only(batches):
    """Its rows, at the places of its numbers."""
    spread = Spread(jm.sharding.workers_mesh(4), vote("workers"))
    feed = spread.place_feed(build_feed(BATCHES[batches](), None))
    leaves = jax.tree.leaves(feed.next_batch)
    assert leaves[0].shape == DATA.shape
    for leaf in leaves:
        assert leaf.sharding.spec == P("workers")
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {2}
    state = spread.start_state(start(), None)
    trace = state[1][0].inner.trace["w"]
    assert trace.addressable_shards[0].data.shape == (2, 3)


def test_functions_of_the_user_see_all_workers(capsys):
    """Gradients of all in metrics, parameters in `evaluate`; aux over those present."""
    pytest.importorskip("tqdm")

    def loss_and_aux(params, batch):
        return loss(params, batch), {"first": batch[0, 0]}

    def metric(params, grads, updates):
        return {"rows": grads["w"], "moved": jnp.sum(jnp.abs(updates["w"]))}

    ends = [
        jm.run(
            loss_and_aux,
            median(axis_name),
            start(),
            jm.full_batch(DATA),
            4,
            2,
            chunk=2,
            worker_chunk=None,
            extra_args=lambda key, step: {"worker_mask": jnp.arange(M) < 5},
            has_aux=True,
            metrics=[metric],
            evaluate=lambda params: {"square": jnp.sum(params["w"] ** 2)},
            keep_best="-square",
            mesh=mesh,
            progress=True,
        )
        for axis_name, mesh in (
            (None, None),
            ("workers", jm.sharding.workers_mesh(4)),
        )
    ]
    assert "square=" in capsys.readouterr().err
    assert ends[1].metrics["rows"].shape == (2, M, 3)
    for name, column in ends[0].metrics.items():
        np.testing.assert_allclose(ends[1].metrics[name], column, rtol=1e-5, atol=1e-6)
    expected = DATA[:5, 0, 0].mean()
    np.testing.assert_allclose(ends[1].metrics["first"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        ends[1].best_params["w"], ends[0].best_params["w"], rtol=1e-6
    )


@pytest.mark.parametrize("name", ["worker_mask", "worker_weights"])
def test_lists_and_none_are_masks_on_a_mesh_too(name):
    present = [1, 0, 1, 1, 0, 1, 1, 1]
    listed = [bool(x) for x in present] if name == "worker_mask" else present

    def train(value, axis_name=None, mesh=None):
        args = lambda key, step: {name: value}  # noqa: E731
        batches = jm.full_batch(DATA)
        options = {"extra_args": args, "mesh": mesh, "worker_chunk": 1}
        return jm.run(loss, median(axis_name), start(), batches, 2, 2, **options)

    mesh = jm.sharding.workers_mesh(4)
    for value in (listed, None):
        got, expected = train(value, "workers", mesh), train(value)
        jax.tree.map(np.testing.assert_array_equal, got.params, expected.params)


@pytest.mark.parametrize("length", [9, 5, 12])
def test_a_mask_of_another_number_of_workers_is_refused(length):
    """It would be cut to fit: 9 over 4 devices to the first 8."""
    with pytest.raises(ValueError, match=r"`worker_mask` of shape"):
        jm.run(
            loss,
            median("workers"),
            start(),
            jm.full_batch(DATA),
            2,
            2,
            mesh=jm.sharding.workers_mesh(4),
            extra_args=lambda key, step: {"worker_mask": jnp.ones(length, bool)},
        )


def test_a_run_goes_on_from_memory_on_the_mesh():
    first = train(2, num_steps=2)
    result = jm.run(
        loss,
        vote("workers"),
        first.params,
        BATCHES["epochs"](),
        STEPS,
        2,
        chunk=2,
        worker_chunk=1,
        extra_args=masks,
        opt_state=first.opt_state,
        step=2,
        mesh=jm.sharding.workers_mesh(2),
    )
    assert_same_bits(result, on_one_device())


def test_parameters_may_be_sharded_over_a_second_axis():
    mesh = jm.sharding.workers_mesh(8, model_devices=2)
    spec = NamedSharding(mesh, P("model"))
    params = {"w": jax.device_put(jnp.arange(4.0), spec)}
    targets = np.random.default_rng(1).normal(size=(M, 4)).astype(np.float32)

    def distance(params, batch):
        return 0.5 * jnp.sum(jnp.square(params["w"] - batch))

    def medians_of_momenta(axis_name):
        momenta = jm.per_worker(optax.trace(0.5), M)
        return optax.chain(momenta, jm.median_sgd(0.5, axis_name=axis_name))

    ends = [
        jm.run(
            distance,
            medians_of_momenta(axis_name),
            start_params,
            jm.full_batch(targets),
            3,
            0,
            mesh=over,
        )
        for axis_name, start_params, over in (
            (None, {"w": jnp.arange(4.0)}, None),
            ("workers", params, mesh),
        )
    ]
    np.testing.assert_allclose(ends[1].params["w"], ends[0].params["w"], rtol=1e-6)
    assert ends[1].params["w"].addressable_shards[0].data.shape == (2,)
    momenta = ends[1].opt_state[0].inner.trace["w"]
    assert momenta.addressable_shards[0].data.shape == (2, 2)


def test_the_first_state_is_computed_where_it_lies():
    """No device computes the state of all workers: `init` is part of one program."""
    traced = []

    def init(params):
        traced.append(isinstance(params["w"], jax.core.Tracer))
        return optax.EmptyState()

    def chain(axis_name):
        beside = optax.GradientTransformation(
            init, lambda updates, *state: (updates, *state[:1])
        )
        return optax.chain(vote(axis_name), beside)

    train(4, chain, num_steps=0)
    assert set(traced) == {True}


RULES_BESIDE_A_MODEL_AXIS = {
    "vote, streamed": lambda **on: jm.sign_sgd(0.1, **on),
    "vote, random ties": lambda **on: jm.sign_sgd(0.1, ties="random", key=3, **on),
    "noisy vote": lambda **on: jm.noisy_sign_sgd(
        0.1, jm.noise.uniform(0.5, "systematic"), 3, **on
    ),
    "noisy vote, packed": lambda **on: jm.noisy_sign_sgd(
        *(0.1, jm.noise.uniform(0.5, "systematic"), 3),
        ties="random",
        transport="packed" if on else "tally",
        **on,
    ),
    "median, stacked": lambda **on: jm.median_sgd(0.1, **on),
}


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("name", list(RULES_BESIDE_A_MODEL_AXIS))
def test_streams_on_a_mesh_with_a_second_axis(name, chunk):
    """Its shapes are asked for while another axis of the mesh stays automatic."""
    build = RULES_BESIDE_A_MODEL_AXIS[name]
    mesh = jm.sharding.workers_mesh(8, model_devices=2)
    targets = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)

    def end(mesh=None, **on):
        batches = jm.full_batch(targets)
        params = jnp.zeros(4)
        return jm.run(
            lambda params, target: 0.5 * jnp.sum(jnp.square(params - target)),
            *(build(**on), params, batches, 3, 0),
            worker_chunk=chunk,
            mesh=mesh,
        )

    assert_same_bits(end(mesh, axis_name="workers"), end())


def test_the_pure_run_trains_inside_shard_map():
    """With the data of the device's workers, whose numbers it knows."""
    mesh = jm.sharding.workers_mesh(4)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=P("workers"),
        out_specs=(P(), P()),
    )
    def pure(data):
        result = jm.run_pure(
            loss,
            median("workers"),
            start(),
            jm.mini_batches(data, 2),
            STEPS,
            2,
            chunk=2,
            worker_chunk=1,
            axis_name="workers",
        )
        return result.params, result.metrics["loss"]

    params, losses = pure(DATA)
    expected = jm.run(
        loss,
        median(None),
        start(),
        jm.mini_batches(DATA, 2),
        STEPS,
        2,
        chunk=2,
        worker_chunk=1,
    )
    np.testing.assert_allclose(params["w"], expected.params["w"], rtol=1e-6)
    np.testing.assert_allclose(losses, expected.metrics["loss"], rtol=1e-5)


# --- what is refused ------------------------------------------------------------------


def test_a_chain_that_does_not_name_the_axis_is_refused():
    with pytest.raises(ValueError, match="axis_name='workers'"):
        train(2, lambda axis_name: jm.sign_sgd(0.1))


def test_a_foreign_aggregator_of_each_device_is_refused():
    def local_mean(updates, state, params=None, **extra_args):
        return jax.tree.map(lambda u: jnp.mean(u, axis=0), updates), state

    foreign = optax.GradientTransformationExtraArgs(lambda params: (), local_mean)
    with pytest.raises(
        ValueError, match="the aggregator of the chain sees the workers"
    ):
        train(
            2,
            lambda axis_name: optax.chain(foreign, optax.sgd(0.1)),
            worker_chunk=None,
        )


@pytest.mark.parametrize(
    ("mesh", "error", "message"),
    [
        (4, TypeError, "`mesh` must be a `jax.sharding.Mesh`"),
        (
            jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2),
            ValueError,
            r"The mesh has the axes \('a', 'b'\)",
        ),
    ],
)
def test_other_meshes_are_refused(mesh, error, message):
    with pytest.raises(error, match=message):
        jm.run(loss, vote("workers"), start(), jm.full_batch(DATA), 2, 0, mesh=mesh)


@pytest.mark.parametrize("batches", ["full_batch", "function", "iterator"])
def test_workers_that_devices_cannot_share_are_refused(batches):
    with pytest.raises(ValueError, match="8 workers cannot be shared equally by the 3"):
        train(3, median, batches)


def test_the_only_axis_of_a_mesh_may_have_any_name():
    mesh = jax.make_mesh(
        (2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2]
    )
    result = jm.run(
        loss,
        vote("data"),
        start(),
        BATCHES["epochs"](),
        STEPS,
        2,
        chunk=2,
        worker_chunk=1,
        extra_args=masks,
        mesh=mesh,
    )
    assert_same_bits(result, on_one_device())
