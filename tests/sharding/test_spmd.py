"""The step of one device on a mesh, bit for bit, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxmedian as jm
from jaxmedian import sharding

WORKERS = "workers"
M = 8
VOTE = jm.majority_vote(axis_name=WORKERS)
MASK = np.arange(M) % 3 != 1


def loss_fn(params, batch):
    """A small network, so that its matrix products show in the last bits."""
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"][None])
    return jnp.mean(jnp.square(hidden @ params["v"] - batch["y"]))


def problem():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = {"w": draw(5, M), "b": draw(M), "v": draw(M)}  # M: not to be mistaken
    return params, {"x": draw(M, 6, 5), "y": draw(M, 6)}


def chain(axis_name, transport="tally"):
    """Momentum before the vote and after it, and noise that adapts."""
    return optax.chain(
        jm.per_worker(optax.trace(0.9), M),
        jm.majority_vote(
            jm.noise.uniform(jm.noise.relative(0.5), "systematic"),
            5,
            ties="positive",
            axis_name=axis_name,
            transport=transport,
        ),
        optax.trace(0.5),
        optax.scale(-0.01),
    )


def train(step, params, opt_state, batch, num_steps=3):
    losses = []
    for number in range(num_steps):
        mask = MASK if number % 2 else np.ones(M, bool)
        params, opt_state, metrics = step(params, opt_state, batch, worker_mask=mask)
        losses.append(float(metrics["loss"]))
    return params, opt_state, losses


def assert_same_bits(got, expected):
    pairs = zip(*map(jax.tree.leaves, (got, expected)), strict=True)
    for a, b in pairs:
        if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@functools.cache
def on_one_device():
    params, batch = problem()
    step = jm.make_step(loss_fn, chain(None), worker_chunk=1)
    return train(step, params, chain(None).init(params), batch)


@pytest.mark.parametrize(("num_devices", "transport"), [(2, "packed"), (4, "tally")])
def test_whole_runs_with_momentum_and_masks_are_those_of_one_device(
    num_devices, transport
):
    params, batch = problem()
    mesh = sharding.workers_mesh(num_devices)
    optimizer = chain(WORKERS, transport)
    step = sharding.shard_step(loss_fn, optimizer, mesh, worker_chunk=1)
    got = train(step, params, optimizer.init(params), batch)
    expected = on_one_device()
    assert_same_bits(got[:2], expected[:2])
    np.testing.assert_allclose(got[2], expected[2], rtol=1e-6)
    assert expected[2][0] != expected[2][2]


def test_placed_arguments_stay_where_they_were_put():
    params, batch = problem()
    mesh = sharding.workers_mesh(2)
    optimizer = optax.chain(jm.per_worker(optax.trace(0.9), M), VOTE)
    params = sharding.replicate(params, mesh)
    state = sharding.init_state(optimizer, params, mesh, M)
    batch = sharding.shard_workers(batch, mesh)
    step = sharding.shard_step(loss_fn, optimizer, mesh, donate=True)
    after = step(params, state, batch)
    for old, new in zip(
        *map(jax.tree.leaves, ((params, state), after[:2])), strict=True
    ):
        assert new.sharding.is_equivalent_to(old.sharding, new.ndim)
    momentum = after[1][0].inner.trace["w"]
    assert {shard.data.shape for shard in momentum.addressable_shards} == {(4, 5, M)}
    assert after[0]["w"].sharding.is_fully_replicated
    assert batch["x"].sharding.spec == P(WORKERS)


def test_aux_keeps_its_worker_axis_and_the_loss_leaves_absent_workers_out():
    def loss(params, batch):
        return jnp.sum(params * batch), {"twice": 2 * batch}

    batch = np.arange(8, dtype=np.float32).reshape(4, 2)
    optimizer = optax.chain(jm.worker_mean(axis_name=WORKERS), optax.sgd(1.0))
    mesh = sharding.workers_mesh(2)
    step = sharding.shard_step(loss, optimizer, mesh, has_aux=True)
    present = np.array([True, False, True, True])
    params = jnp.ones(2)
    params, _, metrics = step(
        params, optimizer.init(params), batch, worker_mask=present
    )
    np.testing.assert_array_equal(metrics["aux"]["twice"], 2 * batch)
    assert float(metrics["loss"]) == pytest.approx(batch[present].sum(axis=1).mean())
    np.testing.assert_allclose(params, 1 - batch[present].mean(axis=0), rtol=1e-6)


def test_parameters_sharded_over_a_second_axis_get_the_same_noise():
    """Each device holds a fourth of the parameters; gradients are elementwise."""

    def loss(params, batch):
        return jnp.sum(jnp.square(params["w"] - batch)) + jnp.sum(params["b"] ** 2)

    rng = np.random.default_rng(0)
    params = {
        "w": rng.normal(size=(70_000, 2)).astype(np.float32),  # voted on by itself
        "b": rng.normal(size=(8,)).astype(np.float32),
    }
    batch = rng.normal(size=(4, 70_000, 2)).astype(np.float32)
    mesh = sharding.workers_mesh(8, model_devices=4)

    def rule(axis_name):
        noise = jm.noise.uniform(jm.noise.relative(0.5), "systematic")
        return optax.chain(
            jm.majority_vote(noise, 1, axis_name=axis_name),
            optax.scale(-0.125),
        )

    specs = {"w": P("model"), "b": P("model")}
    placed = jax.tree.map(
        lambda p, spec: jax.device_put(p, jax.NamedSharding(mesh, spec)), params, specs
    )
    one = jm.make_step(loss, rule(None))
    many = sharding.shard_step(loss, rule(WORKERS), mesh)
    expected = one(params, rule(None).init(params), batch)[0]
    got = many(placed, rule(WORKERS).init(params), batch)[0]
    assert_same_bits(got, expected)
    assert got["w"].addressable_shards[0].data.shape == (17_500, 2)


def test_only_what_per_worker_keeps_belongs_to_workers():
    optimizer = optax.chain(
        jm.per_worker(optax.chain(optax.scale_by_adam(), optax.add_noise(1, 1, 0)), M),
        jm.majority_vote(jm.noise.gaussian(1.0), 0),
        optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.scale_by_adam(),
    )
    params = {"square": jnp.zeros((M, M)), "row": jnp.zeros(M)}
    specs = sharding.state_specs(optimizer, params, M)
    state = optimizer.init(params)
    assert jax.tree.structure(specs) == jax.tree.structure(state)
    assert set(jax.tree.leaves(specs[0])) == {P(WORKERS)}
    assert set(jax.tree.leaves(specs[1:])) == {P()}


def test_what_mirrors_parameters_in_a_state_is_cut_like_them(promoting):
    """Also where a mask leaves some out, and with a worker axis before."""
    mesh = sharding.workers_mesh(8, model_devices=2)
    params = {
        "columns": (jnp.zeros((3, 4)), P(None, "model")),
        "rows": (jnp.zeros(6), P("model")),
        "whole": (jnp.zeros(4), P()),
    }
    specs = {name: spec for name, (_, spec) in params.items()}
    params = {
        name: jax.device_put(x, jax.NamedSharding(mesh, spec))
        for name, (x, spec) in params.items()
    }
    without = {"columns": True, "rows": False, "whole": True}
    optimizer = optax.chain(
        jm.per_worker(optax.trace(0.9), M),
        jm.majority_vote(jm.noise.gaussian(1.0), 0, axis_name=WORKERS),
        optax.masked(optax.trace(0.9), without),
        optax.scale_by_adam(),
    )
    state = sharding.init_state(optimizer, params, mesh, M)
    assert_same_bits(state, optimizer.init(params))
    found = jax.tree.map(lambda leaf: leaf.sharding.spec, state)
    assert found[0].inner.trace == {
        "columns": P(WORKERS, None, "model"),
        "rows": P(WORKERS, "model"),
        "whole": P(WORKERS),
    }
    assert set(jax.tree.leaves(found[1])) == {P()}
    trace = found[2].inner_state.trace
    assert (trace["columns"], trace["whole"]) == (specs["columns"], specs["whole"])
    assert found[3].mu == found[3].nu == specs


# --- errors ---------------------------------------------------------------------------


def elementwise_loss(params, batch):
    return jnp.sum((params - batch) ** 2)


def step_once(optimizer, mesh=None, num_workers=4, **options):
    mesh = sharding.workers_mesh(2) if mesh is None else mesh
    step = sharding.shard_step(elementwise_loss, optimizer, mesh, **options)
    params = jnp.zeros(3)
    return step(params, optimizer.init(params), jnp.ones((num_workers, 3)))


@pytest.mark.parametrize("worker_chunk", [None, 1])
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("majority_vote", jm.majority_vote()),
        ("coordinate_median", jm.noisy_median_sgd(0.1, jm.noise.gaussian(1.0), 0)),
        ("worker_mean", jm.worker_mean()),
        (
            "add_worker_noise",  # the vote is fine, its noise would be numbered anew
            optax.chain(jm.add_worker_noise(jm.noise.gaussian(1.0), 0), VOTE),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_transform_without_the_axis_name_is_named(name, optimizer, worker_chunk):
    with pytest.raises(ValueError, match=f"`{name}` was built without `axis_name`"):
        step_once(optimizer, worker_chunk=worker_chunk)


def test_a_foreign_aggregator_that_stays_at_home_is_found():
    local_mean = optax.stateless(
        lambda updates, params: jax.tree.map(lambda g: g.mean(axis=0), updates)
    )
    with pytest.raises(ValueError, match="end with different parameters"):
        step_once(local_mean)


@pytest.mark.usefixtures("promoting")
def test_a_state_that_mixes_workers_is_found():
    with pytest.raises(ValueError, match=r"lift it with `jaxmedian.per_worker"):
        step_once(optax.chain(optax.trace(0.9), VOTE))


def test_a_mesh_without_the_axis_is_refused():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"axes \('data',\).*'workers'.*workers_mesh"):
        step_once(VOTE, mesh)
    with pytest.raises(ValueError, match="axes"):
        sharding.shard_workers(jnp.ones(4), mesh)


def test_explicit_axes_are_refused_with_the_remedy():
    mesh = jax.make_mesh((2,), (WORKERS,), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"must be automatic.*axis_types"):
        step_once(VOTE, mesh)


def test_workers_that_devices_cannot_share_equally_are_refused():
    match = r"3 workers cannot be shared equally by the 2 devices"
    with pytest.raises(ValueError, match=match):
        step_once(VOTE, num_workers=3)
    with pytest.raises(ValueError, match=match):
        sharding.shard_workers(jnp.ones(3), sharding.workers_mesh(2))
    with pytest.raises(ValueError, match=match):
        sharding.init_state(VOTE, jnp.ones(3), sharding.workers_mesh(2), 3)


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="xla_force_host_platform_device_count=99"):
        sharding.workers_mesh(99)
    with pytest.raises(ValueError, match="`model_devices` must divide the 8 devices"):
        sharding.workers_mesh(model_devices=3)
    with pytest.raises(TypeError, match="`num_devices` must be an int"):
        sharding.workers_mesh(2.0)


@pytest.mark.parametrize("check_vma", [True, False])
def test_parameters_cut_along_a_manual_second_axis_are_refused(check_vma):
    mesh = sharding.workers_mesh(8, model_devices=4)

    def update(grads, params):
        return VOTE.update(grads, VOTE.init(params), params)[0]

    by_hand = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=(P(WORKERS, "model"), P("model")),
        out_specs=P("model"),
        check_vma=check_vma,
    )
    with pytest.raises(ValueError, match=r"'model' too.*axis_names=\{'workers'\}"):
        jax.jit(by_hand)(jnp.ones((2, 8)), jnp.ones(8))


def test_models_trained_apart_need_no_axis_name():
    """One model a device, each with its own workers: parameters vary as they do."""
    mesh = sharding.workers_mesh(2)
    rule = jm.majority_vote()

    def update(grads, params):
        return rule.update(grads[0], rule.init(params[0]), params[0])[0][None]

    apart = jax.shard_map(
        update, mesh=mesh, in_specs=(P(WORKERS), P(WORKERS)), out_specs=P(WORKERS)
    )
    grads = np.float32([[[1, -1], [1, -1], [-1, 1]], [[-1, 2], [-1, 1], [1, 1]]])
    got = jax.jit(apart)(grads, jnp.zeros((2, 2)))
    np.testing.assert_array_equal(got, [[1, -1], [-1, 1]])


def test_a_mask_of_too_few_workers_is_named_in_numbers_of_a_device():
    with pytest.raises(ValueError, match=r"of shape \(2,\).* on a device, of 4; got"):
        jm.run(
            lambda params, batch: jnp.sum(params * batch),
            jm.sign_sgd(0.1, axis_name="workers"),
            *(jnp.zeros([]), jm.full_batch(jnp.ones(4)), 1, 0),
            mesh=jm.sharding.workers_mesh(2),
            extra_args=lambda key, step: {"worker_mask": jnp.ones(2, bool)},
        )


def test_a_list_is_a_mask_and_other_trees_stay_as_they_are():
    """A tuple of arrays of other shapes for a transform of the user's own."""

    def shift(updates, state, params=None, *, pair=None, **extra_args):
        own, whole = pair
        return jax.tree.map(lambda u: u * own + jnp.sum(whole), updates), state

    params, batch = problem()
    shifted = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), shift)
    optimizer = optax.chain(VOTE, shifted)
    step = sharding.shard_step(loss_fn, optimizer, sharding.workers_mesh(4))
    given = {"worker_mask": MASK.tolist(), "pair": (jnp.float32(2), jnp.ones(3))}
    got, *_ = step(params, optimizer.init(params), batch, **given)
    plain = sharding.shard_step(loss_fn, VOTE, sharding.workers_mesh(4))
    voted, *_ = plain(params, VOTE.init(params), batch, worker_mask=MASK)
    for name, before in params.items():
        expected = before + 2 * (np.asarray(voted[name]) - before) + 3
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-5)


def rules_for_empty_leaves(axis_name):
    """What reads slices of the coordinates, and what reads whole gradients."""
    on = {"axis_name": axis_name}
    median = jm.coordinate_median(**on)
    noise = jm.noise.uniform(jm.noise.per_coordinate(1.0, "sd"))
    return {
        "median": median,
        "noisy median": jm.coordinate_median(noise, 0, **on),
        "trimmed mean": jm.trimmed_mean(1, **on),
        "bulyan": jm.bulyan(1, **on),
        "bucketing": optax.chain(jm.bucketing(2, 0, **on), median),
        "mixing": optax.chain(jm.nearest_neighbor_mixing(1, **on), median),
        "clipping": optax.chain(jm.adaptive_clip_workers(1, **on), median),
    }


@pytest.mark.parametrize("name", rules_for_empty_leaves(None))
def test_an_empty_leaf_is_trained_on_a_mesh(name):
    """Alone in its group of leaves, the only one of its type: beside a large one."""
    rng = np.random.default_rng(1)
    params = {"w": jnp.zeros((130, 130)), "bias": jnp.zeros(0, jnp.bfloat16)}
    batch = rng.normal(size=(M, 130)).astype(np.float32)

    def loss(params, x):
        fit = jnp.sum(jnp.square(params["w"] - x[None]))
        return fit + jnp.sum(params["bias"].astype(jnp.float32))

    ends = []
    for axis_name in (None, WORKERS):
        rule = rules_for_empty_leaves(axis_name)[name]
        tx = optax.chain(rule, optax.scale(-0.1))
        step = jm.make_step(loss, tx)
        if axis_name is not None:
            step = sharding.shard_step(loss, tx, sharding.workers_mesh(4))
        ends.append(step(params, tx.init(params), batch)[0])
    assert ends[1]["bias"].shape == (0,)
    np.testing.assert_allclose(ends[0]["w"], ends[1]["w"], rtol=1e-5, atol=1e-6)
