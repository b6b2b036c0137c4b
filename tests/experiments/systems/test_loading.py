"""Loading: the file holds what it should, is read in order, and judges when quiet."""

import itertools

import numpy as np
import pytest

pytest.importorskip("tyro")

from experiments.systems import loading
from experiments.systems.loading import measure

TINY = loading.PRESETS["tiny"]


def test_the_file_is_read_batch_by_batch_and_again(tmp_path):
    samples = measure.write_file(TINY, tmp_path)
    assert samples.shape == (4, 1953, 16)  # 500 kB of 4 x 16 float32 a sample
    assert (tmp_path / "samples").stat().st_size == samples.size * 4
    assert 0.4 < samples.mean() < 0.6
    num_batches = 1953 // 8
    taken = list(itertools.islice(measure.walk(samples, 8, 3), num_batches))
    np.testing.assert_array_equal(taken[0], samples[:, 24:32])
    np.testing.assert_array_equal(taken[-1], samples[:, 16:24])


def test_every_way_is_timed_and_toys_judge_nothing(tmp_path):
    measured = measure.measure(TINY, tmp_path)
    assert all(row["ms"] > 0 for row in measured["rows"].values())
    claims = loading._claims(TINY, measured)
    assert [claim.holds for claim in claims] == [None] * 4
    loading.plot(loading.Result({}, claims, measured))


@pytest.mark.parametrize(
    ("ratio", "holds"),
    [((1.02, 1.0, 1.1, 1.0), True), ((1.04, 1.0, 1.1, 1.0), False),
     ((1.02, 0.9, 1.2, 1.0), None)],
)  # fmt: skip
def test_a_busy_machine_judges_nothing(ratio, holds):
    names = ("batch on the device", "host memory", "memory-mapped file",
             "loop over shard_step", "run(mesh=)")  # fmt: skip
    measured = {
        "rows": {name: {"ms": 10.0} for name in names},
        "ratios": dict.fromkeys(names, ratio),
        "memory": {"file": 4000.0, "mapped": 999.0, "device": 100.0},
    }
    claims = loading._claims(loading.Config(), measured)
    assert claims[-1].holds is holds
    assert claims[2].holds is True
    assert ("busy" in claims[-1].reason) == (holds is None)


def test_chunks_that_leave_nothing_to_time_are_refused():
    with pytest.raises(ValueError, match="--num-steps must be a multiple of --chunk"):
        loading.run(loading.Config(num_steps=100, chunk=100))
