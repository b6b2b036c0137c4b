"""Finished parts of a sweep are kept, bit by bit, and not trained again."""

import numpy as np
import pytest

from experiments.common.training.finished import once
from experiments.common.training.trainer import Runs


def runs_of(seed):
    noise = np.random.default_rng(seed)
    return Runs(
        {"rate": np.array([0.1, 0.2])},
        {"step": np.arange(3), "loss": noise.normal(size=(2, 4, 3)).astype(np.float32)},
    )


def equal(one, other):
    for part, other_part in zip(one, other, strict=True):
        assert dict(part).keys() == dict(other_part).keys()
        for name in part:
            assert part[name].dtype == other_part[name].dtype
            np.testing.assert_array_equal(part[name], other_part[name])


def no_training():
    pytest.fail("trained again")


def test_what_is_finished_is_not_trained_again(tmp_path):
    names = ["sto-sign, B = max|g|", "sto-sign, B = max/g", "../mean"]
    for seed, name in enumerate(names):
        once(tmp_path, name, lambda seed=seed: runs_of(seed))
    for seed, name in enumerate(names):
        equal(once(tmp_path, name, no_training), runs_of(seed))
    assert len(list(tmp_path.iterdir())) == len(names)


def test_half_a_file_counts_as_nothing(tmp_path, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path, "mean", lambda: runs_of(0))
    monkeypatch.undo()
    equal(once(tmp_path, "mean", lambda: runs_of(1)), runs_of(1))


def test_without_a_folder_nothing_is_kept():
    equal(once(None, "mean", lambda: runs_of(0)), runs_of(0))
