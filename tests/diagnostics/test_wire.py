"""Bytes on the wire: programs that JAX compiles, and texts that only other backends do.

Expected numbers are counted by hand from shapes and ring formulas.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxmedian as jm
from jaxmedian import sharding
from jaxmedian.diagnostics.wire import bytes_in_program

WORKERS = "workers"
SIZE = 8000


def compiled_update(optimizer, num_devices=8, num_workers=8, model_devices=1):
    """The update of stacked gradients ``[M, 8000]``, compiled."""
    mesh = sharding.workers_mesh(
        num_devices * model_devices, model_devices=model_devices
    )
    params = jnp.zeros(SIZE)

    def update(grads):
        return optimizer.update(grads, optimizer.init(params), params)

    on_mesh = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=P(WORKERS),
        out_specs=P(),
        axis_names={WORKERS},
    )
    shape = jax.ShapeDtypeStruct((num_workers, SIZE), jnp.float32)
    return jax.jit(on_mesh).lower(shape).compile()


PACKED = jm.majority_vote(ties="positive", axis_name=WORKERS, transport="packed")


def test_the_packed_vote_sends_less_than_two_bits_and_the_mean_56():
    packed = jm.diagnostics.wire_bytes(compiled_update(PACKED))
    sent = 7 * SIZE / 8 / 8  # votes on 7 of 8 slices; then a slice of decisions 7 times
    assert packed.by_collective == {"all-gather": sent, "all-to-all": sent}
    assert packed.total == 2 * sent
    assert packed.bits_per_coordinate == 1.75
    mean = jm.diagnostics.wire_bytes(compiled_update(jm.worker_mean(axis_name=WORKERS)))
    assert mean.by_collective == {"all-reduce": 2 * 7 / 8 * 4 * SIZE}
    assert mean.bits_per_coordinate == 56


@pytest.mark.parametrize(("num_devices", "num_workers"), [(2, 2), (4, 12), (2, 24)])
def test_what_was_planned_is_what_is_sent(num_devices, num_workers):
    measured = jm.diagnostics.wire_bytes(
        compiled_update(PACKED, num_devices, num_workers),
        workers_per_device=num_workers // num_devices,
    )
    (route,) = sharding.packed_routes(jnp.zeros(SIZE), num_workers, num_devices)
    planned = {"bits": route.bytes_as_bits, "tallies": route.bytes_as_tallies}
    assert measured.total == planned[route.chosen]
    bits = 8 * measured.total / SIZE / (num_workers // num_devices)
    assert measured.bits_per_coordinate == pytest.approx(bits)


def test_a_tally_sends_a_byte_there_and_back():
    tally = jm.diagnostics.wire_bytes(
        compiled_update(jm.majority_vote(axis_name=WORKERS), num_devices=4)
    )
    assert tally.by_collective == {"all-reduce": 2 * 3 / 4 * SIZE}


def test_relative_noise_adds_one_float_a_worker_and_leaf():
    noise = jm.noise.uniform(jm.noise.relative(0.1), "systematic")
    rule = jm.majority_vote(
        noise, 0, ties="positive", axis_name=WORKERS, transport="packed"
    )
    with_scale = jm.diagnostics.wire_bytes(compiled_update(rule))
    plain = jm.diagnostics.wire_bytes(compiled_update(PACKED))
    assert with_scale.total == plain.total + 7 * 4


def test_the_median_moves_each_coordinate_to_one_device_and_back():
    """(M / D + 1) d floats, less the share that stays at home."""
    rule = jm.coordinate_median(axis_name=WORKERS)
    measured = jm.diagnostics.wire_bytes(compiled_update(rule, num_workers=16))
    assert measured.total == 7 / 8 * 4 * SIZE * (2 + 1)


def test_groups_are_those_of_the_workers_alone():
    mean = jm.worker_mean(axis_name=WORKERS)
    measured = jm.diagnostics.wire_bytes(compiled_update(mean, 2, 2, model_devices=4))
    assert measured.by_collective["all-reduce"] == 2 * 1 / 2 * 4 * SIZE


REPLICATED = P()


def on_mesh(function, out_specs=REPLICATED):
    mesh = sharding.workers_mesh(8)
    spread = jax.shard_map(
        function, mesh=mesh, in_specs=P(WORKERS), out_specs=out_specs
    )
    return jax.jit(spread).lower(jax.ShapeDtypeStruct((8, SIZE), jnp.float32)).compile()


def test_a_loop_counts_as_often_as_it_runs():
    def six_sums(x):
        def add(i, total):
            return jax.lax.psum(jnp.sin(total + x), WORKERS)

        return jax.lax.fori_loop(0, 5, add, jax.lax.psum(x, WORKERS))

    measured = jm.diagnostics.wire_bytes(on_mesh(six_sums))
    assert measured.by_collective == {"all-reduce": 6 * 2 * 7 / 8 * 4 * SIZE}


def test_a_loop_of_unknown_length_is_refused():
    def until_large(x):
        total = jax.lax.psum(x, WORKERS)
        return jax.lax.while_loop(
            lambda total: jnp.max(total) < 9,
            lambda total: jax.lax.psum(x + total, WORKERS),
            total,
        )

    with pytest.raises(ValueError, match="how often that loop runs"):
        jm.diagnostics.wire_bytes(on_mesh(until_large))


def test_a_ring_of_permutes_sends_the_whole_operand():
    ring = [(i, (i + 1) % 8) for i in range(8)]
    measured = jm.diagnostics.wire_bytes(
        on_mesh(lambda x: jax.lax.ppermute(x, WORKERS, ring), P(WORKERS))
    )
    assert measured.by_collective == {"collective-permute": 4 * SIZE}


def test_the_coordinates_are_those_of_the_parameters_of_a_step():
    optimizer = jm.sign_sgd(0.1, ties="positive", axis_name=WORKERS, transport="packed")
    step = sharding.shard_step(
        lambda params, batch: jnp.sum(params["w"] * batch),
        optimizer,
        sharding.workers_mesh(8),
    )
    params = {"w": jnp.zeros(SIZE)}
    compiled = step.lower(params, optimizer.init(params), jnp.ones((8, 1))).compile()
    measured = jm.diagnostics.wire_bytes(compiled)
    loss = measured.total - 2 * 7 * SIZE / 64  # the loss and the number of workers
    assert 0 < loss <= 2 * 2 * 7 / 8 * 4
    assert measured.bits_per_coordinate == 8 * measured.total / SIZE
    halved = jm.diagnostics.wire_bytes(compiled, num_coordinates=2 * SIZE)
    assert halved.bits_per_coordinate == measured.bits_per_coordinate / 2


def test_what_is_no_compiled_program_is_refused():
    double = jax.jit(lambda x: 2 * x)
    with pytest.raises(TypeError, match=r"pass `step.lower\(...\).compile\(\)`"):
        jm.diagnostics.wire_bytes(double)
    counts = double.lower(np.int32(1)).compile()
    with pytest.raises(ValueError, match="`num_coordinates`"):
        jm.diagnostics.wire_bytes(counts)


# --- texts of other backends and versions ---------------------------------------------


def program(*lines, num_partitions=8, also=()):
    body = "\n".join(f"  {line}" for line in lines)
    return "\n".join(
        [
            f"HloModule step, num_partitions={num_partitions}",
            *also,
            "ENTRY %main (p: f32[100]) -> f32[100] {",
            "  %p = f32[100]{0} parameter(0)",
            body,
            "}",
        ]
    )


EIGHT = "replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}"


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        (
            "%s = (f32[100]{0}, f32[800]{0:T(1024)}) all-gather-start(%p), " + EIGHT,
            "all-gather",
            7 * 400,
        ),
        (
            "%s = ((f32[100], u8[8]), (f32[800], u8[64])) all-gather-start(%p, %q), "
            + EIGHT,
            "all-gather",
            7 * 408,
        ),
        (
            f"%s = f32[100]{{0}} all-reduce-start(%p), {EIGHT}, to_apply=%add",
            "all-reduce",
            2 * 7 / 8 * 400,
        ),
        (
            "%s = (f32[100], bf16[4]) all-reduce(%p, %q), replica_groups=[2,4]<=[8], "
            "to_apply=%add",
            "all-reduce",
            2 * 3 / 4 * 408,
        ),
        (
            "%s = f32[100] all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0)",
            "all-reduce",
            400,
        ),
        ("%s = f32[100] all-reduce(%p), replica_groups={}", "all-reduce", 700),
        (
            "%s = f32[100] all-reduce(%p), "
            "replica_groups=mesh['workers'=2,'model'=4] {'workers','model'}, x={1}",
            "all-reduce",
            700,
        ),
        (
            "%s = f32[100] all-reduce(%p), replica_groups=mesh['a'=8] {'a':(2)4}",
            "all-reduce",
            2 * 3 / 4 * 400,
        ),
        (
            "%s = ((f32[96]{0}), f32[12]{0}, s32[]) reduce-scatter-start(%p), " + EIGHT,
            "reduce-scatter",
            7 / 8 * 384,
        ),
        (
            f"ROOT %s = s8[12]{{0}} reduce-scatter(%p), {EIGHT}, to_apply=%add",
            "reduce-scatter",
            7 * 12,
        ),
        (
            "%s = (u8[1,5]{1,0}, u8[1,5]{1,0}, /*index=2*/u8[1,5], u8[1,5]) "
            "all-to-all(%a, %b, %c, %d), replica_groups={{0,1,2,3},{4,5,6,7}}",
            "all-to-all",
            15,
        ),
        (
            "%s = (f32[100], f32[100], u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            400,
        ),
        (
            "%s = f32[100] collective-permute(%p), source_target_pairs={{0,0}}",
            "collective-permute",
            0,
        ),
    ],
)
def test_every_form_of_a_collective_is_counted(line, kind, sent):
    assert bytes_in_program(program(line)) == {kind: pytest.approx(sent)}


INNER = (
    "%inner (q: f32[100]) -> f32[100] {",
    "  %q = f32[100]{0} parameter(0)",
    "  ROOT %r = f32[100]{0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%add",
    "}",
)
OUTER = (
    "%outer (q: f32[100]) -> f32[100] {",
    "  %q = f32[100]{0} parameter(0)",
    "  %r = f32[100]{0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%add",
    "  ROOT %f = f32[100]{0} fusion(%r), kind=kLoop, calls=%inner",
    "}",
)


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        (
            "%w = f32[100] while(%p), condition=%c, body=%outer, backend_config="
            '{"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}',
            3 * 800,
        ),
        ("%w = f32[100] conditional(%i), branch_computations={%inner, %outer}", 800),
        (
            "%w = f32[100] conditional(%i), true_computation=%inner, "
            "false_computation=%nothing",
            400,
        ),
        (
            "%w = ((f32[100]), f32[100], s32[]) async-start(%p), calls=%inner\n"
            "  %d = f32[100] async-done(%w), calls=%inner",
            400,
        ),
        ("%w = f32[100] call(%p), to_apply=%outer", 800),
    ],
)
def test_collectives_in_called_computations_are_counted(line, sent):
    counted = bytes_in_program(program(line, also=(*INNER, *OUTER)))
    assert counted == {"all-reduce": sent}


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (
            "%s = f32[100] ragged-all-to-all(%p)",
            r"cannot count ragged-all-to-all \(s\)",
        ),
        (
            "%s = f32[100] all-reduce(%p), replica_groups=new(8)",
            "cannot read the groups",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused(line, match):
    with pytest.raises(ValueError, match=match):
        bytes_in_program(program(line))
