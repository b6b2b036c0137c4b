"""Pages that quote results: their tables are written from the committed records.

A record, ``experiments/records/NAME-PRESET.json``, is the summary.json of a run. The
tables stand in ``tables.md`` beside them, with ``{{RECORD/FIGURE}}`` in place of every
figure; a FIGURE is

    a name among the record's "figures", or of its fields ("seconds", "device", ...);
    a curve, for its last test accuracy; CURVE > METRIC for the last of another metric;
    the beginning of a claim, for what was found there;

and ``{{RECORD/FIGURE :.2f}}`` says how a number is written (.3f unless it does).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.harness.misuse import Misuse

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "experiments" / "records"
FIGURES = ROOT / "experiments" / "figures"
PAGES = (
    "README.md",
    "notebooks/pages/benchmark.md",
    "notebooks/pages/claims.md",
    "experiments/README.md",
)

_FIGURE = re.compile(r"\{\{([\w-]+)/(.+?)(?: :(\S+))?\}\}")
_ZERO = re.compile(r"(?<![\d.])0\.(?=\d)")  # pages write .5 for 0.5
_TABLE = re.compile(r"<!-- table (\S+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def report(options: Sequence[str] = ()) -> int:
    """Writes the tables of all pages; with ``--check`` says which differ instead.

    Returns:
      The exit code: 1 if a page and a record disagree under ``--check``.
    """
    if set(options) - {"--check"}:
        raise Misuse(f"report takes --check alone; got {' '.join(options)!r}.")
    code = 0
    for page in PAGES:
        path = ROOT / page
        found, wanted = path.read_text(), written(path.read_text())
        if found == wanted:
            continue
        if options:
            print(f"{page} is not what the records say.")
            code = 1
        else:
            path.write_text(wanted)
            print(f"Wrote the tables of {page}.")
    return code


def written(page: str) -> str:
    """Returns a page with its tables filled in.

    Raises:
      Misuse: for a table, record or figure that is not there.
    """
    templates = dict(_TABLE.findall((RECORDS / "tables.md").read_text()))

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in templates:
            raise Misuse(f"tables.md has no table {name!r}.")
        text = _FIGURE.sub(lambda figure: _written(*figure.groups()), templates[name])
        return f"<!-- table {name} -->\n{text}<!-- end -->\n"

    return _TABLE.sub(fill, page)


def _written(name: str, figure: str, form: str | None) -> str:
    file = RECORDS / f"{name}.json"
    if not file.exists():
        raise Misuse(f"there is no record {name}.")
    value = look_up(json.loads(file.read_text()), figure)
    if value is None:
        raise Misuse(f"record {name} holds no {figure!r}.")
    if isinstance(value, str):
        return _ZERO.sub(".", value.replace("+-", "±"))
    middle, *error = value if isinstance(value, list) else [value]
    known = [] if _is_missing(*error) else error
    parts = [format(part, form or ".3f") for part in (middle, *known)]
    return _ZERO.sub(".", " ± ".join(parts))


def look_up(record: Mapping[str, Any], figure: str) -> Any:
    """Finds a figure in a record: a number, [number, standard error] or words.

    >>> record = {"last": {"vote": {"test_accuracy": 0.9, "test_accuracy_error": 0.1}}}
    >>> look_up(record, "vote"), look_up(record, "vote > loss"), look_up(record, "none")
    ([0.9, 0.1], None, None)
    """
    for place in (record.get("figures", {}), record):
        if figure in place:
            return place[figure]
    if figure == "time" and record.get("seconds"):
        seconds = record["seconds"]
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    curve, _, metric = figure.partition(" > ")
    last = record.get("last", {}).get(curve, {})
    metric = metric or "test_accuracy"
    if metric in last:
        error = last.get(f"{metric}_error")
        return last[metric] if _is_missing(error) else [last[metric], error]
    for claim in record.get("claims", []):
        if claim["statement"].startswith(figure):
            return claim["here"]
    return None


def _is_missing(error: float | None = None) -> bool:
    """Returns whether there is no error: null of one seed, NaN in older records."""
    return error is None or math.isnan(error)
