"""The trainer: runs of one program end as each would alone, resume, and stop."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("sklearn")
pytest.importorskip("orbax.checkpoint")

import jaxmedian as jm
from experiments.common.training import trainer
from experiments.common.training.outcomes import grid
from experiments.common.training.problems import accuracies, load_problem, serve
from jaxmedian.noise import keys

NUM_STEPS = 4
SETTINGS = grid(rate=(0.1, 0.5), scale=(0.05,))


def build(key, rate, scale):
    """Continuous in its gradients, so that rounding stays rounding."""
    return jm.noisy_median_sgd(rate, jm.noise.gaussian(scale), key)


@pytest.fixture(scope="module")
def problem():
    return load_problem("digits8x8", hidden=4, num_seeds=2)


@pytest.fixture(scope="module")
def split(problem):
    split = problem.split_by_label(3)
    assert len(set(split.sizes.tolist())) > 1  # so that padding would show
    return split


def build_trainer(problem, batch_size, **options):
    options = {"num_steps": NUM_STEPS, "chunk": 2} | options
    return trainer.build_trainer(problem, build, batch_size=batch_size, **options)


@pytest.fixture(scope="module", params=[8, None], ids=["batches", "whole"])
def trained(request, problem, split):
    """A trainer, its batch size, and its runs."""
    train = build_trainer(problem, request.param, replace=False)
    return train, request.param, train(SETTINGS, split)


def test_each_run_ends_as_it_would_alone(problem, split, trained):
    """Every setting and seed, at every edge, against `jm.run_pure`."""
    _, batch_size, runs = trained
    batches = serve(problem.train, split, batch_size, replace=False)

    def measure(params, grads, updates):
        return accuracies(problem, params)

    @jax.jit
    def alone(rate, scale, params, key):
        optimizer = build(key, rate, scale)
        loss, options = problem.model.loss, {"chunk": 2, "metrics": [measure]}
        run_key = jax.random.fold_in(key, keys.RUN)

        def batch_of(_, step):
            return batches(jax.random.fold_in(run_key, step), step)

        arguments = loss, optimizer, params, batch_of, NUM_STEPS, key
        return jm.run_pure(*arguments, **options).metrics

    for setting in range(2):
        for seed in range(2):
            expected = alone(
                *(jnp.float32(SETTINGS[name][setting]) for name in ("rate", "scale")),
                jax.tree.map(lambda leaf, seed=seed: leaf[seed], problem.params),
                problem.keys[seed],
            )
            assert expected.keys() == runs.metrics.keys()
            for name, values in runs.metrics.items():
                # Rounding may change one digit's class and a gradient's last bits.
                slack = {"rtol": 1e-3, "atol": 1 / 179 if "accuracy" in name else 1e-4}
                np.testing.assert_allclose(
                    values[setting, seed], expected[name], err_msg=name, **slack
                )
    norms = runs.metrics["gradient_norm"][..., -1].ravel()
    assert len(set(norms.tolist())) == 4  # four runs, not copies of one
    assert runs.num_steps() == NUM_STEPS


def assert_same(runs, expected):
    assert runs.metrics.keys() == expected.metrics.keys()
    for name, values in expected.metrics.items():
        np.testing.assert_array_equal(runs.metrics[name], values, strict=True)


def test_stopped_runs_resume_to_the_same_bits(split, trained, tmp_path, monkeypatch):
    train, _, unbroken = trained
    folder, save = trainer.part_folder(tmp_path, "a part"), jm.checkpoint.save

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_SAVED_EVERY", -1.0)  # at every edge
        patch.setattr(trainer.jm.checkpoint, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(SETTINGS, split, folder)
    assert [path.name for path in folder.iterdir() if path.name.isdecimal()] == ["2"]
    assert_same(train(SETTINGS, split, folder), unbroken)


def test_ctrl_c_saves_the_last_edge(split, trained, tmp_path, monkeypatch):
    train, _, unbroken = trained
    folder, edges = tmp_path / "part", iter([None, KeyboardInterrupt()])

    def pressed(ready):
        if error := next(edges):
            raise error
        return ready

    with monkeypatch.context() as patch:
        patch.setattr(trainer.jax, "block_until_ready", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(SETTINGS, split, folder)
    assert_same(train(SETTINGS, split, folder), unbroken)


def test_what_is_finished_is_not_trained_again(split, trained, tmp_path, monkeypatch):
    train, _, runs = trained
    names = ["sto-sign, B = max|g|", "sto-sign, B = max/g", "../mean"]
    folders = [trainer.part_folder(tmp_path, name) for name in names]
    for folder in folders:
        train(SETTINGS, split, folder)
    assert sorted(tmp_path.iterdir()) == sorted(folders)  # one each, and none outside
    monkeypatch.setattr(trainer.jax, "block_until_ready", pytest.fail)  # of a chunk
    assert_same(train(SETTINGS, split, folders[0]), runs)


def test_without_a_folder_nothing_is_kept():
    assert trainer.part_folder(None, "mean") is None


def test_ctrl_c_ends_an_experiment_and_not_a_single_run_alone(monkeypatch):
    monkeypatch.setattr(
        trainer.jm, "run", lambda *a, **k: jm.RunResult(None, None, {}, 3)
    )
    assert trainer.run_to_end(None, None, None, None, 3, key=0).step == 3
    with pytest.raises(KeyboardInterrupt):
        trainer.run_to_end(None, None, None, None, 4, key=0)


@pytest.mark.parametrize("answer", [True, False])
def test_a_run_that_its_own_callback_ends_is_at_its_end(monkeypatch, answer):
    def run(*arguments, on_chunk, **options):
        assert on_chunk(3, {}) is answer
        return jm.RunResult(None, None, {}, 3)

    monkeypatch.setattr(trainer.jm, "run", run)
    arguments, options = (None, None, None, None, 4), {"on_chunk": lambda *_: answer}
    if answer:
        assert trainer.run_to_end(*arguments, **options).step == 3
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run_to_end(*arguments, **options)


def test_docstring_examples():
    assert doctest.testmod(trainer).failed == 0


def test_checkpoints_of_other_data_are_not_gone_on_from(problem, split, tmp_path):
    """One pixel differs, the labels of the test digits, or who holds what."""
    train = build_trainer(problem, 8)
    first = train(SETTINGS, split, tmp_path)
    again = train(SETTINGS, split, tmp_path)
    for name, values in first.metrics.items():
        np.testing.assert_array_equal(values, again.metrics[name])
    images = problem.train["images"].at[0, 0].add(1)
    others = [
        problem._replace(train=problem.train | {"images": images}),
        problem._replace(test=problem.test | {"labels": problem.test["labels"][::-1]}),
    ]
    for other in others:
        with pytest.raises(ValueError, match="of runs on other data"):
            train(SETTINGS, split, tmp_path, on=other)
    swapped = jm.splits.Split(split.order[::-1], split.offsets)
    with pytest.raises(ValueError, match="of runs on other data"):
        train(SETTINGS, swapped, tmp_path)
