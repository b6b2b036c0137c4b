"""Problems: disjoint parts, and workers that are served their own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

import jaxmedian as jm
from experiments.common.data.data_set import DataSet
from experiments.common.training import problems


@pytest.fixture(scope="module")
def small():
    """Samples whose image is their number, of three workers of different sizes."""
    labels = np.repeat(np.arange(3), [10, 4, 1])
    samples = {"images": jnp.arange(15.0)[:, None], "labels": jnp.asarray(labels)}
    return samples, jm.splits.by_label(labels, 3)


def test_workers_are_served_their_own_samples(small):
    samples, split = small
    next_batch = problems.serve(samples, split, 6)
    drawn = jax.vmap(lambda key: next_batch(key, 0))(
        jax.random.split(jax.random.key(0), 50)
    )
    for worker in range(3):
        assert (np.asarray(drawn["labels"])[:, worker] == worker).all()
        own = np.asarray(drawn["images"])[:, worker, :, 0].astype(int)
        assert set(own.ravel()) == set(np.flatnonzero(samples["labels"] == worker))


def test_whole_batches_hold_every_sample_once_and_padding_does_not_count(small):
    samples, split = small
    batch = problems.serve(samples, split, None)(jax.random.key(0), 0)
    for worker in range(3):
        counts = np.asarray(batch["weights"][worker])
        own = np.asarray(batch["images"])[worker, counts > 0, 0].astype(int)
        assert sorted(own) == np.flatnonzero(samples["labels"] == worker).tolist()


def test_parts_are_disjoint_and_as_large_as_said():
    pytest.importorskip("sklearn")
    problem = problems.load_problem("digits8x8", hidden=2, num_seeds=2)
    sizes = [len(part["labels"]) for part in problem[3:6]]
    assert sizes == [1258, 179, 360]
    rows = [np.asarray(part["images"]) for part in problem[3:6]]
    assert problem.description == "scikit-learn's 1,797 digits of 8x8 pixels"
    assert sum(map(len, rows)) == 1797
    assert jax.tree.leaves(problem.params)[0].shape[0] == 2
    first, second = jax.tree.leaves(problem.params)[-1]
    assert not np.array_equal(first, second)  # each seed has a network of its own
    with pytest.raises(ValueError, match="`data`"):
        problems.load_problem("imagenet", 2, 1)


def test_nothing_is_set_apart_where_nothing_is_to_be_chosen():
    pytest.importorskip("sklearn")
    problem = problems.load_problem("digits8x8", 2, 1, validation=0)
    assert len(problem.train["labels"]) == 1437
    measured = problems.accuracies(problem, problem.model.params)
    assert list(measured) == ["test_accuracy"]


def test_images_of_any_shape_and_number_of_classes_are_trained_on(monkeypatch):
    images = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
    labels = np.array([0, 1, 2, 0, 1, 2], np.int32)
    pets = DataSet(images, labels, images[:2], labels[:2], "pets", brightest=119)
    monkeypatch.setattr(problems, "load_data", lambda *place: pets)
    problem = problems.load_problem("pets", hidden=3, num_seeds=1, validation=0)
    assert problem.description == "pets"
    kernels = {leaf.shape for leaf in jax.tree.leaves(problem.model.params)}
    assert kernels == {(20, 3), (3,), (3, 3)}
    scaled = {"images": images / np.float32(119), "labels": labels}
    unscaled = problems.dense_network(pets._replace(brightest=1), 3, seed=0)
    np.testing.assert_allclose(
        problem.model.loss(problem.model.params, problem.train),
        unscaled.loss(problem.model.params, scaled),
        rtol=1e-5,
    )


@pytest.mark.parametrize("validation", [-1, 1])
def test_a_part_for_validation_that_leaves_nothing_is_refused(validation):
    with pytest.raises(ValueError, match="`validation` takes 0 for none"):
        problems.load_problem("digits8x8", 4, 1, validation=validation)


def test_few_images_leave_none_to_set_apart(monkeypatch):
    images = np.zeros((7, 4), np.uint8)
    labels = np.arange(7, dtype=np.int32) % 2
    few = DataSet(images, labels, images, labels, "pets")
    monkeypatch.setattr(problems, "load_data", lambda *place: few)
    with pytest.raises(ValueError, match=r"--data takes 8 training .* got 7: pets"):
        problems.load_problem("pets", 2, 1)
    least = problems.load_problem("pets", 2, 1, validation=7)
    assert len(least.validation["labels"]) == 1
    assert len(problems.load_problem("pets", 2, 1, validation=0).train["labels"]) == 7


def test_more_workers_than_samples_are_refused():
    pytest.importorskip("sklearn")
    problem = problems.load_problem("digits8x8", hidden=2, num_seeds=1)
    assert problem.num_classes() == 10
    assert len(problem.labels_for(1258)) == 1258
    message = r"--num-workers takes at most .* 1,258 to train on .* got 1,259"
    for share_out in (problem.split_by_label, problem.labels_for):
        with pytest.raises(ValueError, match=message):
            share_out(1259)
