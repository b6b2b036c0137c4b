"""Pages and records agree, and a figure that is nowhere is noticed."""

import doctest
import json

import pytest

from experiments.__main__ import EXPERIMENTS, main
from experiments.common.harness import report
from experiments.common.harness.keeping import portable, record_name

RECORDS = sorted(report.RECORDS.glob("*.json"))


@pytest.mark.parametrize("page", report.PAGES)
def test_no_page_disagrees_with_a_record(page):
    """If it does: `python -m experiments report` writes the page anew."""
    text = (report.ROOT / page).read_text()
    assert "<!-- table" in text
    assert report.written(text) == text


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_where_its_figures_come_from(path):
    record = json.loads(path.read_text())
    fields = {"command", "date", "seconds", "device", "python", "jax", "jaxmedian"}
    assert fields <= set(record)
    usual = record_name(record["command"])
    name, _, preset = usual.partition("-")
    assert name in EXPERIMENTS
    if path.stem == usual:  # other options make another name
        options = f" --preset {preset}" if preset else ""
        assert record["command"] == f"python -m experiments {name}{options}"
    assert f"{path.stem}-".startswith(f"{usual}-")
    assert record["command"] == portable(record["command"])
    assert record.get("partial", False) is False
    assert None not in [record[field] for field in fields]


def test_every_record_is_quoted():
    tables = (report.RECORDS / "tables.md").read_text()
    quoted = {match[1] for match in report._FIGURE.finditer(tables)}
    assert quoted == {path.stem for path in RECORDS}


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """A page with one table of one record, not yet filled in."""
    records = tmp_path / "experiments" / "records"
    records.mkdir(parents=True)
    record = {"last": {"vote": {"test_accuracy": 0.1234, "test_accuracy_error": 0.01}}}
    (records / "toy.json").write_text(json.dumps(record))
    table = "<!-- table one -->\n| {{toy/vote :.2f}} |\n<!-- end -->\n"
    (records / "tables.md").write_text(table)
    page = tmp_path / "PAGE.md"
    page.write_text("Before.\n<!-- table one -->\n<!-- end -->\nAfter.\n")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RECORDS", records)
    monkeypatch.setattr(report, "PAGES", ("PAGE.md",))
    return page, records


def test_figures_are_written_where_they_are_quoted(pages, capsys):
    page, _ = pages
    assert main(["report", "--check"]) == 1
    assert "PAGE.md is not what the records say" in capsys.readouterr().out
    assert main(["report"]) == 0
    filled = "<!-- table one -->\n| .12 ± .01 |\n<!-- end -->\n"
    assert page.read_text() == f"Before.\n{filled}After.\n"
    assert main(["report", "--check"]) == 0
    page.write_text(page.read_text().replace(".12", ".21"))  # by hand
    assert main(["report", "--check"]) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{toy/median}}", "record toy holds no 'median'"),
        ("{{mnist/vote}}", "there is no record mnist"),
    ],
)
def test_a_figure_that_is_nowhere_is_refused(pages, template, message, capsys):
    _, records = pages
    (records / "tables.md").write_text(
        f"<!-- table one -->\n{template}\n<!-- end -->\n"
    )
    assert main(["report"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [None, float("nan")])
def test_one_seed_is_written_without_an_error(pages, error):
    """Records have null for an error that is not there; old ones have NaN."""
    page, records = pages
    last = {"vote": {"test_accuracy": 0.5, "test_accuracy_error": error}}
    record = {"last": last, "figures": {"behind": [0.25, error]}}
    (records / "toy.json").write_text(json.dumps(record))
    table = "<!-- table one -->\n{{toy/vote}} {{toy/behind :.2f}}\n<!-- end -->\n"
    (records / "tables.md").write_text(table)
    assert report.written(page.read_text()).split("\n")[2] == ".500 .25"


def test_a_table_that_is_nowhere_is_refused(pages):
    with pytest.raises(ValueError, match="no table 'other'"):
        report.written("<!-- table other -->\n<!-- end -->\n")


def test_figures_are_found_by_name_curve_and_claim():
    record = {
        "seconds": 200.4,
        "figures": {"vote": 1},
        "last": {"mean": {"loss": 2.0}},
        "claims": [{"statement": "Noise helps at every K", "here": "by 3 points"}],
    }
    assert report.look_up(record, "vote") == 1
    assert report.look_up(record, "mean > loss") == 2.0
    assert report.look_up(record, "Noise helps") == "by 3 points"
    assert report.look_up(record, "time") == "3 min"
    assert report.look_up(record | {"seconds": 11.2}, "time") == "11 s"
    assert report.look_up(record, "mean") is None


def test_docstring_examples():
    assert doctest.testmod(report).failed == 0
