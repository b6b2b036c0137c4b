"""What a run leaves behind: tables against steps or scales, claims printed as said."""

import csv
import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from matplotlib.figure import Figure

from experiments.common.harness import results

CLAIM = results.Claim("E[vote] is 0", "0.1", True, paper="[bold]")


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
    results.print_table([CLAIM])
    printed = capsys.readouterr().out
    assert "E[vote]" in printed
    assert "[bold]" in printed


def test_a_partial_result_says_so_and_judges_nothing(tmp_path):
    broken = CLAIM._replace(holds=False)
    result = results.Result({}, (CLAIM, broken), partial=True)
    about = {"command": "python -m experiments toy", "seconds": 1.5}
    results.save(tmp_path, Config(), result, Figure(), about)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["partial"] is True
    assert [claim["holds"] for claim in summary["claims"]] == [None, None]
    assert summary["command"] == about["command"]


def test_parts_end_at_ctrl_c_and_keep_what_is_finished(capsys):
    def work(name):
        if name == "third":
            raise KeyboardInterrupt
        return name.upper()

    names = ["first", "second", "third", "fourth"]
    found, partial = results.each_part(names, work)
    assert (found, partial) == ({"first": "FIRST", "second": "SECOND"}, True)
    assert "Stopped: 2 of 4 parts are finished." in capsys.readouterr().out
    assert results.each_part(names[:2], work) == (found, False)
    with pytest.raises(KeyboardInterrupt):
        results.each_part(names[2:], work)


def test_verdicts_of_numpy_are_verdicts():
    claim = CLAIM._replace(holds=np.bool_(True))
    written = json.loads(results.as_json(claim._asdict()))
    assert written["holds"] is True


def test_json_has_null_for_what_is_no_number(tmp_path):
    curves = {"one": {"step": np.array([1]), "loss": np.array([np.nan], np.float32)}}
    extra = {"figures": {"behind": (np.float64(0.5), np.float32(np.inf))}}
    result = results.Result(curves, (CLAIM,), extra)
    results.save(tmp_path, Config(), result, Figure(), {"seconds": float("nan")})

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    text = (tmp_path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    assert summary["last"]["one"] == {"step": 1.0, "loss": None}
    assert summary["figures"] == {"behind": [0.5, None]}
    assert summary["seconds"] is None
