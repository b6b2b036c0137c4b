"""What a run evaluates at chunk edges, the best parameters, auxiliary output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmedian as jm

TARGETS = jnp.array([1.0, 2.0, 6.0])
MASK = jnp.array([True, False, True])


def loss(params, batch):
    return 0.5 * jnp.square(params - batch)


def train(num_steps=7, run=jm.run, loss_fn=loss, rate=1.0, **options):
    """Steps of +1 from 0 towards the median, 2: parameters 0, 1, 2, 2, ..."""
    options = {"chunk": 2} | options
    return run(
        loss_fn,
        jm.sign_sgd(rate),
        jnp.float32(0),
        jm.full_batch(TARGETS),
        num_steps,
        0,
        **options,
    )


# --- evaluate -------------------------------------------------------------------------


@pytest.mark.parametrize("run", [jm.run, jm.run_pure])
def test_what_is_evaluated_is_measured_at_each_edge(run):
    """With steps of 1/4: 1/2, 1, 3/2 at steps 2, 4, 6, and 7/4 at the end."""
    traces = []

    def evaluate(params):
        traces.append(1)
        return {"square": params**2, "pair": jnp.stack([params, -params])}

    result = train(run=run, rate=0.25, evaluate=evaluate)
    ends = np.array([0.5, 1, 1.5, 1.75])
    np.testing.assert_array_equal(result.metrics["square"], ends**2)
    np.testing.assert_array_equal(result.metrics["pair"], np.stack([ends, -ends], 1))
    assert len(traces) == 1


def test_evaluations_reach_on_chunk_and_the_progress_bar(capsys):
    pytest.importorskip("tqdm")
    rows = []
    train(
        4,
        evaluate=lambda params: {"double": 2 * params, "pair": jnp.zeros(2)},
        on_chunk=lambda step, row: rows.append(row["double"]),
        progress=True,
    )
    assert rows == [4, 4]
    shown = capsys.readouterr().err
    assert "double=4" in shown
    assert "pair" not in shown


def test_a_run_of_no_steps_names_what_would_be_evaluated():
    result = train(0, evaluate=lambda params: {"square": params**2})
    assert result.metrics["square"].shape == (0,)


@pytest.mark.parametrize("run", [jm.run, jm.run_pure])
@pytest.mark.parametrize(
    ("evaluate", "error", "message"),
    [
        ([1], TypeError, "`evaluate` must be a function"),
        (lambda params: params, TypeError, "`evaluate` must return {name: value}"),
        *(
            (lambda params, row=row: row, TypeError, r"`evaluate` must return {name: a")
            for row in (
                {0: 1.0},
                {"x": None},
                {"x": [1.0, 2.0]},
                {"x": {"y": 1.0}},
                {"x": 1j},
                {"x": jax.random.key(0)},
                {"x": "words"},
            )
        ),
        (
            lambda params: {"loss": params},
            ValueError,
            r"returns \['loss'\], names that",
        ),
        (
            lambda params: {"ties": params},
            ValueError,
            r"returns \['ties'\], names that",
        ),
    ],
)
def test_bad_evaluations_are_refused(run, evaluate, error, message):
    with pytest.raises(error, match=message):
        train(run=run, evaluate=evaluate)


# --- keep_best ------------------------------------------------------------------------


def peak(params):
    """Highest at 1, NaN beyond 2."""
    return {"score": jnp.where(params > 2, jnp.nan, -jnp.square(params - 1))}


def overshoot(num_steps=6, **options):
    """Steps of 1/2 towards 6: edges at 1, 2, 3 for chunks of two."""

    def far(params, batch):
        return 0.5 * jnp.square(params - 6) + 0 * batch

    return train(num_steps, loss_fn=far, rate=0.5, **options)


@pytest.mark.parametrize(
    ("keep_best", "evaluate", "best"),
    [
        ("score", peak, 1),
        ("-score", peak, 2),
        ("-loss", None, 3),
        ("loss", None, 1),
        ("score", lambda params: {"score": jnp.nan * params}, 0),
    ],
)
@pytest.mark.parametrize("donate", [True, False])
def test_the_best_parameters_of_all_edges_are_kept(keep_best, evaluate, best, donate):
    result = overshoot(evaluate=evaluate, keep_best=keep_best, donate=donate)
    assert float(result.best_params) == best
    assert float(result.params) == 3


def test_nothing_is_kept_unless_asked_for():
    assert overshoot(evaluate=peak).best_params is None


def test_the_best_parameters_survive_a_resume(tmp_path):
    """Those of step 2, of a run that is resumed at step 4."""
    pytest.importorskip("orbax.checkpoint")
    options = {"evaluate": peak, "keep_best": "score", "checkpoint": tmp_path / "run"}
    assert float(overshoot(4, **options).best_params) == 1
    result = overshoot(6, **options)
    assert result.step == 6
    assert (float(result.best_params), float(result.params)) == (1, 3)
    with pytest.raises(ValueError, match=r"keep_best \(score there, -score here\)"):
        overshoot(8, **options | {"keep_best": "-score"})


def test_an_edge_that_only_the_end_made_is_best_of_no_longer_run(tmp_path):
    """At step 3 of chunks of two: 1.5, the best there until the run goes on."""
    pytest.importorskip("orbax.checkpoint")
    near = lambda params: {"score": -jnp.square(params - 1.4)}  # noqa: E731
    options = {"evaluate": near, "keep_best": "score"}
    saved = options | {"checkpoint": tmp_path / "run"}
    for num_steps, best in ((3, 1.5), (3, 1.5), (6, 1.0)):
        assert float(overshoot(num_steps, **saved).best_params) == best
        assert float(overshoot(num_steps, **options).best_params) == best


@pytest.mark.parametrize(
    ("keep_best", "error", "message"),
    [
        (True, TypeError, "`keep_best` must be the name of a measurement"),
        ("acuracy", ValueError, "`keep_best` 'acuracy' names no number among"),
    ],
)
def test_bad_names_of_the_best_are_refused(keep_best, error, message):
    with pytest.raises(error, match=message):
        overshoot(keep_best=keep_best)


# --- auxiliary output -----------------------------------------------------------------


@pytest.mark.parametrize("run", [jm.run, jm.run_pure])
@pytest.mark.parametrize("worker_chunk", [None, 2])
def test_auxiliary_output_is_averaged_over_the_workers_present(run, worker_chunk):
    """Targets 1 and 6 are there: means 3.5, and of the larger than 5, one half."""

    def with_aux(params, batch):
        aux = {"target": jnp.stack([batch, 2 * batch]), "large": batch > 5}
        return loss(params, batch), aux

    result = train(
        3,
        run=run,
        loss_fn=with_aux,
        has_aux=True,
        worker_chunk=worker_chunk,
        extra_args=lambda key, step: {"worker_mask": MASK},
    )
    np.testing.assert_allclose(result.metrics["target"], [[3.5, 7.0]] * 2)
    np.testing.assert_array_equal(result.metrics["large"], [0.5, 0.5])
    assert float(result.params) == 2  # where target 1 and target 6 disagree


def test_an_array_alone_is_called_aux():
    result = train(2, loss_fn=lambda p, b: (loss(p, b), b), has_aux=True)
    np.testing.assert_allclose(result.metrics["aux"], [3.0])


@pytest.mark.parametrize(
    ("aux", "error", "message"),
    [
        ((1.0, 2.0), TypeError, "aux an array or a flat"),
        ({"a": {"b": 1.0}}, TypeError, "aux an array or a flat"),
        ({"loss": 1.0}, ValueError, r"auxiliary output \['loss'\], names that"),
        ({"step": 1.0}, ValueError, r"auxiliary output \['step'\], names that"),
    ],
)
def test_auxiliary_output_of_other_forms_is_refused(aux, error, message):
    def with_aux(params, batch):
        return loss(params, batch), jax.tree.map(jnp.float32, aux)

    with pytest.raises(error, match=message):
        train(2, loss_fn=with_aux, has_aux=True)
