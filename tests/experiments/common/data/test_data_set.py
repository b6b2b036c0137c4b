"""Data sets from arrays: stratified parts, and batches that never serve padding."""

import doctest

import jax
import numpy as np
import pytest

import jaxmedian as jm
from experiments.common.data import cache, data_set
from experiments.common.training.problems import serve


def test_stratified_holdout_keeps_proportions():
    rng = np.random.default_rng(0)
    for seed in range(300):
        labels = rng.integers(0, rng.integers(1, 8), rng.integers(1, 90))
        size = int(rng.integers(0, labels.size + 1))
        kept, held_out = data_set.stratified_holdout(labels, size, seed)
        assert held_out.size == size
        assert sorted([*kept, *held_out]) == list(range(labels.size))
        expected = np.bincount(labels) * size / labels.size
        apart = np.bincount(labels[held_out], minlength=expected.size)
        assert (abs(apart - expected) < 1).all()


def test_stratified_holdout_is_random_and_seeded():
    labels = np.arange(1000) % 10
    kept, held_out = data_set.stratified_holdout(labels, 100, seed=1)
    np.testing.assert_array_equal(
        held_out, data_set.stratified_holdout(labels, 100, seed=1)[1]
    )
    assert set(held_out) != set(data_set.stratified_holdout(labels, 100, seed=2)[1])
    # Neither part comes sorted by class: then nearly all neighbours would be equal.
    for part in (kept, held_out):
        classes = labels[part]
        assert (classes[1:] == classes[:-1]).mean() < 0.3


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXMEDIAN_CACHE", str(tmp_path))
    assert cache.cache_folder() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in (lambda: monkeypatch.setenv("JAXMEDIAN_CACHE", ""), None):
        unset() if unset else monkeypatch.delenv("JAXMEDIAN_CACHE")
        assert cache.cache_folder() == tmp_path / ".cache" / "jaxmedian"


def test_arrays_keep_their_rows_and_names_become_numbers():
    names = np.array(["cat", "dog", "ant"])[np.arange(60) % 3]
    images = np.arange(60.0)[:, None] * np.ones(4)
    data = data_set.from_arrays(images, names, test_size=15, seed=2)
    assert data.test_images.shape == (15, 4)
    assert np.bincount(data.test_labels).tolist() == [5, 5, 5]
    both = np.concatenate([data.train_images, data.test_images])[:, 0].astype(int)
    labels = np.concatenate([data.train_labels, data.test_labels])
    assert sorted(both.tolist()) == list(range(60))
    assert (np.array(["ant", "cat", "dog"])[labels] == names[both]).all()
    assert labels.dtype == np.int32


def test_two_lines_take_arrays_to_a_run():
    """A worker's batches hold its own samples, each as often as any other."""
    rng = np.random.default_rng(0)
    labels = rng.choice(4, size=90, p=[0.6, 0.2, 0.1, 0.1])
    images = np.arange(90, dtype=np.float32)[:, None]
    data = data_set.from_arrays(images, labels, test_size=0)
    split = jm.splits.by_label(data.train_labels, 4)
    batches = serve(data.train(), split, 3, replace=False)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(lambda key: batches(key, 0)))(keys)
    for worker in range(4):
        served = np.asarray(drawn["images"])[:, worker, :, 0].astype(int)
        own = set(images[:, 0][labels == worker].astype(int))
        assert set(served.ravel()) == own
        assert (np.asarray(drawn["labels"])[:, worker] == worker).all()
        assert all(len(set(row)) == 3 for row in served[:100])  # no replacement
        share = 3 / len(own)
        sigma = np.sqrt(4000 * share * (1 - share))
        counts = np.bincount(served.ravel(), minlength=90)[sorted(own)]
        assert (abs(counts - 4000 * share) <= 5 * sigma).all()


def test_with_replacement_small_workers_fill_a_batch():
    data = data_set.from_arrays(np.arange(7.0)[:, None], [0] * 6 + [1], test_size=0)
    split = jm.splits.by_label(data.train_labels, 2)
    batches = serve(data.train(), split, 4)
    keys = jax.random.split(jax.random.key(0), 6000)
    drawn = np.asarray(jax.vmap(lambda key: batches(key, 0))(keys)["images"])[..., 0]
    assert (drawn[:, 1] == 6).all()
    counts = np.bincount(drawn[:, 0].astype(int).ravel(), minlength=6)
    sigma = np.sqrt(24000 * (1 / 6) * (5 / 6))
    assert counts.size == 6
    assert (abs(counts - 4000) <= 5 * sigma).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((3, 2)), [0, 1]), ValueError, "one row a sample"),
        ((np.zeros((0, 2)), []), ValueError, "at least one"),
        ((np.array([["a"]]), [0]), TypeError, "`images`"),
        ((np.zeros((2, 2)), [[0], [1]]), ValueError, "shapes"),
    ],
)
def test_bad_arrays_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        data_set.from_arrays(*arguments, test_size=0)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ([4, 5], ValueError, "from 0 to 4"),
        ([4, -1], ValueError, "from 0 to 4"),
        ([4], ValueError, "2 numbers"),
        ([4.0, 4.0], TypeError, "integers"),
        ([4, 1], ValueError, "`batch_size` 2 is more than the 1"),
        ([0, 0], ValueError, "No worker has samples to draw from"),
    ],
)
def test_bad_sizes_are_refused(sizes, error, message):
    with pytest.raises(error, match=message):
        jm.mini_batches(np.zeros((2, 4)), 2, sizes=sizes)


def test_docstring_examples():
    results = doctest.testmod(data_set)
    assert results.attempted > 0
    assert results.failed == 0
