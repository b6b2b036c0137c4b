"""The table of programs compiled ahead of time, on devices that are there."""

import itertools
from pathlib import Path

import jax
import pytest

pytest.importorskip("flax")

from experiments.systems import tpu
from experiments.systems.tpu import programs

DEVICES, WORKERS, COORDINATES = 2, 1, 4096


@pytest.fixture(scope="module")
def rows():
    config = tpu.Config(
        num_coordinates=COORDINATES,
        workers_per_core=(WORKERS,),
        hidden=8,
        batch_size=2,
    )
    every = programs.rows(config, jax.devices()[:DEVICES])
    return list(itertools.islice(every, 7))  # of the two steps one


def test_the_share_of_one_device_is_its_workers_gradients(rows):
    rules = [row for row in rows if "step" not in row["program"]]
    assert len(rules) == 6
    for row in rules:
        assert row["argument_bytes"] >= 4 * WORKERS * COORDINATES
        assert row["argument_bytes"] <= 4 * WORKERS * COORDINATES + 64  # and a key
        assert row["memory_traffic_bytes"] > row["argument_bytes"]


def test_what_is_sent_follows_from_ring_and_dtype(rows):
    sent = {row["program"]: row["sent_bytes"] for row in rows}
    ring = 2 * (DEVICES - 1) / DEVICES  # up and down
    assert sent["mean"] == ring * 4 * COORDINATES
    assert sent["vote, tally"] == pytest.approx(ring * COORDINATES, rel=0.01)
    assert sent["packed vote"] == ring * COORDINATES / 8  # padded to whole slices
    bits = {row["program"]: row["bits_per_coordinate"] for row in rows}
    assert bits["mean"] == 8 * sent["mean"] / WORKERS / COORDINATES


def test_the_table_writes_every_row(rows):
    header, rule, *lines = tpu.table(rows).splitlines()
    assert len(lines) == len(rows) == 7
    columns = header.count("|")
    assert all(line.count("|") == columns for line in (rule, *lines))
    assert lines[0].startswith("| mean | 1 | 16,")


def test_the_committed_table_is_one_that_is_printed_today(rows):
    """The same columns and programs; the numbers are the TPU compiler's."""
    committed = (Path(tpu.__file__).parent / "v5e.md").read_text()
    lines = [line for line in committed.splitlines() if line.startswith("|")]
    assert lines[:2] == tpu.table([]).splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert set(names) >= {row["program"] for row in rows}


def test_the_claims_are_judged_where_padding_is_small():
    def row(program, kept, bits):
        return {
            "program": program,
            "workers_per_core": 1,
            "temporary_bytes": kept,
            "bits_per_coordinate": bits,
        }

    found = {"packed_bytes": 125_000, "rows": [row("mean", 0, 56.0)]}
    found["rows"].append(row("packed vote", 125_001, 2.01))
    assert [claim.holds for claim in tpu._claims(found)] == [False, False]
    found["rows"][1] = row("packed vote", 125_000, 1.76)
    assert [claim.holds for claim in tpu._claims(found)] == [True, True]
    assert [claim.holds for claim in tpu._claims({"skipped": "-"})] == [None, None]
