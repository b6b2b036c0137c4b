"""Streamed and stacked gradients give the same step, in less memory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmedian as jm

M = 11
PARAMS = {"large": jnp.zeros((300, 250)), "small": jnp.zeros(13), "dot": jnp.zeros(())}
MASK = jnp.arange(M) % 4 != 1


def linear_loss(params, batch):
    """A loss whose gradient is the worker's batch, exactly."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(batch), strict=True)
    return sum(jnp.vdot(p, g) for p, g in pairs)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.integers(-2, 3, (M, *p.shape)).astype(np.float32)),
        PARAMS,
    )


CHAINS = {
    "vote": lambda: jm.majority_vote(),
    "vote, random ties": lambda: jm.majority_vote(ties="random", key=1),
    "noisy vote": lambda: jm.majority_vote(jm.noise.gaussian(0.5), 1),
    "systematic vote": lambda: jm.majority_vote(
        jm.noise.uniform(0.5, "systematic"), 1, ties="positive"
    ),
    "mean": lambda: jm.worker_mean(),
    "noisy median, stacked": lambda: jm.coordinate_median(jm.noise.laplace(0.5), 1),
    "momentum, stacked": lambda: optax.chain(
        jm.per_worker(optax.trace(0.9), M), jm.majority_vote()
    ),
    "relative noise, stacked": lambda: optax.chain(
        jm.add_worker_noise(jm.noise.gaussian(jm.noise.relative(0.1)), 2),
        jm.coordinate_median(),
    ),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_a_streamed_step_is_the_stacked_step(name, masked, batch):
    optimizer = optax.chain(CHAINS[name](), optax.scale(-0.1))
    state = optimizer.init(PARAMS)
    mask = {"worker_mask": MASK} if masked else {}
    stacked = jm.make_step(linear_loss, optimizer)(PARAMS, state, batch, **mask)
    for chunk in (1, 4):  # 4 does not divide 11: the last block overlaps
        step = jm.make_step(linear_loss, optimizer, worker_chunk=chunk)
        streamed = step(PARAMS, state, batch, **mask)
        for a, b in zip(*map(jax.tree.leaves, (stacked[0], streamed[0])), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 if name == "mean" else 0)
        np.testing.assert_allclose(stacked[2]["loss"], streamed[2]["loss"], atol=1e-5)


def test_a_vote_needs_memory_for_one_chunk_whatever_the_number_of_workers():
    size, optimizer = 1_000_000, jm.noisy_sign_sgd(0.1, jm.noise.gaussian(0.1), 0)
    params = jax.ShapeDtypeStruct((size,), jnp.float32)

    def temporary_bytes(num_workers):
        batch = jax.ShapeDtypeStruct((num_workers, 8), jnp.float32)
        step = jm.make_step(
            lambda p, b: jnp.sum(jnp.square(p * b[0])), optimizer, worker_chunk=1
        )
        state = jax.eval_shape(optimizer.init, params)
        compiled = step.lower(params, state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(2), temporary_bytes(100)
    assert many < few + 4 * size  # a stack of 100 would be 400 size bytes
    assert many < 16 * size


PACKED_ON_A_MESH = {  # workers of a device; what else the step is given
    "bits": (3, lambda num_workers: {}),
    "bits, masked": (3, lambda n: {"worker_mask": jnp.arange(n) % 4 != 1}),
    "tallies": (11, lambda num_workers: {}),
    "tallies, masked": (11, lambda n: {"worker_mask": jnp.arange(n) % 4 != 1}),
    "weights": (11, lambda n: {"worker_weights": jnp.arange(n) % 5}),
    "nobody": (3, lambda n: {"worker_mask": jnp.zeros(n, bool)}),
}


@pytest.mark.parametrize("name", PACKED_ON_A_MESH)
def test_a_streamed_packed_vote_is_the_stacked_tally(name):
    """Large and small leaves; gradients with ties, and workers without a sign."""
    num_local, arguments = PACKED_ON_A_MESH[name]
    num_workers = 4 * num_local
    rng = np.random.default_rng(0)
    batch = jax.tree.map(
        lambda p: rng.integers(-2, 3, (num_workers, *p.shape)).astype(np.float32),
        PARAMS,
    )
    sent = {
        route.chosen
        for route in jm.sharding.packed_routes(PARAMS, num_workers, num_devices=4)
    }
    assert sent == {"bits" if num_local == 3 else "tallies"}

    def noisy_sign_sgd(**options):
        noise = jm.noise.uniform(0.5, "systematic")
        return jm.noisy_sign_sgd(0.1, noise, 1, ties="random", **options)

    optimizer = noisy_sign_sgd()
    step = jm.make_step(linear_loss, optimizer)
    given = (PARAMS, optimizer.init(PARAMS), jax.tree.map(jnp.asarray, batch))
    stacked, _, measured = step(*given, **arguments(num_workers))
    packed = noisy_sign_sgd(transport="packed", axis_name="workers")
    mesh = jm.sharding.workers_mesh(4)
    for chunk in (1, 2):  # 2 divides neither 3 nor 11: the last block overlaps
        step = jm.sharding.shard_step(linear_loss, packed, mesh, worker_chunk=chunk)
        streamed, _, metrics = step(*given, **arguments(num_workers))
        chex.assert_trees_all_equal(streamed, stacked)
        np.testing.assert_allclose(metrics["loss"], measured["loss"], atol=1e-5)


def test_a_packed_vote_keeps_a_bit_of_each_worker():
    size, mesh = 1_000_000, jm.sharding.workers_mesh(2)
    optimizer = jm.noisy_sign_sgd(
        *(0.1, jm.noise.gaussian(0.1), 0),
        ties="random",
        transport="packed",
        axis_name="workers",
    )
    params = jax.ShapeDtypeStruct((size,), jnp.float32)

    def temporary_bytes(num_local):
        batch = jax.ShapeDtypeStruct((2 * num_local, 8), jnp.float32)
        step = jm.sharding.shard_step(
            *(lambda p, b: jnp.sum(jnp.square(p * b[0])), optimizer, mesh),
            worker_chunk=1,
        )
        state = jax.eval_shape(optimizer.init, params)
        compiled = step.lower(params, state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, more, many = map(temporary_bytes, (2, 7, 40))
    assert more < few + 3 * size  # 5 size / 8 sent and received; stacked 20 size more
    assert many < 20 * size  # tallies; stacked 160 size


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("scale", optax.scale(2.0)),
        ("clip", optax.clip(0.5)),
        ("zero_nans", optax.zero_nans()),
        ("clip_by_global_norm", optax.clip_by_global_norm(1.0)),
        ("add_decayed_weights", optax.add_decayed_weights(0.1)),
        ("trace", optax.trace(0.9)),
    ],
)
def test_other_transforms_before_the_aggregator_are_refused_by_name(
    name, transform, batch
):
    optimizer = optax.chain(transform, jm.sign_sgd(0.1))
    step = jm.make_step(linear_loss, optimizer, worker_chunk=2)
    with pytest.raises(TypeError, match=r"all 11 workers .* at once, 3 MiB") as error:
        step(PARAMS, optimizer.init(PARAMS), batch)
    if name != "scale":  # it is refused before it can be named
        assert f"`{name}` met a stream" in str(error.value)


def test_errors_behind_the_aggregator_are_their_own(batch):
    def fail(updates, state, params=None):
        raise TypeError("for a reason of its own")

    failing = optax.GradientTransformation(lambda params: optax.EmptyState(), fail)
    optimizer = optax.chain(jm.majority_vote(), failing)
    step = jm.make_step(linear_loss, optimizer, worker_chunk=2)
    with pytest.raises(TypeError, match="for a reason of its own"):
        step(PARAMS, optimizer.init(PARAMS), batch)


def test_a_transform_that_may_read_the_loss_gets_it_or_is_refused(batch):
    """Also one that could do without it: nothing is left out unsaid."""
    seen = []

    def update(updates, state, params=None, *, value=None, **extra_args):
        seen.append(value)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    optimizer = optax.chain(jm.sign_sgd(0.1), spy)
    state = optimizer.init(PARAMS)
    jm.make_step(linear_loss, optimizer)(PARAMS, state, batch)
    assert seen[-1] is not None
    step = jm.make_step(linear_loss, optimizer, worker_chunk=2)
    with pytest.raises(TypeError, match=r"takes the loss as `value`.*`worker_chunk`"):
        step(PARAMS, state, batch)
    step(PARAMS, state, batch, value=jnp.float32(2.0))
    assert seen[-1] is not None


def test_lifted_transforms_without_state_work_block_by_block(batch):
    """The stacked result, in the memory of a block: nothing is stacked."""
    clips = optax.chain(optax.clip(1.5), optax.clip_by_global_norm(3.0))
    optimizer = optax.chain(
        jm.per_worker(clips, M), jm.worker_mean(), optax.scale(-0.1)
    )
    state = optimizer.init(PARAMS)
    extra = {"worker_mask": MASK}
    stacked = jm.make_step(linear_loss, optimizer)(PARAMS, state, batch, **extra)
    step = jm.make_step(linear_loss, optimizer, worker_chunk=4)
    streamed = step(PARAMS, state, batch, **extra)
    for a, b in zip(*map(jax.tree.leaves, (stacked, streamed)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert float(jnp.abs(streamed[0]["small"]).max()) > 0

    def program(rule):
        optimizer = optax.chain(rule, jm.worker_mean())
        step = jm.make_step(lambda p, b: jnp.sum(p * b[0]), optimizer, worker_chunk=2)
        state = optimizer.init(jnp.zeros(77))
        return str(jax.make_jaxpr(step)(jnp.zeros(77), state, jnp.ones((M, 1))))

    assert "f32[11,77]" not in program(jm.per_worker(optax.clip(1.5), M))
    assert "f32[11,77]" in program(jm.per_worker(optax.trace(0.9), M))


def test_a_streamed_vote_with_relative_noise_is_stacked(batch):
    """The scale needs the gradients of all workers before the first is counted."""
    noise = jm.noise.gaussian(jm.noise.relative(0.1))
    optimizer = jm.noisy_sign_sgd(0.1, noise, 0)
    state = optimizer.init(PARAMS)
    stacked = jm.make_step(linear_loss, optimizer)(PARAMS, state, batch)
    step = jm.make_step(linear_loss, optimizer, worker_chunk=2)
    streamed = step(PARAMS, state, batch)
    jax.tree.map(np.testing.assert_array_equal, streamed[0], stacked[0])


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_state_with_typed_keys_is_streamed_too(batch, chunk):
    drawing = optax.add_noise(0.5, 0.1, key=jax.random.key(3))
    optimizer = optax.chain(jm.per_worker(drawing, M), jm.worker_mean(), optax.sgd(0.1))
    state = optimizer.init(PARAMS)
    stacked = jm.make_step(linear_loss, optimizer)(PARAMS, state, batch)
    step = jm.make_step(linear_loss, optimizer, worker_chunk=chunk)
    streamed = step(PARAMS, state, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        streamed[0],
        stacked[0],
    )
    words = [
        jax.random.key_data(found[1][0].inner.rng_key) for found in (streamed, stacked)
    ]
    np.testing.assert_array_equal(*words)


def test_a_run_leaves_out_what_it_cannot_measure(batch):
    result = jm.run(
        linear_loss,
        jm.sign_sgd(0.1),
        PARAMS,
        jm.full_batch(batch),
        2,
        0,
        worker_chunk=2,
    )
    assert set(result.metrics) == {"step", "loss", "ties"}
    stacked = jm.run(
        linear_loss,
        jm.median_sgd(0.1),
        PARAMS,
        jm.full_batch(batch),
        2,
        0,
        worker_chunk=2,
    )
    assert "mean_median_gap" in stacked.metrics
