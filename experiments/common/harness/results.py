"""What an experiment returns, and what of it is printed and written.

On disk that is config.json, metrics.csv, summary.json and figure.png.
"""

import csv
import dataclasses
import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import jaxmedian as jm

T = TypeVar("T")
Curves = Mapping[str, Mapping[str, np.ndarray]]  # curve -> metric -> its values


class Claim(NamedTuple):
    """One sentence that a run can confirm or not.

    Attributes:
      statement: what should be so.
      here: what this run measured.
      holds: whether our own statement held; None where nothing was promised (a number
        of the paper that these data cannot reach, say), which never fails a run.
      paper: what the paper states or shows.
      reason: why it is so, where that needs saying.
    """

    statement: str
    here: str
    holds: bool | None = None
    paper: str = "-"
    reason: str = ""


class Result(NamedTuple):
    """What an experiment found.

    Attributes:
      curves: one table of metrics a curve.
      claims: what was to be shown, and whether it was.
      extra: what else belongs into summary.json.
      against: the column that every table has and is drawn against.
      partial: whether Ctrl-C ended it before all of its parts: claims then judge
        nothing.
      data: what was trained on, by the name that quoted results have to give it.
    """

    curves: Curves
    claims: tuple[Claim, ...]
    extra: Mapping[str, Any] = MappingProxyType({})
    against: str = "step"
    partial: bool = False
    data: str | None = None


def each_part(
    names: Iterable[str], work: Callable[[str], T]
) -> tuple[dict[str, T], bool]:
    """Works through the parts of an experiment, until Ctrl-C if it comes.

    Args:
      names: of the parts.
      work: name -> what was found.

    Returns:
      What was found by name, and whether parts are missing: the `Result` is `partial`.

    Raises:
      KeyboardInterrupt: if no part was finished.
    """
    names, found = list(names), dict[str, T]()
    try:
        for number, name in enumerate(names, start=1):
            print(f"{name} ({number} of {len(names)})", flush=True)
            found[name] = work(name)
    except KeyboardInterrupt:
        if not found:
            raise
        print(f"Stopped: {len(found)} of {len(names)} parts are finished.")
    return found, len(found) < len(names)


def all_hold(claims: Sequence[Claim]) -> bool:
    """Returns whether no claim of our own failed."""
    return all(claim.holds is not False for claim in claims)


def judged_claims(result: Result) -> tuple[Claim, ...]:
    """Returns the claims as they are printed and written: a part judges nothing."""
    if not result.partial:
        return result.claims
    return tuple(claim._replace(holds=None) for claim in result.claims)


def print_table(claims: Sequence[Claim]) -> None:
    """Prints "claim | paper | here" and which claims held."""
    verdicts = {True: "[green]holds[/]", False: "[red]FAILS[/]", None: "-"}
    table = Table(show_lines=True)
    table.add_column("claim", ratio=5)
    table.add_column("paper", ratio=3)
    table.add_column("here", ratio=4)
    table.add_column("", no_wrap=True)
    for claim in claims:
        here = f"{claim.here} ({claim.reason})" if claim.reason else claim.here
        texts = map(escape, (claim.statement, claim.paper, here))
        table.add_row(*texts, verdicts[claim.holds])
    Console().print(table)


def save(
    folder: Path,
    config: Any,
    result: Result,
    figure: Figure,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes the four files of a run into a folder.

    Args:
      folder: where they go.
      config: the settings.
      result: what was found.
      figure: of it.
      about: what else summary.json says of the run: command, date, seconds.
    """
    (folder / "config.json").write_text(as_json(config))
    (folder / "summary.json").write_text(as_json({**about, **_summary(result)}))
    _write_csv(folder / "metrics.csv", result.curves, result.against)
    figure.savefig(folder / "figure.png", dpi=150, bbox_inches="tight")


def _summary(result: Result) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "partial": result.partial,
        "data": result.data,
        "claims": [claim._asdict() for claim in judged_claims(result)],
        "last": {
            name: {key: float(values[-1]) for key, values in curve.items()}
            for name, curve in result.curves.items()
        },
        "device": f"{device.platform}: {device.device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxmedian": getattr(jm, "__version__", None),
        **result.extra,
    }


def as_json(content: Any) -> str:
    """Writes a Config, or a dictionary, as JSON, which has null for NaN and inf."""
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        content = dataclasses.asdict(content)
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Returns what JSON knows: lists for tuples, None for NaN, words for the rest."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | None) else str(value)


def _write_csv(path: Path, curves: Curves, against: str) -> None:
    """Writes one row a curve and point; a metric a curve lacks stays empty."""
    metrics = sorted({key for curve in curves.values() for key in curve} - {against})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", against, *metrics])
        for name, curve in curves.items():
            for row, point in enumerate(curve[against]):
                values = [curve[key][row] if key in curve else "" for key in metrics]
                writer.writerow([name, point.item(), *values])
