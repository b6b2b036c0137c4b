"""What a run left is kept small, without where it lay, and only if it is whole."""

import csv
import doctest
import json

import numpy as np
import pytest

pytest.importorskip("tyro")

from matplotlib.figure import Figure

from experiments.__main__ import main
from experiments.common.harness import keeping
from experiments.common.harness.results import Result, save


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Folders in which records and figures are kept."""
    for name in ("RECORDS", "FIGURES"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(keeping, name, tmp_path / name)
    return tmp_path


def results(folder, command="toy --preset quick", num_points=1001):
    folder.mkdir()
    steps = np.arange(1, num_points + 1)
    curves = {"long": {"step": steps, "loss": 1 / steps}, "short": {"step": steps[:3]}}
    about = {"command": f"python -m experiments {command}"}
    save(folder, {}, Result(curves, (), partial=False, data="digits"), Figure(), about)
    return str(folder)


def test_curves_are_thinned_and_keep_their_ends(kept):
    folder = results(kept / "r", "toy --preset quick --out /here/r --resume")
    assert main(["keep", folder]) == 0
    with (kept / "RECORDS" / "toy-quick.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row["curve"] == "long"]
    assert len(steps) == 200
    assert (steps[0], steps[-1]) == (1, 1001)
    assert set(np.diff(steps)) == {5, 6}  # evenly, of 1001
    assert [row["step"] for row in rows if row["curve"] == "short"] == ["1", "2", "3"]
    losses = [float(row["loss"]) for row in rows if row["curve"] == "long"]
    np.testing.assert_allclose(losses, 1 / np.array(steps), rtol=1e-5)
    record = json.loads((kept / "RECORDS" / "toy-quick.json").read_text())
    assert record["command"] == "python -m experiments toy --preset quick"
    assert record["data"] == "digits"
    assert record["last"]["long"]["loss"] == 1 / 1001
    assert (kept / "FIGURES" / "toy-quick.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_ones_own_begin_with_the_experiment(kept, capsys):
    folder = results(kept / "r", "cifar --preset quick --data=/my/cats.zip --seeds 2")
    assert main(["keep", folder, "toy"]) == 2
    assert "begins with cifar-quick; got toy" in capsys.readouterr().err
    assert main(["keep", folder, "cifar-quick-cats"]) == 0
    record = json.loads((kept / "RECORDS" / "cifar-quick-cats.json").read_text())
    expected = "python -m experiments cifar --preset quick --data cats.zip --seeds 2"
    assert record["command"] == expected


def test_other_options_ask_for_a_name_of_its_own(kept, capsys):
    folder = results(kept / "r", "cifar --seeds 2 --preset quick --data-dir /my")
    for name in ((), ("cifar-quick",)):
        assert main(["keep", folder, *name]) == 2
        complaint = capsys.readouterr().err
        assert "was made with --seeds 2, and cifar-quick is the record" in complaint
    assert not list((kept / "RECORDS").iterdir())
    assert main(["keep", folder, "cifar-quick-two"]) == 0


@pytest.mark.parametrize("option", ["--mnist.data-dir", "--data_dir", "--scratch"])
def test_no_spelling_of_an_option_tells_where_things_lay(option):
    command = f"python -m experiments reproduce {option} /home/me --mnist.data=/me/cats"
    kept = "python -m experiments reproduce --mnist.data cats"
    assert keeping.portable(command) == kept
    assert keeping.portable(command.replace(f"{option} ", f"{option}=")) == kept


def test_an_older_summary_with_nan_is_kept_as_json(kept):
    folder = results(kept / "r")
    summary = kept / "r" / "summary.json"
    summary.write_text(summary.read_text().replace("0.000999000999000999", "NaN"))
    assert main(["keep", folder]) == 0
    record = json.loads((kept / "RECORDS" / "toy-quick.json").read_text())
    assert record["last"]["long"]["loss"] is None


def test_no_part_is_kept_and_nothing_that_is_not_there(kept, capsys):
    assert main(["keep", str(kept)]) == 2
    assert "holds no results of a run: no summary.json" in capsys.readouterr().err
    folder = results(kept / "r")
    summary = kept / "r" / "summary.json"
    summary.write_text(
        summary.read_text().replace('"partial": false', '"partial": true')
    )
    assert main(["keep", folder]) == 2
    assert "end it with --resume" in capsys.readouterr().err
    assert main(["keep"]) == 2
    assert not list((kept / "RECORDS").iterdir())


def test_docstring_examples():
    assert doctest.testmod(keeping).failed == 0


@pytest.mark.parametrize(
    "record",
    [
        {"seconds": 1.5, "partial": False, "data": None, "claims": [], "last": {}},
        {
            "claims": [{"here": "a, {b}", "holds": None}],
            "last": {"x": {"step": [1, 2]}},
        },
    ],
)
def test_a_record_is_written_with_a_row_a_line_and_nothing_changed(record):
    text = keeping._written(record)
    assert json.loads(text) == record
    assert list(json.loads(text)) == list(record)
    rows = [json.dumps(row) for row in record["claims"]]
    assert [line.strip(" ,") for line in text.split("\n") if "here" in line] == rows
