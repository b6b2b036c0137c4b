"""Random gradients of every kind against the slow loops, on every way that they take.

Finite, tied, huge, tiny, infinite and missing numbers; masks and weights; plain, with
donated arguments, on a mesh, on explicit axes, and streamed. Fixed seeds, few shapes:
each way is compiled once and then fed. `pytest -s` prints the number of cases.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from harness import params_like
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M, SIZE, KEY = 6, 16, 5
BITS = reference.vote_bits(jax.random.key(KEY), shape=(M, SIZE))
TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 1e-3}


def rules(axis_name=None):
    on = {"axis_name": axis_name}
    return {
        "vote, zero": jm.majority_vote(**on),
        "vote, positive": jm.majority_vote(ties="positive", **on),
        "vote, random": jm.majority_vote(ties="random", key=KEY, **on),
        "vote, packed": jm.majority_vote(
            ties="random", key=KEY, transport="packed", **on
        ),
        "median, midpoint": jm.coordinate_median(**on),
        "median, lower": jm.coordinate_median(even="lower", **on),
        "median, upper": jm.coordinate_median(even="upper", **on),
        "mean": jm.worker_mean(**on),
    }


def random_gradients(rng, dtype):
    """Every coordinate draws its own kind of numbers, and every entry an accident."""
    largest = float(jnp.finfo(dtype).max)
    kinds = [
        lambda: rng.normal(size=M),
        lambda: rng.integers(-1, 2, size=M),
        lambda: rng.normal(size=M) * 1e-3,
        lambda: rng.choice([-1, 1], size=M) * largest,
        lambda: rng.choice([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan], size=M),
    ]
    columns = [kinds[rng.integers(len(kinds))]() for _ in range(SIZE)]
    x = np.stack(columns, axis=1)
    accidents = rng.random(x.shape) < 0.05
    x[accidents] = rng.choice([np.nan, np.inf, -np.inf, 0.0], size=accidents.sum())
    return np.asarray(jnp.asarray(x, dtype))


def random_mask(rng):
    kind = rng.integers(4)
    if kind == 0:
        return np.ones(M, bool)
    return np.zeros(M, bool) if kind == 1 else rng.random(M) < 0.6


def slow(name, x, counts):
    """A rule on each row as often as it counts; votes of single rows have bits."""
    rows = np.repeat(np.asarray(x, np.float64), counts, axis=0)
    kind, _, option = name.partition(", ")
    if kind == "median":
        return reference.median(rows, even=option) if len(rows) else np.zeros(SIZE)
    if kind == "mean":
        with np.errstate(all="ignore"):
            return rows.sum(axis=0) / max(len(rows), 1)
    bits = {}
    if option in ("random", "packed"):
        own = np.repeat(BITS["zero_bits"], counts, axis=0)
        bits, option = {"zero_bits": own, "tie_bits": BITS["tie_bits"]}, "random"
    return reference.vote(rows, ties=option, **bits) if len(rows) else np.zeros(SIZE)


def check(got, x, counts):
    """Compares one case; sums of the largest numbers are left to other tests."""
    dtype = str(x.dtype)
    magnitude = np.abs(np.asarray(x, np.float64))
    is_summable = (~np.isfinite(magnitude) | (magnitude < 1e4)).all(axis=0)
    for name, update in got.items():
        expected = slow(name, x, counts)
        where = is_summable if name == "mean" else np.ones(SIZE, bool)
        is_rounded = "midpoint" in name or name == "mean"
        tolerance = 2 * TOLERANCE[dtype] if is_rounded else 0.0
        np.testing.assert_allclose(
            np.asarray(update, np.float64)[where],
            expected[where],
            rtol=tolerance,
            atol=tolerance,
            err_msg=f"{name}, {dtype}, counts {counts}",
        )


def update_all(x, states, mask, weights, axis_name=None):
    extra = {"worker_mask": mask}
    if weights is not None:
        extra["worker_weights"] = weights
    params = params_like(x)
    return {
        name: rule.update(x, states[name], params, **extra)[0]
        for name, rule in rules(axis_name).items()
    }


def fresh_states():
    return {name: rule.init(None) for name, rule in rules().items()}


plain = jax.jit(update_all)
donated = jax.jit(update_all, donate_argnums=(0, 1))


@functools.cache
def meshed():
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("w",), axis_types=auto, devices=jax.devices()[:2])
    update = functools.partial(update_all, axis_name="w")
    spec = (P("w"), P(), P("w"), P("w"))
    return jax.jit(jax.shard_map(update, mesh=mesh, in_specs=spec, out_specs=P()))


def on_explicit_axes(x, states, mask, weights):
    kinds = (AxisType.Explicit,) * 2
    devices = jax.devices()[:4]
    mesh = jax.make_mesh((2, 2), ("w", "m"), axis_types=kinds, devices=devices)
    x = jax.device_put(x, NamedSharding(mesh, P("w", "m")))
    return plain(x, states, mask, weights)


WAYS = [
    ("plain", "float32"),
    ("plain", "bfloat16"),
    ("plain", "float16"),
    ("donated", "float32"),
    ("mesh", "float32"),
    ("explicit", "float32"),
]


@pytest.mark.parametrize(("way", "dtype"), WAYS)
def test_random_updates_are_those_of_the_slow_loops(way, dtype):
    rng = np.random.default_rng([M, SIZE, len(way), len(dtype)])
    update = {"plain": plain, "donated": donated, "explicit": on_explicit_axes}
    cases = 0
    for _ in range(40):
        x, mask = random_gradients(rng, dtype), random_mask(rng)
        # Weights of a size that 32 bits do not add up; of equal ones nobody knows.
        weights = np.full(M, 900_000_001, np.int32)
        call = meshed() if way == "mesh" else update[way]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not every donated buffer is of use
            got = call(jnp.asarray(x), fresh_states(), mask, weights)
        check(got, x, mask.astype(int))
        cases += len(got)
    print(f"{way}, {dtype}: {cases} cases")
    assert cases == 40 * len(rules())


@pytest.mark.parametrize("kind", ["small", "large", "halves"])
def test_random_weights_are_repeated_rows(kind):
    """Of rules that draw nothing: who counts twice casts one random vote, not two."""
    rng, cases = np.random.default_rng(len(kind)), 0
    for _ in range(40):
        x, mask = random_gradients(rng, "float32"), random_mask(rng)
        counts = rng.integers(0, 5, size=M)
        unit = {"small": np.int32(1), "large": np.int32(500_000_000)}
        weights = counts.astype(np.int32) * unit.get(kind, np.float32(0.5))
        got = plain(x, fresh_states(), mask, weights)
        drawn = {"vote, random", "vote, packed"}
        got = {name: update for name, update in got.items() if name not in drawn}
        check(got, x, counts * mask)
        cases += len(got)
    print(f"weights, {kind}: {cases} cases")
    assert cases == 40 * 6


@pytest.mark.parametrize("name", ["vote, random", "mean", "median, lower"])
def test_random_streams_are_the_slow_loops(name):
    rng, cases, rule = np.random.default_rng(len(name)), 0, rules()[name]
    step = jm.make_step(lambda p, b: jnp.vdot(p, b), rule, worker_chunk=4, donate=True)
    for _ in range(40):
        x, mask = random_gradients(rng, "float32"), random_mask(rng)
        params, _, _ = step(jnp.zeros(SIZE), rule.init(None), x, worker_mask=mask)
        check({name: params}, x, mask.astype(int))
        cases += 1
    print(f"streamed, {name}: {cases} cases")
    assert cases == 40
