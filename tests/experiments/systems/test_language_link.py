"""The language model on a link: the mean of 16 bits, and what is said of a loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

pytest.importorskip("tyro")

import jaxmedian as jm
from experiments.systems import language_link
from experiments.systems.language_link import reader

CONFIG = language_link.PRESETS["tiny"]


def test_the_half_precision_mean_is_of_what_each_device_rounds():
    """Each device rounds the mean of its own workers; a mesh gathers 16 bits."""
    rows = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    own = np.float32([rows[:2].mean(0), rows[2:].mean(0)])
    expected = np.asarray(jnp.asarray(own, jnp.bfloat16), np.float32).mean(0)
    assert not np.array_equal(expected, own.mean(0))  # rounding is to be seen

    def reduce(rows, axis_name):
        tx = reader.half_precision_mean(2, axis_name)
        return tx.update({"w": rows}, tx.init(None))[0]["w"]

    mesh = jm.sharding.workers_mesh(2)
    on_mesh = jax.jit(
        jax.shard_map(
            lambda rows: reduce(rows, "workers"),
            mesh=mesh,
            in_specs=P("workers"),
            out_specs=P(),
        )
    )
    np.testing.assert_array_equal(reduce(jnp.asarray(rows), None), expected)
    np.testing.assert_array_equal(on_mesh(rows), expected)
    wire = jm.diagnostics.wire_bytes(on_mesh.lower(rows).compile())
    assert wire.total == 2 * expected.size


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"devices": (1, 2)}, "--devices"),
        ({"devices": (3,)}, "--num-workers"),
        ({"link": True, "link_processes": 3}, "--num-workers"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        language_link.run(dataclasses.replace(CONFIG, **change))


def _judge(losses, seconds):
    """Returns the claim for losses measured at steps 50, 100, 150."""
    steps = np.array([50.0, 100.0, 150.0])
    curves = {
        name: {"step": steps, "held_out_loss": np.array(values)}
        for name, values in zip(reader.RULES, losses, strict=True)
    }
    rows = [
        {"rule": name, "seconds": s}
        for name, s in zip(reader.RULES, seconds, strict=True)
    ]
    return language_link._sooner(language_link.Config(), curves, {"rows": rows})


def test_seconds_to_a_loss_are_steps_times_seconds_on_the_link():
    slow = [2.5, 2.1, 1.9]
    claim = _judge([[2.0, 1.9, 1.8], [2.5, 2.0, 1.8], slow], [0.5, 0.3, 0.1])
    assert claim.holds
    assert "mean, float32: 25 s" in claim.here
    assert "mean, bfloat16: 30 s" in claim.here
    assert f"{language_link.VOTE}: 15 s" in claim.here
    assert not _judge([[2.0, 1.9, 1.8], slow, slow], [0.2, 0.3, 0.1]).holds


def test_a_loss_that_is_not_reached_is_said_and_does_not_win():
    never = [2.5, 2.4, 2.3]
    claim = _judge([[2.0, 1.9, 1.8], never, never], [0.5, 0.3, 0.1])
    assert claim.holds is False
    assert f"{language_link.VOTE}: never" in claim.here
    assert _judge([never, never, never], [0.5, 0.3, 0.1]).holds is None


def test_ctrl_c_ends_the_experiment_and_not_a_rule_alone(monkeypatch):
    """A run that was stopped before its loss is no rule that never gets there."""
    stopped = jm.RunResult(*[None] * len(jm.RunResult._fields))._replace(step=1)
    monkeypatch.setattr(jm, "run", lambda *arguments, **options: stopped)
    monkeypatch.setattr(reader, "build", lambda name, config: None)
    with pytest.raises(KeyboardInterrupt):
        reader.until_target(CONFIG, reader.HALF, None)
