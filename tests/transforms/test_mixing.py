"""Buckets: who is in which, who counts in them, and what stands behind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from harness import params_like
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

NAN, INF = float("nan"), float("inf")


def order_of(key, step, num_workers):
    """The documented one."""
    step_key = jax.random.fold_in(jax.random.key(key), step)
    order_key = jax.random.fold_in(step_key, np.uint32(reference.BUCKET_ORDER))
    return np.asarray(jax.random.permutation(order_key, num_workers))


def test_bucketing_averages_the_documented_buckets():
    x = np.random.default_rng(9).normal(size=(7, 5)).astype(np.float32)
    x[3, 0], x[5, 1] = INF, NAN
    tree = {"a": x[:, :2], "b": x[:, 2:]}
    rule = jm.bucketing(3, 11)
    state = rule.init(None)
    for step in range(2):
        sent, state = jax.jit(rule.update)(tree, state)
        order = order_of(11, step, 7)
        for bucket, first in enumerate((0, 3, 6)):
            workers = order[first : first + 3]
            expected = x[workers].astype(np.float64).mean(axis=0)
            got = np.concatenate([sent["a"][bucket], sent["b"][bucket]])
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_of_a_bucket_those_present_are_averaged_and_nobody_is_absent():
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    rules = {
        "median": jm.coordinate_median(),
        "a chain": optax.chain(jm.clip_workers(1.0), jm.worker_mean()),
    }
    for name, rule in rules.items():
        buckets = jm.bucketing(2, 11, rule)
        state = buckets.init(params_like(x))
        update = jax.jit(buckets.update)
        seen = set()
        for step in range(4):
            order = order_of(11, step, 7)
            present = np.ones(7, bool)
            present[order[[0, 1, 2]]] = step == 0  # a bucket and a half
            sent = np.where(present[:, None], x, NAN).astype(np.float32)
            got, state = update(sent, state, params_like(x), worker_mask=present)
            means = []
            for first in (0, 2, 4, 6):
                members = [i for i in order[first : first + 2] if present[i]]
                if members:
                    means.append(x[members].mean(axis=0))
            seen.add(len(means))
            if name == "median":
                expected = np.median(means, axis=0)
            else:
                norms = np.linalg.norm(means, axis=1, keepdims=True)
                expected = np.mean(means * np.minimum(1, 1 / norms), axis=0)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        assert seen == {3, 4}
    nobody = update(x, state, params_like(x), worker_mask=np.zeros(7, bool))[0]
    np.testing.assert_array_equal(nobody, np.zeros(5))


def test_with_everybody_there_the_aggregator_may_stand_inside_or_behind():
    x = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    rule = jm.coordinate_median(jm.noise.gaussian(0.5), 3)
    inside = jm.bucketing(2, 11, rule)
    behind = optax.chain(jm.bucketing(2, 11), rule)
    params = params_like(x)
    states = inside.init(params), behind.init(params)
    for _ in range(2):
        one, first = jax.jit(inside.update)(x, states[0], params)
        other, second = jax.jit(behind.update)(x, states[1], params)
        np.testing.assert_array_equal(one, other)
        states = first, second


def test_buckets_on_a_mesh_are_those_of_one_device():
    x = np.random.default_rng(16).normal(size=(8, 33)).astype(np.float32)
    mesh = jax.make_mesh(
        (4,), ("w",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
    )

    def send(axis_name, size=2):
        rule = jm.bucketing(size, 3, axis_name=axis_name)
        return lambda x: rule.update(x, rule.init(None))[0]

    on_mesh = jax.shard_map(send("w"), mesh=mesh, in_specs=P("w"), out_specs=P("w"))
    np.testing.assert_allclose(jax.jit(on_mesh)(x), send(None)(x), rtol=1e-6)
    uneven = jax.shard_map(send("w", 3), mesh=mesh, in_specs=P("w"), out_specs=P("w"))
    with pytest.raises(ValueError, match="3 buckets of 8 workers, which 4 devices"):
        uneven(x)


def test_absent_workers_on_a_mesh_are_those_of_one_device():
    x = np.random.default_rng(2).normal(size=(8, 33)).astype(np.float32)
    mask = np.ones(8, bool)
    mask[order_of(3, 0, 8)[[0, 1, 4]]] = False
    x[~mask] = NAN
    mesh = jax.make_mesh(
        (4,), ("w",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
    )

    def update(axis_name):
        rule = jm.coordinate_median(axis_name=axis_name)
        rule = jm.bucketing(2, 3, rule, axis_name=axis_name)

        def run(x, mask):
            params = params_like(x)
            return rule.update(x, rule.init(params), params, worker_mask=mask)[0]

        return jax.jit(run)

    on_mesh = jax.shard_map(
        update("w"), mesh=mesh, in_specs=(P("w"), P("w")), out_specs=P()
    )
    np.testing.assert_allclose(on_mesh(x, mask), update(None)(x, mask), rtol=1e-6)


def test_a_mask_in_a_chain_and_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`size` must be at least 1; got 0"):
        jm.bucketing(0, 1)
    with pytest.raises(TypeError, match="`aggregator` must be an optax gradient"):
        jm.bucketing(2, 1, "median")
    rule = jm.bucketing(2, 1)
    with pytest.raises(ValueError, match=r"Pass what stands .* `bucketing\(size, key,"):
        rule.update(jnp.ones((4, 2)), rule.init(None), worker_mask=jnp.ones(4, bool))
    with pytest.raises(ValueError, match="`bucketing` takes no `worker_weights`"):
        rule.update(jnp.ones((4, 2)), rule.init(None), worker_weights=jnp.ones(4))
