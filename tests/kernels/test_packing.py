"""Votes that travel as bits are the votes that travel as tallies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxmedian as jm
from jaxmedian import sharding
from jaxmedian.kernels import packing

M = 24  # 3 workers a device on 8 devices: bits; 12 on 2: tallies
PARAMS = {"large": jnp.zeros((70, 1000)), "small": jnp.zeros(13), "dot": jnp.zeros(())}


def test_bytes_hold_the_bits_they_document():
    rng = np.random.default_rng(0)
    bits = rng.random((3, 40)) < 0.5
    packed = np.asarray(packing.pack(jnp.asarray(bits)))
    for row, row_bytes in zip(bits, packed, strict=True):
        for j, byte in enumerate(row_bytes):
            assert [bool(byte >> k & 1) for k in range(8)] == row[j::5].tolist()
    unpacked = packing.unpack(jnp.asarray(packed)).reshape(3, 40)
    np.testing.assert_array_equal(unpacked, bits)
    in_order = packing.unpack_in_order(jnp.asarray(packed[0]))
    np.testing.assert_array_equal(in_order, bits[0])


@pytest.fixture(scope="module")
def grads():
    rng = np.random.default_rng(0)

    def tied(p):
        values = rng.integers(-2, 3, (M, *p.shape)) * rng.integers(0, 2, (M, *p.shape))
        return jnp.asarray(values.astype(np.float32))

    return jax.tree.map(tied, PARAMS)


def on_mesh(num_devices, **options):
    """The jitted vote over a mesh, ``(grads, mask) -> votes``."""
    tx = jm.majority_vote(axis_name="workers", **options)
    mesh = jax.make_mesh((num_devices,), ("workers",), axis_types=(AxisType.Auto,))

    def update(grads, mask):
        return tx.update(grads, tx.init(PARAMS), PARAMS, worker_mask=mask)[0]

    spec = P("workers")
    return jax.jit(
        jax.shard_map(update, mesh=mesh, in_specs=(spec, spec), out_specs=P())
    )


@pytest.mark.parametrize("num_devices", [2, 8])
@pytest.mark.parametrize(
    "options",
    [
        {"ties": "random", "key": 3},
        {"ties": "positive"},
        {"ties": "positive", "key": 3, "noise": jm.noise.uniform(0.5, "systematic")},
    ],
    ids=["random", "positive", "noisy"],
)
def test_packed_votes_are_the_votes_of_one_device(num_devices, options, grads):
    tx = jm.majority_vote(**options)
    update = jax.jit(tx.update)
    meshes = [on_mesh(num_devices, transport=t, **options) for t in ("packed", "tally")]
    for mask in (jnp.ones(M, bool), jnp.arange(M) % 3 != 0, jnp.zeros(M, bool)):
        one, _ = update(grads, tx.init(PARAMS), PARAMS, worker_mask=mask)
        for vote_on_mesh in meshes:
            many = vote_on_mesh(grads, mask)
            for a, b in zip(*map(jax.tree.leaves, (one, many)), strict=True):
                np.testing.assert_array_equal(a, b)


def test_what_crosses_the_mesh_is_about_two_bits_a_coordinate_and_worker():
    tx = jm.majority_vote(ties="positive", axis_name="workers", transport="packed")
    mesh = jax.make_mesh((8,), ("workers",), axis_types=(AxisType.Auto,))
    params = jnp.zeros(819_200)  # slices of 100 x 128 bytes

    def update(grads):
        return tx.update(grads, tx.init(params), params)[0]

    lowered = jax.jit(
        jax.shard_map(update, mesh=mesh, in_specs=P("workers"), out_specs=P())
    ).lower(jax.ShapeDtypeStruct((8, 819_200), jnp.float32))
    text = lowered.as_text()
    # One worker a device sends 102,400 bytes of votes and 12,800 bytes of decisions.
    assert "all_to_all" in text
    assert "all_gather" in text
    assert "all_reduce" not in text
    assert "tensor<1x102400xui8>" in text
    assert "tensor<12800xui8>" in text


# --- routes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_workers", "num_devices", "chosen"),
    [
        (8, 8, "bits"),
        (24, 8, "bits"),
        (64, 8, "tallies"),  # as many bytes, less to do: 8 bits or one integer
        (72, 8, "tallies"),
        (24, 2, "tallies"),
        (128, 8, "bits"),  # a tally of 128 workers no longer fits into a byte
        (248, 8, "bits"),
        (256, 8, "tallies"),
        (5, 1, "tallies"),  # nothing travels
    ],
)
def test_the_cheaper_route_is_chosen(num_workers, num_devices, chosen):
    """Bytes counted by hand, for a size that needs no padding."""
    params = {"matrix": jax.ShapeDtypeStruct((8192, 1000), jnp.float32)}
    (route,) = sharding.packed_routes(params, num_workers, num_devices)
    share = (num_devices - 1) / num_devices
    per_worker = num_workers // num_devices
    tally_bytes = 1 if num_workers < 128 else 4
    assert route.num_coordinates == 8_192_000
    assert route.bytes_as_bits == share * 1_024_000 * (per_worker + 1)
    assert route.bytes_as_tallies == share * 1_024_000 * (8 * tally_bytes + 1)
    assert route.chosen == chosen


def test_small_leaves_travel_together_and_padding_is_counted():
    routes = sharding.packed_routes(PARAMS, num_workers=8, num_devices=8)
    assert [route.leaves for route in routes] == [
        ("['dot']", "['small']"),
        ("['large']",),
    ]
    assert [route.num_coordinates for route in routes] == [256, 70_000]
    # Joined leaves of 1 and 13 coordinates fill a lane of 128 each, together 8 slices
    # of 4 bytes; 70,000 coordinates fill up slices of 1094 bytes.
    assert [route.bytes_as_bits for route in routes] == [7 * 4 * 2, 7 * 1094 * 2]


def test_workers_that_no_mesh_shares_equally_have_no_route():
    with pytest.raises(ValueError, match="`num_workers` must be a multiple"):
        sharding.packed_routes(PARAMS, 9, 8)
