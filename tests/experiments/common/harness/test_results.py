"""What a run leaves behind: tables against steps or scales, claims printed as said."""

import csv
import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from matplotlib.figure import Figure

from experiments.common.harness import claims, results

CLAIM = claims.Claim("E[vote] is 0", "0.1", True, paper="[bold]")


@dataclasses.dataclass(frozen=True)
class Config:
    """What `save` writes into config.json."""

    draws: int = 3


def saved_rows(result, folder):
    results.save(folder, Config(), result, Figure())
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("against", "points"),
    [("step", np.array([0, 50])), ("b / sd", np.array([0.1, 2.0]))],
)
def test_tables_keep_what_their_curves_are_drawn_against(tmp_path, against, points):
    curves = {
        "one": {against: points, "loss": np.array([2.5, 1.5])},
        "other": {against: points[:1], "bias": np.array([-1.0])},
    }
    rows = saved_rows(results.Result(curves, (CLAIM,), against=against), tmp_path)
    assert [row[against] for row in rows] == [str(p) for p in (*points, points[0])]
    assert [row["loss"] for row in rows] == ["2.5", "1.5", ""]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["last"]["one"] == {against: points[1], "loss": 1.5}


def test_brackets_in_a_claim_are_printed(capsys):
    claims.print_table([CLAIM])
    printed = capsys.readouterr().out
    assert "E[vote]" in printed
    assert "[bold]" in printed
