"""Keep the results of a run: the record, curves and figure that pages quote.

    python -m experiments keep results/mnist                  as mnist-paper, say
    python -m experiments keep results/cifar cifar-paper-3    under a name of its own

writes ``records/NAME.json``, its summary; ``records/NAME.csv``, its curves at 200 steps
at most; and ``figures/NAME.png``.
"""

import csv
import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from experiments.common.harness.misuse import Misuse
from experiments.common.harness.report import FIGURES, RECORDS

_MOST_POINTS = 200
_ELSEWHERE = ("out", "data-dir", "scratch")  # options that say where, not what
_FILES = ("data", "text", "texts")  # of which the name alone is told


def keep(options: Sequence[str]) -> int:
    """Keeps what a run left in a folder.

    Args:
      options: the folder; the name of the record, by default that of the experiment and
        of its preset, ``NAME`` or ``NAME-PRESET``, with which others have to begin, and
        which is that of runs without any other option.

    Raises:
      Misuse: for other options, results that are partial or not there, or a run
        with options that the name does not tell.
    """
    if not 1 <= len(options) <= 2:
        raise Misuse(f"keep takes FOLDER [NAME]; got {' '.join(options)!r}.")
    folder = Path(options[0])
    files = [folder / name for name in ("summary.json", "metrics.csv", "figure.png")]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise Misuse(f"{folder} holds no results of a run: no {missing[0]}.")
    summary, metrics, figure = files
    record = json.loads(summary.read_text(), parse_constant=lambda nan: None)
    if record["partial"]:
        raise Misuse(f"{folder} holds a part of the results: end it with --resume.")
    record["command"] = portable(record["command"])
    usual = record_name(record["command"])
    name = options[1] if options[1:] else usual
    if not f"{name}-".startswith(f"{usual}-"):
        raise Misuse(f"The name of this record begins with {usual}; got {name}.")
    if name == usual and (others := _other_options(record["command"])):
        raise Misuse(
            f"{folder} was made with {shlex.join(others)}, and {usual} is the record "
            f"without: give another name, keep {folder} {usual}-SOMETHING."
        )
    (RECORDS / f"{name}.json").write_text(_written(record))
    with metrics.open(newline="") as file:
        rows = list(csv.reader(file))
    with (RECORDS / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(_thinned(rows))
    shutil.copyfile(figure, FIGURES / f"{name}.png")
    print(f"Kept {folder} as {name}. Quote it in {RECORDS.name}/tables.md.")
    return 0


def _written(record: dict[str, Any]) -> str:
    """Writes a field a line, and of a list of rows a row a line."""
    lines = []
    for field, value in record.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            rows = ",\n    ".join(json.dumps(row) for row in value)
            text = f"[\n    {rows}\n  ]"
        elif isinstance(value, dict) and value:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        lines.append(f"  {json.dumps(field)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def portable(command: str) -> str:
    """Leaves out of a command what only says where things lay on this machine.

    >>> portable("python -m experiments cifar --data /my/cats.zip --out here --resume")
    'python -m experiments cifar --data cats.zip'
    >>> portable("python -m experiments shakespeare --texts=/my/languages --seeds 2")
    'python -m experiments shakespeare --texts languages --seeds 2'
    >>> portable("python -m experiments reproduce --mnist.data_dir /my/archives")
    'python -m experiments reproduce'
    """
    kept = []
    words = iter(_words(command))
    for word in words:
        option = _option(word)
        if option in _ELSEWHERE:
            next(words, None)
        elif option in _FILES:
            kept += [word, PurePath(next(words, "")).name]
        elif option != "resume":
            kept.append(word)
    return shlex.join(kept)


def record_name(command: str) -> str:
    """Returns the name of an experiment, with that of its preset if it had one.

    >>> record_name("python -m experiments cifar --preset quick --seeds 3")
    'cifar-quick'
    """
    words = list(_words(command))
    preset = words[words.index("--preset") + 1] if "--preset" in words else "default"
    return words[3] if preset == "default" else f"{words[3]}-{preset}"


def _other_options(command: str) -> list[str]:
    """Returns the options of a portable command but for its preset."""
    others = list(_words(command))[4:]
    if "--preset" in others:
        place = others.index("--preset")
        del others[place : place + 2]
    return others


def _option(word: str) -> str:
    """Returns the name of an option as `_ELSEWHERE` has it, "" of another word."""
    if not word.startswith("--"):
        return ""
    return word.removeprefix("--").split(".")[-1].replace("_", "-")


def _words(command: str) -> Iterator[str]:
    """Splits a command; ``--option=value`` becomes two words."""
    for word in shlex.split(command):
        option, equals, value = word.partition("=")
        yield from (option, value) if equals and word.startswith("--") else (word,)


def _thinned(rows: list[list[str]]) -> list[list[str]]:
    """Leaves out rows evenly where a curve has many; the first and last one stay."""
    header, *points = rows
    curves: dict[str, list[list[str]]] = {}
    for point in points:
        curves.setdefault(point[0], []).append(point)
    thinned = [header]
    for curve in curves.values():
        places = np.linspace(0, len(curve) - 1, min(len(curve), _MOST_POINTS))
        thinned += [
            [_short(cell) for cell in curve[i]] for i in places.round().astype(int)
        ]
    return thinned


def _short(cell: str) -> str:
    """Writes a number with six digits."""
    try:
        return f"{float(cell):.6g}"
    except ValueError:
        return cell
