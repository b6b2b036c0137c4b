"""Workers spread over devices: the bits of one device, on 2, 3, 4 and 8.

Compared jit against jit, given the same stacked gradients. One program a mesh computes
every rule at once, since compiling is what costs time here.
"""

import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import COUPLINGS, LAWS, awkward, first_update, params_like
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

WORKERS = "workers"
SIZE = 33  # no multiple of a number of devices: slices are padded


def mesh_of(num_devices):
    return jax.make_mesh(
        (num_devices,),
        (WORKERS,),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )


def spread(function, num_devices, in_specs, out_specs, check_vma=True):
    """Jits a function of local blocks over the mesh, or plainly on one device."""
    if num_devices == 1:
        return jax.jit(function)
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh_of(num_devices),
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=check_vma,
        )
    )


def plain_rules(axis_name):
    return {
        "vote, zero": jm.majority_vote(axis_name=axis_name),
        "vote, positive": jm.majority_vote(ties="positive", axis_name=axis_name),
        "vote, packed": jm.majority_vote(
            ties="positive", transport="packed", axis_name=axis_name
        ),
        "median, midpoint": jm.coordinate_median(axis_name=axis_name),
        "median, lower": jm.coordinate_median(even="lower", axis_name=axis_name),
        "median, upper": jm.coordinate_median(even="upper", axis_name=axis_name),
    }


def noisy_rules(axis_name):
    """Every law and coupling; scales and tie rules take turns."""
    scales = [0.7, jm.noise.relative(0.3), jm.noise.relative(0.5, "median")]
    rules = {}
    for i, (law, coupling) in enumerate(itertools.product(LAWS, COUPLINGS)):
        noise = jm.noise.Noise(law, scales[i % 3], coupling)
        ties = ("zero", "random", "positive")[i // 3]
        rules[f"vote, {law}, {coupling}"] = jm.majority_vote(
            noise, 5, ties=ties, axis_name=axis_name
        )
        rules[f"median, {law}, {coupling}"] = jm.coordinate_median(
            noise, 5, axis_name=axis_name
        )
    return rules


def a_few_random_rules(axis_name):
    """One vote and one median, different in law, coupling and scale; packed bits."""
    rules = noisy_rules(axis_name)
    names = ("vote, gaussian, systematic", "median, laplace, independent")
    packed = jm.majority_vote(
        ties="random", key=5, transport="packed", axis_name=axis_name
    )
    return {name: rules[name] for name in names} | {"vote, packed": packed}


def all_updates(build_rules, num_devices, check_vma=True):
    """Builds (grads, mask) -> {rule: update}; every second noisy rule is masked.

    Noise-free rules are computed with and without the mask.
    """
    rules = build_rules(None if num_devices == 1 else WORKERS)

    def update_all(grads, mask):
        results = {}
        params = params_like(grads)
        for i, (name, rule) in enumerate(rules.items()):
            state = rule.init(params)
            if build_rules is plain_rules or i % 2 == 0:
                results[name], _ = rule.update(grads, state, params)
            if build_rules is plain_rules or i % 2 == 1:
                results[name + ", masked"], _ = rule.update(
                    grads, state, params, worker_mask=mask
                )
        return results

    return spread(update_all, num_devices, P(WORKERS), P(), check_vma)


@functools.cache
def on_one_device(build_rules, num_workers, dtype="float32"):
    grads = awkward(num_workers, SIZE, nan=True).astype(dtype)
    mask = np.arange(num_workers) % 4 != 1
    return grads, mask, all_updates(build_rules, 1)(grads, mask)


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        a, b = np.asarray(got[name]), np.asarray(expected[name])
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes(), (name, a, b)


# --- the same bits --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_devices", "num_workers"), [(2, 8), (4, 8), (8, 8), (3, 9)]
)
def test_noise_free_votes_and_medians_are_those_of_one_device(num_devices, num_workers):
    grads, mask, expected = on_one_device(plain_rules, num_workers)
    got = all_updates(plain_rules, num_devices)(grads, mask)
    assert_same_bits(got, expected)
    assert all(np.asarray(update).any() for update in expected.values())


def test_noise_free_bits_hold_for_bfloat16():
    grads, mask, expected = on_one_device(plain_rules, 8, dtype="bfloat16")
    assert_same_bits(all_updates(plain_rules, 4)(grads, mask), expected)


def test_noisy_votes_and_medians_of_every_law_are_those_of_one_device():
    grads, mask, expected = on_one_device(noisy_rules, 2)
    got = all_updates(noisy_rules, 2)(grads, mask)
    assert_same_bits(got, expected)


@pytest.mark.parametrize(("num_devices", "num_workers"), [(2, 8), (8, 8), (3, 3)])
def test_noisy_bits_hold_on_meshes_of_other_sizes(num_devices, num_workers):
    grads, mask, expected = on_one_device(a_few_random_rules, num_workers)
    got = all_updates(a_few_random_rules, num_devices)(grads, mask)
    assert_same_bits(got, expected)


@pytest.mark.parametrize("build_rules", [plain_rules, a_few_random_rules])
def test_the_same_bits_without_the_checks_of_shard_map(build_rules):
    grads, mask, expected = on_one_device(build_rules, 8)
    got = all_updates(build_rules, 4, check_vma=False)(grads, mask)
    assert_same_bits(got, expected)


def test_noisy_gradients_are_those_of_one_device():
    """The words know global numbers. Tiny leaves may contract to an FMA: 1 ulp."""
    rng = np.random.default_rng(0)
    grads = {
        "matrix": rng.normal(size=(8, 3, 5)).astype(np.float32),
        "scalar": rng.normal(size=(8,)).astype(np.float32),
    }
    noise = jm.noise.logistic(jm.noise.relative(0.5))

    def add(num_devices):
        axis_name = None if num_devices == 1 else WORKERS
        transform = jm.add_worker_noise(noise, 1, axis_name=axis_name)

        def update(grads):
            params = params_like(grads)
            return transform.update(grads, transform.init(params), params)[0]

        return spread(update, num_devices, P(WORKERS), P(WORKERS))(grads)

    got, expected = add(8), add(1)
    for name in grads:
        np.testing.assert_allclose(got[name], expected[name], atol=5e-7)


def test_the_mean_is_that_of_one_device_up_to_rounding():
    grads = np.random.default_rng(0).normal(size=(8, SIZE)).astype(np.float32)
    mask = np.arange(8) % 3 != 1

    def means(num_devices, check_vma=True):
        rule = jm.worker_mean(axis_name=None if num_devices == 1 else WORKERS)

        def update(grads, mask):
            full, _ = rule.update(grads, rule.init(None), None)
            return full, rule.update(grads, rule.init(None), None, worker_mask=mask)[0]

        return spread(update, num_devices, P(WORKERS), P(), check_vma)(grads, mask)

    expected = grads.mean(axis=0), grads[mask].mean(axis=0)
    for num_devices in (1, 2, 4, 8):
        for got, mean in zip(means(num_devices), expected, strict=True):
            np.testing.assert_allclose(got, mean, atol=1e-6)
    for got, mean in zip(means(4, check_vma=False), expected, strict=True):
        np.testing.assert_allclose(got, mean, atol=1e-6)


# --- gradients ------------------------------------------------------------------------


def loss_fn(params, batch):
    """A small network, so that its matrix products show in the last bits."""
    hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"][None])
    return jnp.mean(jnp.square(hidden @ params["v"] - batch["y"]))


def problem(num_workers=8):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = {"w": draw(5, 7), "b": draw(7), "v": draw(7)}
    batch = {"x": draw(num_workers, 6, 5), "y": draw(num_workers, 6)}
    return jax.tree.map(jnp.asarray, params), batch


@pytest.mark.parametrize("worker_chunk", [None, 1, 2])
@pytest.mark.parametrize("check_vma", [True, False])
def test_worker_grads_inside_shard_map_are_not_summed(check_vma, worker_chunk):
    params, batch = problem()
    one_by_one = [
        jax.grad(loss_fn)(params, {"x": batch["x"][i], "y": batch["y"][i]})
        for i in range(8)
    ]
    grads_fn = jm.worker_grads(loss_fn, axis_name=WORKERS, worker_chunk=worker_chunk)
    on_mesh = spread(grads_fn, 2, (P(), P(WORKERS)), P(WORKERS), check_vma)
    for got, *expected in zip(
        *map(jax.tree.leaves, (on_mesh(params, batch), *one_by_one)), strict=True
    ):
        np.testing.assert_allclose(got, np.stack(expected), atol=1e-5)


def test_worker_grads_takes_parameters_that_already_differ_between_devices():
    """As in local steps: each device has its own copy, sharded over the workers."""
    params, batch = problem()
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)

    def grads_fn(copies, batch):
        own = jax.tree.map(lambda leaf: leaf[0], copies)
        return jm.worker_grads(loss_fn, axis_name=WORKERS)(own, batch)

    on_mesh = spread(grads_fn, 2, (P(WORKERS), P(WORKERS)), P(WORKERS))
    got = on_mesh(copies, batch)
    for device in range(2):
        rows = slice(4 * device, 4 * device + 4)
        own = jax.tree.map(lambda leaf, at=device: leaf[at], copies)
        block = jax.tree.map(lambda leaf, at=rows: leaf[at], batch)
        expected = jm.worker_grads(loss_fn)(own, block)
        for name in expected:
            np.testing.assert_allclose(got[name][rows], expected[name], atol=1e-5)


def trained(num_devices, worker_chunk, num_steps=4, axis_name=WORKERS):
    """Parameters after a few noisy steps, and the losses along the way."""
    params, batch = problem(num_workers=4)
    if num_devices == 1:
        axis_name = None
    optimizer = jm.noisy_median_sgd(
        0.1, jm.noise.uniform(jm.noise.relative(0.1)), 0, axis_name=axis_name
    )
    step = jm.make_step(
        loss_fn, optimizer, axis_name=axis_name, worker_chunk=worker_chunk
    )

    def train(params, batch):
        def body(carry, _):
            params, opt_state, metrics = step(*carry, batch)
            return (params, opt_state), metrics["loss"]

        start = params, optimizer.init(params)
        (params, _), losses = jax.lax.scan(body, start, length=num_steps)
        return params, losses

    return spread(train, num_devices, (P(), P(WORKERS)), P())(params, batch)


def test_whole_runs_are_bit_identical_one_worker_at_a_time():
    """Runs of `make_step` with worker_chunk=1 on 1, 2 and 4 devices."""
    expected, losses = trained(1, worker_chunk=1)
    for num_devices in (2, 4):
        params, got_losses = trained(num_devices, worker_chunk=1)
        assert_same_bits(params, expected)
        np.testing.assert_allclose(got_losses, losses, rtol=1e-6)
    assert losses[-1] < losses[0]


def test_state_of_per_worker_is_sharded_like_the_gradients():
    """Distributed Lion on a mesh, against one device."""
    grads = np.random.default_rng(0).normal(size=(3, 8, SIZE)).astype(np.float32)
    params = jnp.zeros(SIZE)

    def lion(axis_name):
        return optax.chain(
            jm.per_worker(optax.scale_by_lion(), 8),
            jm.majority_vote(axis_name=axis_name),
            optax.scale(-0.1),
        )

    def train(axis_name):
        def steps(state, grads):
            updates = []
            for g in grads:
                update, state = lion(axis_name).update(g, state, params)
                updates.append(update)
            return updates

        return steps

    state = lion(None).init(params)
    specs = jax.tree.map(lambda leaf: P(WORKERS), state)
    on_mesh = spread(train(WORKERS), 4, (specs, P(None, WORKERS)), P())
    on_one = jax.jit(train(None))
    for a, b in zip(on_mesh(state, grads), on_one(state, grads), strict=True):
        np.testing.assert_array_equal(a, b)


# --- meshes of several axes, pmap, errors ---------------------------------------------


def test_parameters_may_be_sharded_over_an_automatic_second_axis():
    mesh = jax.make_mesh(
        (2, 4), (WORKERS, "model"), axis_types=(AxisType.Auto, AxisType.Auto)
    )
    grads = awkward(4, 32)
    rule = jm.majority_vote(axis_name=WORKERS)

    def update(grads):
        return rule.update(grads, rule.init(None), jnp.zeros(32))[0]

    on_mesh = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=P(WORKERS),
        out_specs=P(),
        axis_names={WORKERS},
    )
    sharded = jax.device_put(grads, jax.NamedSharding(mesh, P(WORKERS, "model")))
    np.testing.assert_array_equal(
        jax.jit(on_mesh)(sharded), first_update(jm.majority_vote(), grads)
    )


def test_plain_jit_needs_no_axis_name_on_a_mesh_of_automatic_axes():
    mesh = mesh_of(4)
    grads = awkward(8, 32)
    spread_grads = jax.device_put(grads, jax.NamedSharding(mesh, P(WORKERS)))
    noise = jm.noise.uniform(1.0, "systematic")
    for rule in (
        jm.majority_vote(noise, key=0),
        jm.coordinate_median(noise, key=0),
        jm.coordinate_median(jm.noise.unbiased(), key=0),
    ):
        update = jax.jit(rule.update)
        updates, _ = update(spread_grads, rule.init(jnp.zeros(32)), jnp.zeros(32))
        alone, _ = update(grads, rule.init(jnp.zeros(32)), jnp.zeros(32))
        np.testing.assert_array_equal(updates, alone)


def test_the_same_transforms_run_under_pmap():
    values = awkward(8, 12)

    def rules(axis_name):
        noise = jm.noise.uniform(jm.noise.relative(0.3), "systematic")
        return {
            "vote": jm.majority_vote(noise, 5, ties="random", axis_name=axis_name),
            "packed": jm.majority_vote(
                ties="positive", transport="packed", axis_name=axis_name
            ),
            "median": jm.coordinate_median(noise, 5, axis_name=axis_name),
        }

    def update(block, axis_name=WORKERS):
        params = jnp.zeros(12)
        return {
            name: rule.update(block, rule.init(params), params)[0]
            for name, rule in rules(axis_name).items()
        }

    got = jax.pmap(update, axis_name=WORKERS)(values.reshape(4, 2, 12))
    expected = jax.jit(functools.partial(update, axis_name=None))(values)
    for device in range(4):
        assert_same_bits(
            {name: np.asarray(x)[device] for name, x in got.items()}, expected
        )


@pytest.mark.parametrize(
    "build", [jm.majority_vote, jm.coordinate_median, jm.worker_mean]
)
def test_an_axis_out_of_scope_is_named(build):
    rule = build(axis_name="nowhere")
    with pytest.raises(ValueError, match=r"`axis_name` 'nowhere' is not an axis here"):
        rule.update(np.ones((2, 3), np.float32), rule.init(None), None)


WHOLE_RUNS = """
import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_prefer_vector_width=128"
)
import jax

from experiments.systems import killable
from tests.support.loop_on_mesh import train_on_mesh

for features in (40, 2000):
    killable.FEATURES = features
    runs = [train_on_mesh(jax.devices()[:n], 3) for n in (1, 2, 8)]
    for name, on_one in killable.bits(runs[0]).items():
        for run in runs[1:]:
            assert killable.bits(run)[name].tobytes() == on_one.tobytes(), name
print("the same bits")
"""


def test_one_worker_a_device_rounds_as_eight_do():
    """On other processors too: what XLA emits for a loop depends on its length.

    From jax 0.12 a loop over few workers was one kernel and a loop over one was none;
    with vectors of 128 bits their sums rounded differently.
    """
    output = subprocess.run(
        [sys.executable, "-c", WHOLE_RUNS], capture_output=True, text=True, check=False
    )
    assert output.stdout.strip() == "the same bits", output.stderr
