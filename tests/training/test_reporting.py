"""What a run calls at its edges, how it may stop, and what it may be given back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmedian as jm

pytestmark = pytest.mark.usefixtures("compiled_once")


def loss(params, batch):
    return 0.5 * jnp.mean((params - batch) ** 2)


def train(on_chunk, num_steps=6, **options):
    batches = jm.full_batch(jnp.ones((3, 2)))
    options = {"chunk": 2, "on_chunk": on_chunk} | options
    start = jnp.zeros(2)
    return jm.run(loss, jm.sign_sgd(0.25), start, batches, num_steps, 0, **options)


@pytest.mark.parametrize("answer", [None, False, np.False_])
def test_none_and_false_go_on(answer):
    assert train(lambda step, row: answer).step == 6


@pytest.mark.parametrize("answer", [True, np.True_])
def test_true_stops(answer):
    assert train(lambda step, row: answer).step == 2


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ([1], r"list \[1\]"),
        ([], r"list \[\]"),
        ({}, "dict"),
        (3.0, "float 3"),
        (0, "int 0"),
    ],
)
def test_anything_else_is_refused_with_what_to_do(answer, shown):
    def logger(step, row):
        return answer

    message = f"`on_chunk` must return True.*logger` returned {shown}.* at step 2.*None"
    with pytest.raises(TypeError, match=message):
        train(logger)


def test_a_row_is_the_callers_to_change():
    def logger(step, row):
        row["rate"] = row.pop("loss")

    np.testing.assert_array_equal(
        train(logger).metrics["loss"], train(None).metrics["loss"]
    )


def test_parameters_come_on_request_and_stay():
    """sign_sgd moves by 0.25 a step from 0 towards 1; chunks overwrite their state."""
    kept = []

    def third(step, row, weights):
        kept.append(weights)

    def named(step, row, verbose=False, params=None):
        assert not verbose
        kept.append(params)

    def keyword(step, row, *, params):
        kept.append(params)

    def optional(step, row, verbose=False):
        assert not verbose

    for on_chunk in (third, named, keyword):
        kept.clear()
        train(on_chunk)
        ends = [params.tolist() for params in kept]
        assert ends == [[0.5, 0.5], [1, 1], [1, 1]]
    train(optional)


def test_functions_of_other_arguments_are_refused_before_training():
    traced = []

    def noting(params, batch):
        traced.append(1)
        return loss(params, batch)

    for on_chunk in (lambda step: None, lambda a, b, c, d: None):
        with pytest.raises(TypeError, match=r"must take \(step, row\) or"):
            jm.run(
                noting,
                jm.sign_sgd(0.1),
                jnp.zeros(2),
                jm.full_batch(jnp.ones((3, 2))),
                2,
                0,
                on_chunk=on_chunk,
            )
    with pytest.raises(TypeError, match="`on_chunk` must be a function"):
        train(True)
    assert traced == []


@pytest.mark.parametrize("name", ["loss", "step", "gradient_norm"])
def test_metrics_under_the_runs_own_names_are_refused(name):
    def metric(params, grads, updates):
        return {name: jnp.float32(1)}

    with pytest.raises(
        ValueError, match=rf"returns \['{name}'\], names that are taken"
    ):
        train(None, metrics=[metric])


def test_two_metrics_of_one_name_and_wrong_ones_are_refused():
    def metric(params, grads, updates):
        return {"one": jnp.float32(1)}

    with pytest.raises(ValueError, match=r"returns \['one'\]"):
        train(None, metrics=[metric, metric])
    with pytest.raises(TypeError, match=r"one function.*list: `metrics=\[\.\.\.\]`"):
        train(None, metrics=metric)
    with pytest.raises(TypeError, match=r"must return \{name: array\}"):
        train(None, metrics=[lambda params, grads, updates: jnp.float32(1)])


@pytest.mark.parametrize(
    "row",
    [
        {"f": [1.0, 2.0]},
        {"f": None},
        {"f": {"g": 1.0}},
        {"f": jnp.complex64(1)},
        {"f": jax.random.key(0)},
        {3: jnp.float32(1)},
    ],
)
def test_what_no_array_of_real_numbers_is_is_refused_by_name(row):
    with pytest.raises(TypeError, match=r"(?s)real numbers; .* returned .* as '?(f|3)"):
        train(None, metrics=[lambda params, grads, updates: row])


def test_a_run_of_no_steps_has_the_names_of_its_metrics():
    result, longer = train(None, 0), train(None, 2)
    assert result.metrics.keys() == longer.metrics.keys()
    for name, column in result.metrics.items():
        assert column.shape == (0,)
        assert column.dtype == longer.metrics[name].dtype


# --- what a run is given --------------------------------------------------------------


class Model:
    """A model object that is no tree of arrays."""


@pytest.mark.parametrize("run", [jm.run, jm.run_pure])
@pytest.mark.parametrize(
    ("next_batch", "message"),
    [
        ((jnp.ones(3), jnp.ones(3)), "got a tuple.*jm.full_batch"),
        ([1], "got a list.*jm.mini_batches"),
        (7, "got a int.*jm.mini_batches"),
    ],
)
def test_batches_that_are_no_function_are_refused(run, next_batch, message):
    with pytest.raises(TypeError, match=f"`next_batch` must be a function.*{message}"):
        run(loss, jm.sign_sgd(0.1), jnp.zeros(2), next_batch, 2, 0)


@pytest.mark.parametrize("run", [jm.run, jm.run_pure])
def test_model_objects_and_optimizers_not_yet_called_are_refused(run):
    batches = jm.full_batch(jnp.ones((3, 2)))
    for params, where in (
        (Model(), "itself"),
        ({"w": jnp.ones(2), "act": jnp.tanh}, "act"),
    ):
        with pytest.raises(
            TypeError, match=f"`params` must be a tree of arrays.*{where}.*nnx.split"
        ):
            run(loss, jm.sign_sgd(0.1), params, batches, 2, 0)
    with pytest.raises(TypeError, match=r"`optimizer` must be an optax.*got <function"):
        run(loss, jm.sign_sgd, jnp.zeros(2), batches, 2, 0)


def test_runs_under_vmap_and_jit_are_refused():
    batches = jm.full_batch(jnp.ones((3, 2)))

    def of_start(x):
        return jm.run(loss, jm.sign_sgd(0.1), x, batches, 2, 0).params

    def of_rate(rate):
        return jm.run(loss, jm.sign_sgd(rate), jnp.zeros(2), batches, 2, 0).params

    for transformed in (jax.vmap(of_start), jax.jit(of_start)):
        with pytest.raises(TypeError, match=r"cannot be traced.*jm\.run_pure"):
            transformed(jnp.zeros((4, 2)))
    with pytest.raises(TypeError, match=r"cannot be traced.*jm\.run_pure"):
        jax.vmap(of_rate)(jnp.ones(4))
