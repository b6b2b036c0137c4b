"""Meshes with explicit axes, `jax.make_mesh`'s default: the bits of one device."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import params_like, set_mesh
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M, KEY = 8, 7
NOISE = jm.noise.gaussian(0.5)
SAME_BITS = {
    "vote": jm.majority_vote(),
    "vote, packed": jm.majority_vote(key=KEY, ties="random", transport="packed"),
    "vote, noisy": jm.majority_vote(jm.noise.laplace(0.5, "systematic"), KEY),
    "median": jm.coordinate_median(),
    "median, noisy": jm.coordinate_median(NOISE, KEY),
    "noise": jm.add_worker_noise(jm.noise.uniform(jm.noise.relative(0.1)), KEY),
}
ROUNDED = {
    "mean": jm.worker_mean(),
    "trimmed_mean": jm.trimmed_mean(1),
    "mean_around_median": jm.mean_around_median(1),
    "krum": jm.krum(1),
    "multi_krum": jm.multi_krum(1),
    "bulyan": jm.bulyan(1),
    "minimum_diameter_mean": jm.minimum_diameter_mean(1),
    "geometric_median": jm.geometric_median(max_steps=3),
    "centered_clipping": jm.centered_clipping(1.0),
    "bucketing": jm.bucketing(3, KEY),  # three buckets, which four devices cannot share
    "nearest_neighbor_mixing": jm.nearest_neighbor_mixing(1),
    "clip_workers": jm.clip_workers(1.0),
    "adaptive_clip_workers": jm.adaptive_clip_workers(1),
    "per_worker": jm.per_worker(optax.trace(0.9), M),
    "a_little_is_enough": jm.attacks.a_little_is_enough([1], scale=1.0),
    "optimizer": jm.median_sgd(0.5),
}
MASK = np.arange(M) % 5 != 2


def explicit_mesh(shape):
    names, count = ("workers", "model")[: len(shape)], int(np.prod(shape))
    kinds = (AxisType.Explicit,) * len(shape)
    devices = jax.devices()[:count]
    return jax.make_mesh(shape, names, axis_types=kinds, devices=devices)


def gradients():
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(M, 6, 4)).astype(np.float32),
        "b": rng.normal(size=M).astype(np.float32),
    }


def placed(tree, mesh, leading):
    """Leaves of rank 2 and more (without the worker axis) are cut along "model" too."""
    model = "model" if "model" in mesh.axis_names else None

    def place(leaf):
        rank = leaf.ndim - len(leading)
        own = (None, model) if rank == 2 else (None,) * rank
        return jax.device_put(leaf, NamedSharding(mesh, P(*leading, *own)))

    return jax.tree.map(place, tree)


def all_updates(rules):
    def update_all(grads, params, mask):
        results = {}
        for name, rule in rules.items():
            extra = {"worker_mask": mask} if "median" in name else {}
            state = rule.init(params)
            results[name] = rule.update(grads, state, params, **extra)[0]
        return results

    return jax.jit(update_all)


@pytest.mark.parametrize(("shape", "is_set"), [((4,), True), ((4, 2), False)])
def test_every_transform_works_where_axes_are_explicit(shape, is_set):
    grads = gradients()
    params = jax.tree.map(np.asarray, params_like(grads))
    rules = SAME_BITS | (ROUNDED if is_set else {})
    expected = all_updates(rules)(grads, params, MASK)
    mesh = explicit_mesh(shape)
    with set_mesh(mesh) if is_set else contextlib.nullcontext():
        placed_params = placed(params, mesh, ())
        got = all_updates(rules)(placed(grads, mesh, ("workers",)), placed_params, MASK)
    for name in rules:
        for a, b in zip(
            *map(jax.tree.leaves, (got[name], expected[name])), strict=True
        ):
            tolerance = 0 if name in SAME_BITS else 1e-5
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)
    for name in ("vote", "mean", "optimizer"):
        if name in got:  # where the parameters are
            assert got[name]["w"].sharding.spec == placed_params["w"].sharding.spec


def test_an_update_outside_jit_works_too():
    mesh, grads = explicit_mesh((4,)), gradients()
    tx = jm.majority_vote()
    expected, _ = tx.update(grads, tx.init(None))
    got, _ = tx.update(placed(grads, mesh, ("workers",)), tx.init(None))
    np.testing.assert_array_equal(got["w"], expected["w"])


def linear_loss(params, batch):
    return sum(jnp.vdot(params[name], batch[name]) for name in params)


@pytest.mark.parametrize("worker_chunk", [None, 4])
def test_whole_steps_are_those_of_one_device(worker_chunk):
    def with_aux(params, batch):
        return linear_loss(params, batch), batch["b"]

    grads, mesh = gradients(), explicit_mesh((4, 2))
    params = jax.tree.map(np.asarray, params_like(grads))
    optimizer = optax.chain(
        jm.per_worker(optax.trace(0.5), M), jm.majority_vote(NOISE, KEY), optax.sgd(0.1)
    )

    def two_steps(params, batch, mask):
        state = optimizer.init(params)
        step = jm.make_step(
            with_aux, optimizer, has_aux=True, worker_chunk=worker_chunk
        )
        for _ in range(2):
            params, state, metrics = step(params, state, batch, worker_mask=mask)
        return params, metrics

    expected, expected_metrics = two_steps(params, grads, MASK)
    with set_mesh(mesh):
        mask = jax.device_put(MASK, NamedSharding(mesh, P("workers")))
        here = placed(params, mesh, ())
        got, metrics = two_steps(here, placed(grads, mesh, ("workers",)), mask)
    for name in params:
        np.testing.assert_array_equal(got[name], expected[name])
        assert got[name].sharding.spec == here[name].sharding.spec
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
    np.testing.assert_array_equal(metrics["aux"], expected_metrics["aux"])


def test_gradients_local_steps_and_measurements_take_explicit_axes():
    grads, mesh = gradients(), explicit_mesh((4, 2))
    params = jax.tree.map(np.asarray, params_like(grads))

    @jax.jit
    def everything(params, grads):
        sent = jm.worker_grads(linear_loss)(params, grads)
        moved = jm.worker_updates(linear_loss, optax.sgd(1.0), 1)(params, grads)
        return {
            "sent": sent,
            "moved": jax.tree.map(jnp.negative, moved),
            "step": jm.diagnostics.of_step(grads, params),
            "norms": jm.diagnostics.squared_norms(grads),
            "suspicion": jm.diagnostics.suspicion(
                grads, jax.tree.map(jnp.ones_like, params)
            ),
            "sample": jm.diagnostics.sample_coordinates(grads, 5, key=0),
            "median": jm.median(grads["w"], 1),
        }

    expected = everything(params, grads)
    with set_mesh(mesh):
        got = everything(placed(params, mesh, ()), placed(grads, mesh, ("workers",)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        got,
        expected,
    )
    np.testing.assert_array_equal(got["sent"]["w"], grads["w"])
    np.testing.assert_array_equal(got["moved"]["w"], grads["w"])


def test_automatic_axes_need_no_axis_name():
    """A plain jit, its arguments anywhere on an automatic mesh: the compiler's work."""
    grads = gradients()
    params = jax.tree.map(np.asarray, params_like(grads))
    expected = all_updates(SAME_BITS)(grads, params, MASK)
    kinds = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("workers", "model"), axis_types=kinds)
    here = placed(grads, mesh, ("workers",)), placed(params, mesh, ())
    got = all_updates(SAME_BITS)(*here, MASK)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
